"""Reads the split lists of UCF101 (Soomro et al. 2012) and HMDB51 (Kuehne et al. 2011)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator

from sharding.base.errors import UserError
from sharding.corpora.entries.labels import class_name
from sharding.corpora.entries.rows import Refusal, Row
from sharding.corpora.formats.list_file import ListFile
from sharding.corpora.formats.tables import RowOrRefusal, shown, text_lines
from sharding.corpora.formats.video_ids import stem

_UCF_NAME = re.compile(r"v_(.+)(_g\d+_c\d+)")


class UcfSpelling:
    """Writes the class in UCF101's names `v_Class_g01_c01` as in `classes`: lists and files differ in its case.

    (`HandstandPushups` is the class, `v_HandStandPushups_g01_c01` are its files, in some copies and lists.)
    """

    def __init__(self, classes: Collection[str]) -> None:
        self._spelled = {class_name(name).casefold(): name for name in classes}

    def name(self, name: str) -> str:
        """A file's name without its extension, with the class in the spelling of `classes`."""
        made = _UCF_NAME.fullmatch(name)
        return name if made is None else f"v_{self.label(made.group(1))}{made.group(2)}"

    def label(self, label: str) -> str:
        """A class in the spelling of `classes`; as it is, where it is none of them."""
        return self._spelled.get(class_name(label).casefold(), label)


def ucf101_names(file: ListFile) -> tuple[str, ...]:
    """The class names of `classInd.txt`, lines `1 ApplyEyeMakeup`, by number. Raises UserError for another line."""
    names = {}
    for line, text in text_lines(file):
        number, _, name = text.partition(" ") if isinstance(text, str) else ("", "", "")
        if not number.isdecimal() or not name.strip() or int(number) in names:
            remedy = "write lines like: 1 ApplyEyeMakeup"
            raise UserError("this is no line of class indices", f"{file.where}, line {line}", remedy)
        names[int(number)] = name.strip()
    return tuple(names[number] for number in sorted(names))


def ucf101_rows(file: ListFile, split: str, names: UcfSpelling) -> Iterator[RowOrRefusal]:
    """Rows of lines `Class/v_Class_g01_c01.avi 1`; the class is the folder's, the number repeats it."""
    for line, text in text_lines(file):
        if isinstance(text, Refusal):
            yield text
            continue
        path = re.sub(r"\s+\d+$", "", text)
        folder = path.rpartition("/")[0].rpartition("/")[2]
        made = _UCF_NAME.fullmatch(stem(path))
        label = folder or (made.group(1) if made else "")
        if not label:
            yield Refusal(shown(text), "malformed", "it is not Class/v_Class_gNN_cNN.avi", line)
            continue
        label, name = names.label(label), names.name(stem(path))
        yield Row(f"{class_name(label).casefold()}/{name}", (label,), split, line=line, fallback_id=name)


def hmdb51_rows(file: ListFile, label: str) -> Iterator[RowOrRefusal]:
    """Rows of lines `file.avi 1` of a class' list: 1 is training, 2 is testing, 0 is in neither."""
    folder = class_name(label).casefold()
    for line, text in text_lines(file):
        if isinstance(text, Refusal):
            yield text
            continue
        name, _, tag = text.rpartition(" ")
        name = name.strip()
        if not name or tag not in ("0", "1", "2"):
            yield Refusal(shown(text), "malformed", "it is not a file's name, a space, and 0, 1 or 2", line)
        elif tag == "0":
            yield Refusal(f"{label}/{name}", "unused", "this fold does not use it", line)
        else:
            split = "train" if tag == "1" else "test"
            yield Row(f"{folder}/{stem(name)}", (label,), split, line=line, fallback_id=stem(name))
