"""The lists of a corpus whose kind is known, ready to read: which reader, which class names, ids or paths."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sharding.base.errors import UserError
from sharding.corpora.entries.labels import Meaning, read_names
from sharding.corpora.entries.roots import sanitised
from sharding.corpora.entries.rows import CorpusList, IdsOfPath
from sharding.corpora.entries.settings import CorpusSettings
from sharding.corpora.entries.splits import SPLITS
from sharding.corpora.formats.json_stream import json_entries
from sharding.corpora.formats.kinetics import kinetics_rows
from sharding.corpora.formats.list_file import ListFile, list_file
from sharding.corpora.formats.sports1m import sports1m_json_rows, sports1m_rows
from sharding.corpora.formats.tables import (
    LabelCells,
    RowOrRefusal,
    csv_rows,
    json_lines,
    json_rows,
    parquet_rows,
    text_lines,
)
from sharding.corpora.formats.ucf_hmdb import UcfSpelling, hmdb51_rows, ucf101_names, ucf101_rows
from sharding.corpora.formats.video_ids import id_in_class, ids_of_file, stem

Kind = Literal["folder", "csv", "jsonl", "parquet", "sports1m", "kinetics", "ucf101", "hmdb51"]
HMDB = re.compile(r"(.+)_test_split(\d)\.txt")
_SPLIT = re.compile(r"(?:^|[_.-])(train|training|val|valid|validate|validation|test)(?:[_.-]|$)")
_MEDIA_FOLDERS = {
    "ucf101": ("UCF-101", "UCF101", "ucf101", "videos"),
    "hmdb51": ("hmdb51", "HMDB51", "hmdb51_org", "videos"),
}


@dataclass(frozen=True)
class ListedCorpus:
    """A corpus that comes as lists. `class_names`: None where the rows alone name the classes.

    `ids_of_path`: the ids that lists use for a file at a path; None where they give paths. `media_folders`: where to
    look for the videos if the lists' own folder holds none.
    """

    kind: Kind
    lists: tuple[CorpusList, ...]
    label_meaning: Meaning = "names"
    class_names: tuple[str, ...] | None = None
    ids_of_path: IdsOfPath | None = None
    media_folders: tuple[str, ...] = ()


def class_names(place: str, encoding: str | None = None) -> tuple[str, ...]:
    """The class names in a file with one a line. Raises UserError if it is absent, or not such a file."""
    try:
        with list_file(place, encoding) as file, file.opened() as text:
            return read_names(text.read(2**26), file.where)
    except FileNotFoundError:
        remedy = "check the path; write one class name a line, line 1 being class 0"
        raise UserError("there is no such file of class names", sanitised(place), remedy) from None


def listed_corpus(kind: Kind, folder: str, places: list[str], settings: CorpusSettings) -> ListedCorpus:
    """The corpus that the lists at `places` make; they are of this kind and belong to a corpus in `folder`."""
    encoding = settings.encoding
    names = class_names(settings.labels, encoding) if settings.labels is not None else None
    if kind == "sports1m":
        names = names or _sports1m_class_names(folder, places, encoding)
        return ListedCorpus(kind, _corpus_lists(places, _sports1m_list, encoding), "numbers", names, ids_of_file)
    if kind == "kinetics":
        return ListedCorpus(kind, _corpus_lists(places, kinetics_rows, encoding), "names", names, ids_of_file)
    if kind in ("ucf101", "hmdb51"):
        return _split_lists(kind, places, names, encoding)
    labels = LabelCells(settings.labels_separator, names or ())

    def rows(file: ListFile, split: str) -> Iterator[RowOrRefusal]:
        if kind == "parquet":
            return parquet_rows(file, split, labels)
        if kind == "csv":
            return csv_rows(file, split, labels)
        if plain_name(file.place).endswith(".json"):
            return json_rows(json_entries(file), split, labels)
        return json_rows(((line, "", entry) for line, entry in json_lines(file)), split, labels)

    unit = "row" if kind == "parquet" else "line"
    return ListedCorpus(kind, _corpus_lists(places, rows, encoding, unit), "either", names)


def _split_lists(kind: Kind, places: list[str], names: tuple[str, ...] | None, encoding: str | None) -> ListedCorpus:
    """The corpus that UCF101's or HMDB51's lists make, which name files by class folder."""
    home = places[0].rpartition("/")[0]
    parent = home.rpartition("/")[0]
    media_folders = tuple(f"{above}/{name}" for above in dict.fromkeys((home, parent)) for name in _MEDIA_FOLDERS[kind])
    if kind == "hmdb51":
        classes = names or tuple(sorted({_hmdb_class(place) for place in places}))

        def by_class(file: ListFile, split: str) -> Iterator[RowOrRefusal]:
            return hmdb51_rows(file, _hmdb_class(file.place))

        lists, ids = _corpus_lists(places, by_class, encoding), id_in_class(classes)
        return ListedCorpus(kind, lists, "names", names, ids, media_folders)
    if names is None:
        with contextlib.suppress(FileNotFoundError), list_file(f"{home}/classInd.txt", encoding) as file:
            names = ucf101_names(file)
    classes = names or tuple(sorted(_ucf101_classes(places, encoding)))
    spelled = UcfSpelling(classes)

    def rows(file: ListFile, split: str) -> Iterator[RowOrRefusal]:
        return ucf101_rows(file, split, spelled)

    ids = id_in_class(classes, spelled.name)
    return ListedCorpus(kind, _corpus_lists(places, rows, encoding), "names", names, ids, media_folders)


def _corpus_lists(
    places: Sequence[str],
    rows: Callable[[ListFile, str], Iterator[RowOrRefusal]],
    encoding: str | None,
    unit: str = "line",
) -> tuple[CorpusList, ...]:
    """A CorpusList for each place, fetched when it is read; rows without a split get that of the list's name."""

    def read(place: str) -> Iterator[RowOrRefusal]:
        with list_file(place, encoding) as file:
            yield from rows(file, split_of_name(place))

    units = ["entry" if plain_name(place).endswith(".json") else unit for place in places]
    return tuple(CorpusList(sanitised(place), unit, read(place)) for place, unit in zip(places, units, strict=True))


