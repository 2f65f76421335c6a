"""The lists of Sports-1M, Kinetics, UCF101 and HMDB51 → rows, and by what id a row means a file.

Forms: the published lists of Karpathy et al. 2014, Kay et al. 2017, Soomro et al. 2012 and Kuehne et al. 2011.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from sharding.base.errors import UserError
from sharding.corpora.entries.labels import class_name
from sharding.corpora.entries.roots import EXTENSIONS, sanitised
from sharding.corpora.entries.rows import IdsOfPath, Refusal, Row
from sharding.corpora.formats.csv_table import csv_table
from sharding.corpora.formats.list_file import ListFile
from sharding.corpora.formats.tables import (
    Malformed,
    RowOrRefusal,
    labels_of_value,
    seconds,
    shown,
    split_word,
    text_lines,
)

WATCH = "https://www.youtube.com/watch?v="
ID_FIELDS = ("id", "video_id", "videoId", "youtube_id", "url", "stitchTubeId")
LABEL_FIELDS = ("label487", "labels", "label")
SPLIT_FIELDS = ("source487", "split")

_IN_URL = re.compile(r"(?:[?&]v=|youtu\.be/|/(?:embed|shorts|v|live)/)([\w-]+)")
_IN_NAME = re.compile(r"\[([\w-]{11})\]$")
_AT_END = re.compile(r"-([A-Za-z0-9_-]{11})$")
_UCF_NAME = re.compile(r"v_(.+)(_g\d+_c\d+)")
_INDICES = re.compile(r"\d+(,\d+)*,?")


def video_id(text: str) -> str:
    """The id of a video from its YouTube address, or from a file's path: its name without what follows the last dot."""
    if text.startswith(WATCH):
        found = text[len(WATCH) :]
        return found if found.isalnum() else re.split("[&#]", found, maxsplit=1)[0]
    match = _IN_URL.search(text) if "://" in text else None
    return match.group(1) if match else stem(text)


def stem(path: str) -> str:
    """A file's name without a video's extension."""
    name = path.rpartition("/")[2]
    before, _, extension = name.rpartition(".")
    return before if before and extension.lower() in EXTENSIONS else name


def ids_of_file(path: str) -> tuple[str, ...]:
    """The ids by which a file holds a video: its name without the extension, or the id in its name's last [brackets].

    A name `Title-ID`, as youtube-dl wrote them, has a second: the eleven characters at its end.
    """
    name = stem(path)
    found = _IN_NAME.search(name) if name.endswith("]") else None
    if found is not None:
        return (found.group(1),)
    found = _AT_END.search(name)
    return (name, found.group(1)) if found is not None else (name,)


def id_in_class(classes: Collection[str], canonical: Callable[[str], str] = str) -> IdsOfPath:
    """The id of a file by class folder and name where it lies in a folder of `classes`, else by its name alone.

    `canonical`: of a name, how lists write it.
    """
    folded = {class_name(name).casefold() for name in classes}

    def ids(path: str) -> tuple[str]:
        folder = class_name(path.rpartition("/")[0].rpartition("/")[2]).casefold()
        name = canonical(stem(path))
        return (f"{folder}/{name}" if folder in folded else name,)

    return ids


class UcfSpelling:
    """UCF101's names `v_Class_g01_c01` with their class written as in `classes`: lists and files differ in its case.

    (`HandstandPushups` is the class, `v_HandStandPushups_g01_c01` are its files, in some copies and lists.)
    """

    def __init__(self, classes: Collection[str]) -> None:
        self._spelled = {class_name(name).casefold(): name for name in classes}

    def name(self, name: str) -> str:
        """A file's name without its extension, the class written as it should be."""
        made = _UCF_NAME.fullmatch(name)
        return name if made is None else f"v_{self.label(made.group(1))}{made.group(2)}"

    def label(self, label: str) -> str:
        """A class as it should be written."""
        return self._spelled.get(class_name(label).casefold(), label)