def split_of_name(place: str) -> str:
    """The split that is part of a list's name: "train", "val", "test"; "" if there is none."""
    name = place.rpartition("/")[2].lower()
    words = set(_SPLIT.findall(name)) | set(re.findall(r"^(train|test)(?=list\d)", name))
    return SPLITS[words.pop()] if len(words) == 1 else ""


def plain_name(place: str) -> str:
    """A list's name or place in lower case, without ".gz"."""
    return place.lower().removesuffix(".gz")


def _sports1m_class_names(folder: str, places: list[str], encoding: str | None) -> tuple[str, ...] | None:
    """The class names in Sports-1M's labels.txt, beside its lists or one folder above; None if there is none."""
    home = places[0].rpartition("/")[0]
    for above in dict.fromkeys((home, home.rpartition("/")[0], folder)):
        place = f"{above}/labels.txt"
        with contextlib.suppress(FileNotFoundError), list_file(place, encoding) as file, file.opened() as text:
            return read_names(text.read(2**26), file.where)
    return None


def _sports1m_list(file: ListFile, split: str) -> Iterator[RowOrRefusal]:
    name = plain_name(file.place)
    if name.endswith((".jsonl", ".ndjson")):
        return sports1m_json_rows(((line, "", entry) for line, entry in json_lines(file)), split)
    if name.endswith(".json"):
        return sports1m_json_rows(json_entries(file), split)
    return sports1m_rows(file, split)


def _ucf101_classes(places: Sequence[str], encoding: str | None) -> Collection[str]:
    classes = set()
    for place in places:
        with list_file(place, encoding) as file:
            classes |= {text.partition("/")[0] for _, text in text_lines(file) if isinstance(text, str)}
    return classes


def _hmdb_class(place: str) -> str:
    match = HMDB.fullmatch(place.rpartition("/")[2])
    return match.group(1) if match else stem(place)