def sports1m_rows(file: ListFile, split: str) -> Iterator[RowOrRefusal]:
    """Rows of lines `URL 12,305`: the labels are 0-based indices."""
    for line, text in text_lines(file):
        if isinstance(text, Refusal):
            yield text
            continue
        address, *rest = text.split()
        labels = _sports1m_labels(rest[0]) if len(rest) == 1 else ()
        if rest and not labels:
            yield Refusal(shown(text), "malformed", "it is not an address, a space, and indices with commas", line)
        else:
            yield Row(video_id(address), labels, split, None, None, line)


@functools.lru_cache(65536)
def _sports1m_labels(text: str) -> tuple[str, ...]:
    return tuple(text.strip(",").split(",")) if _INDICES.fullmatch(text) else ()


def sports1m_json_rows(entries: Iterable[tuple[int, str, Any]], split: str) -> Iterator[RowOrRefusal]:
    """Rows of the JSON form: entries with an id or address, `label487` and, it may be, `source487` for the split."""
    for number, key, entry in entries:
        if isinstance(entry, Refusal):
            yield entry
            continue
        if not isinstance(entry, dict):
            yield Refusal(shown(entry), "malformed", "it is not a JSON object", number)
            continue
        name = next((entry[field] for field in ID_FIELDS if entry.get(field)), None)
        in_split = key.lower() in ("train", "test", "val", "validation")
        name = str(key if name is None and not in_split else name or "")
        try:
            if not name:
                raise Malformed(f"it has none of {', '.join(ID_FIELDS)}")
            labels = labels_of_value(next((entry[field] for field in LABEL_FIELDS if field in entry), None))
            told = next((entry[field] for field in SPLIT_FIELDS if entry.get(field)), key if in_split else None)
            yield Row(video_id(name), labels, split_word(told, split), line=number)
        except Malformed as error:
            yield Refusal(shown(name), "malformed", str(error), number)


def is_kinetics_header(header: Iterable[str]) -> bool:
    """Whether a CSV's first line is that of a Kinetics list."""
    return {"youtube_id", "time_start"} <= {name.strip().lower() for name in header}


def kinetics_rows(file: ListFile, split: str) -> Iterator[RowOrRefusal]:
    """Rows of a Kinetics CSV. Raises UserError if its header is another.

    The file of a row is `ID_SSSSSS_EEEEEE`, which holds its stretch alone, or else `ID`, the whole video.
    """
    header, lines = csv_table(file)
    names = [name.strip().lower() for name in header]
    if not is_kinetics_header(header):
        what = f"this is no Kinetics list; its first line is: {sanitised(', '.join(header[:8]))}"
        remedy = "give the CSV with the header label,youtube_id,time_start,time_end,split"
        raise UserError(what, file.where, remedy)
    for line, cells in lines:
        if isinstance(cells, Refusal):
            yield cells
            continue
        value = dict(zip(names, cells, strict=False))
        name = value.get("youtube_id", "").strip()
        try:
            if not name or "/" in name:
                raise Malformed("it has no youtube_id")
            side = split_word(value.get("split"), split)
            start, end = seconds(value.get("time_start")), seconds(value.get("time_end"))
            label = value.get("label", "").strip()
            labels = (label,) if label else ()
            if start is None or end is None:
                yield Row(name, labels, side, start, end, line)
            elif not 0 <= start < end < 10**6:
                raise Malformed(f"the times {start} to {end} are not a stretch of a video")
            else:
                yield Row(f"{name}_{int(start):06d}_{int(end):06d}", labels, side, start, end, line, name)
        except Malformed as error:
            yield Refusal(shown(name), "malformed", str(error), line)


def ucf101_names(file: ListFile) -> tuple[str, ...]:
    """Class names of `classInd.txt`, lines `1 ApplyEyeMakeup`, in its order."""
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
        yield Row(f"{class_name(label).casefold()}/{name}", (label,), split, line=line, whole=name)


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
            yield Row(f"{folder}/{stem(name)}", (label,), split, line=line, whole=stem(name))
