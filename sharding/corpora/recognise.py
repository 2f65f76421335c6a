"""What kind of corpus a path or address is, by its lists' names and first lines; and those lists, ready to read."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from sharding.corpora.csv_table import csv_table
from sharding.corpora.datasets import (
    UcfNames,
    hmdb51_rows,
    id_in_class,
    ids_of_file,
    is_kinetics_header,
    kinetics_rows,
    sports1m_json_rows,
    sports1m_rows,
    stem,
    ucf101_names,
    ucf101_rows,
)
from sharding.corpora.jsonlist import json_entries
from sharding.corpora.labels import Meaning, read_names
from sharding.corpora.list_file import ListFile, list_file
from sharding.corpora.lists import Found, LabelCells, columns, csv_rows, json_lines, json_rows, parquet_rows, text_lines
from sharding.corpora.roots import tellable
from sharding.corpora.rows import Ids, Listing
from sharding.corpora.settings import CorpusSettings
from sharding.corpora.splits import SPLITS
from sharding.errors import UserError
from sharding.text import WrongEncoding

Kind = Literal["folder", "csv", "jsonl", "parquet", "sports1m", "kinetics", "ucf101", "hmdb51"]

_SPLIT = re.compile(r"(?:^|[_.-])(train|training|val|valid|validate|validation|test)(?:[_.-]|$)")
_ENDS: dict[str, Kind] = {
    ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_PARTITION = re.compile(r"(train|test)_partition\.txt(\.gz)?")
_FOLDS = re.compile(r"sports(\d)_(train|test)\.txt(\.gz)?")
_JSON = re.compile(r"sports-?_?1m.*(train|test).*\.json(\.gz)?")
_UCF = re.compile(r"(train|test)list(\d+)\.txt")
_HMDB = re.compile(r"(.+)_test_split(\d)\.txt")
_YOUTUBE = re.compile(r"https?://\S*youtu\S*\s+\d+(,\d+)*")
_BESIDE = {
    "ucf101": ("UCF-101", "UCF101", "ucf101", "videos"),
    "hmdb51": ("hmdb51", "HMDB51", "hmdb51_org", "videos"),
}
LOOKED_FOR = (
    "a folder of class folders; a .csv, .jsonl or .parquet list with the columns uri and labels; Sports-1M's "
    "train_partition.txt, its cross-validation's sportsN_train.txt or its JSON; Kinetics' CSV (label, youtube_id, "
    "time_start, time_end, split); UCF101's trainlist01.txt; HMDB51's CLASS_test_split1.txt"
)
MOST_LISTS = 1000


@dataclass(frozen=True)
class Shape:
    """A corpus as recognised. `meaning` of its labels; `names` of its classes, where it has a list of them.

    `ids`: those by which a file is meant; None where rows name files by path. `beside`: places to look for the
    media in, if the lists' own folder holds none.
    """

    kind: Kind
    lists: tuple[Listing, ...]
    meaning: Meaning = "names"
    names: tuple[str, ...] | None = None
    ids: Ids | None = None
    beside: tuple[str, ...] = ()


def is_list_name(path: str) -> bool:
    """Whether a file of a corpus' folder may be one of its lists: not too deep, not hidden, of a name like theirs."""
    name = path.rpartition("/")[2].lower()
    if path.count("/") > 1 or name.startswith(".") or path.startswith("."):
        return False
    if any(pattern.fullmatch(name) for pattern in (_PARTITION, _FOLDS, _JSON, _UCF, _HMDB)):
        return True
    # Below the top, a table without a split's name is rather a note beside some video, of which there may be a million.
    return _end(name) != "" and ("/" not in path or split_of_name(name) != "")


def shape_of_file(place: str, settings: CorpusSettings) -> Shape:
    """A corpus that is one list. Raises UserError if it is of no known kind."""
    folder, _, name = place.rpartition("/")
    kind = settings.kind
    try:
        found = _kind_of_file(place, name.lower(), settings.encoding) if kind == "auto" else kind
    except FileNotFoundError:
        raise UserError("there is no such list", tellable(place), "check the path") from None
    if found in ("folder", "ucf101", "hmdb51", None):
        wanted = "" if kind == "auto" else f", but {kind} was asked for"
        remedy = f"give the folder that holds the videos or their lists{wanted}. Known are: {LOOKED_FOR}"
        raise UserError("the corpus is a file, not a folder, and no list that is known", tellable(place), remedy)
    return _shape(found, folder, [place], settings)  # type: ignore[arg-type]


def shape_of_folder(root: str, names: Sequence[str], settings: CorpusSettings) -> Shape | None:
    """A corpus that is a folder, by the names in it that are like lists' names; None if it holds no list to go by.

    Raises UserError if `kind` was asked for and its lists are not there.
    """
    kind, fold, encoding = settings.kind, settings.fold, settings.encoding
    lists = {
        "sports1m": lambda: _sports1m(names, fold),
        "ucf101": lambda: _of_fold(names, _UCF, fold),
        "hmdb51": lambda: _of_fold(names, _HMDB, fold),
        "kinetics": lambda: [
            name for name in names if _end(name) == "csv" and _is_kinetics(f"{root}/{name}", encoding)
        ],
        "csv": lambda: _tables(root, names, "csv", settings),
        "jsonl": lambda: _tables(root, names, "jsonl", settings),
        "parquet": lambda: _tables(root, names, "parquet", settings),
    }
    for candidate, find in lists.items():
        if kind not in ("auto", candidate):
            continue
        found = sorted(find())
        if found:
            return _shape(candidate, root, [f"{root}/{name}" for name in found], settings)  # type: ignore[arg-type]
        if kind == candidate:
            what = f"there is no list of {kind} in this folder (fold {fold})"
            raise UserError(
                what, tellable(root), f"give the folder that holds it, or another fold. Known are: {LOOKED_FOR}"
            )
    return None


def class_names(place: str, encoding: str | None = None) -> tuple[str, ...]:
    """Names of a file with one class a line. Raises UserError if it is not there, or is not such a file."""
    try:
        with list_file(place, encoding) as file, file.opened() as text:
            return read_names(text.read(2**26), file.where)
    except FileNotFoundError:
        remedy = "check the path; write one class name a line, line 1 being class 0"
        raise UserError("there is no such file of class names", tellable(place), remedy) from None


def _shape(kind: Kind, folder: str, places: list[str], settings: CorpusSettings) -> Shape:
    encoding = settings.encoding
    names = class_names(settings.labels, encoding) if settings.labels is not None else None
    if kind == "sports1m":
        names = names or _names_beside(folder, places, encoding)
        return Shape(kind, _listings(places, _sports1m_list, encoding), "numbers", names, ids_of_file)
    if kind == "kinetics":
        return Shape(kind, _listings(places, kinetics_rows, encoding), "names", names, ids_of_file)
    if kind in ("ucf101", "hmdb51"):
        return _split_lists(kind, places, names, encoding)
    labels = LabelCells(settings.labels_separator, names or ())

    def rows(file: ListFile, split: str) -> Iterator[Found]:
        if kind == "parquet":
            return parquet_rows(file, split, labels)
        if kind == "csv":
            return csv_rows(file, split, labels)
        if _plain_name(file.place).endswith(".json"):
            return json_rows(((number, entry) for number, _, entry in json_entries(file)), split, labels)
        return json_rows(json_lines(file), split, labels)

    unit = "row" if kind == "parquet" else "line"
    return Shape(kind, _listings(places, rows, encoding, unit), "either", names)


def _split_lists(kind: Kind, places: list[str], names: tuple[str, ...] | None, encoding: str | None) -> Shape:
    """UCF101's and HMDB51's lists, which name files by class folder."""
    home = places[0].rpartition("/")[0]
    parent = home.rpartition("/")[0]
    beside = tuple(f"{above}/{name}" for above in dict.fromkeys((home, parent)) for name in _BESIDE[kind])
    if kind == "hmdb51":
        classes = names or tuple(sorted({_hmdb_class(place) for place in places}))

        def by_class(file: ListFile, split: str) -> Iterator[Found]:
            return hmdb51_rows(file, _hmdb_class(file.place))

        return Shape(kind, _listings(places, by_class, encoding), "names", names, id_in_class(classes), beside)
    if names is None:
        with contextlib.suppress(FileNotFoundError), list_file(f"{home}/classInd.txt", encoding) as file:
            names = ucf101_names(file)
    classes = names or tuple(sorted(_ucf101_classes(places, encoding)))
    spelled = UcfNames(classes)

    def rows(file: ListFile, split: str) -> Iterator[Found]:
        return ucf101_rows(file, split, spelled)

    ids = id_in_class(classes, spelled.name)
    return Shape(kind, _listings(places, rows, encoding), "names", names, ids, beside)


def _listings(
    places: Sequence[str], rows: Callable[[ListFile, str], Iterator[Found]], encoding: str | None, unit: str = "line"
) -> tuple[Listing, ...]:
    """Lists that are fetched when they are read; the split that a list's name tells goes for rows that tell none."""

    def read(place: str) -> Iterator[Found]:
        with list_file(place, encoding) as file:
            yield from rows(file, split_of_name(place))

    units = ["entry" if _plain_name(place).endswith(".json") else unit for place in places]
    return tuple(Listing(tellable(place), unit, read(place)) for place, unit in zip(places, units, strict=True))


def split_of_name(place: str) -> str:
    """The split that a list's name tells: "train", "val", "test"; "" if it tells none."""
    name = place.rpartition("/")[2].lower()
    words = set(_SPLIT.findall(name)) | set(re.findall(r"^(train|test)(?=list\d)", name))
    return SPLITS[words.pop()] if len(words) == 1 else ""


def _kind_of_file(place: str, name: str, encoding: str | None) -> Kind | None:
    if _PARTITION.fullmatch(name) or _FOLDS.fullmatch(name) or _JSON.fullmatch(name):
        return "sports1m"
    end = _end(name)
    if end == "csv":
        return "kinetics" if _is_kinetics(place, encoding) else "csv"
    if end == "jsonl":
        return "sports1m" if "label487" in _beginning(place, encoding) else "jsonl"
    if end == "parquet":
        return "parquet"
    return "sports1m" if name.endswith((".txt", ".txt.gz")) and _YOUTUBE.match(_beginning(place, encoding)) else None


def _plain_name(place: str) -> str:
    """A list's name or place in lower case, as it is called where it is not packed."""
    return place.lower().removesuffix(".gz")


def _end(name: str) -> str:
    """The table format that a file's name says; "" for none."""
    name = _plain_name(name)
    return next((kind for end, kind in _ENDS.items() if name.endswith(end)), "")


def _beginning(place: str, encoding: str | None) -> str:
    """The first characters of a list's first lines."""
    with list_file(place, encoding) as file:
        lines = zip(text_lines(file, strict=False), range(20), strict=False)
        return "\n".join(text[:2000] for (_, text), _ in lines if isinstance(text, str))


def _is_kinetics(place: str, encoding: str | None) -> bool:
    try:
        with list_file(place, encoding) as file:
            return is_kinetics_header(csv_table(file)[0])
    except UserError:
        return False


def _sports1m(names: Sequence[str], fold: int) -> list[str]:
    """Sports-1M's own partition, its JSON, or a fold of its cross-validation: the first that is there."""
    for pattern in (_PARTITION, _JSON, _FOLDS):
        found = [
            name
            for name in names
            if (match := pattern.fullmatch(_base(name))) is not None
            and (pattern is not _FOLDS or int(match.group(1)) == fold)
        ]
        plain = {name.lower() for name in found}
        found = [
            name for name in found if name.lower().removesuffix(".gz") == name.lower() or name.lower()[:-3] not in plain
        ]
        if found:
            return found
    return []


def _of_fold(names: Sequence[str], pattern: re.Pattern[str], fold: int) -> list[str]:
    return [
        name for name in names if (match := pattern.fullmatch(_base(name))) is not None and int(match.group(2)) == fold
    ]


def _tables(root: str, names: Sequence[str], kind: str, settings: CorpusSettings) -> list[str]:
    """Lists at the folder's top: all of the format, or those that are called train, val, test and have the columns."""
    found = [name for name in names if "/" not in name and _end(name) == kind]
    if settings.kind != "auto":
        return found
    found = [name for name in found if stem_of_list(name) in SPLITS]
    return found if found and all(_has_columns(f"{root}/{name}", kind, settings.encoding) for name in found) else []


def stem_of_list(name: str) -> str:
    """A list's name in lower case without what says its format."""
    return _plain_name(name).rpartition(".")[0]


def _has_columns(place: str, kind: str, encoding: str | None) -> bool:
    """Whether a list has columns of ours. Raises WrongEncoding where that cannot be seen."""
    try:
        with list_file(place, encoding) as file:
            if kind == "csv":
                columns(csv_table(file)[0], place)
            elif kind == "jsonl":
                first = next(iter(json_lines(file)), (0, None))[1]
                columns(list(first) if isinstance(first, dict) else [], place)
            else:
                next(parquet_rows(file), None)
    except WrongEncoding:
        raise
    except UserError:
        return False
    return True


def _names_beside(folder: str, places: list[str], encoding: str | None) -> tuple[str, ...] | None:
    """Sports-1M's labels.txt: beside its lists, or one folder above."""
    home = places[0].rpartition("/")[0]
    for above in dict.fromkeys((home, home.rpartition("/")[0], folder)):
        place = f"{above}/labels.txt"
        with contextlib.suppress(FileNotFoundError), list_file(place, encoding) as file, file.opened() as text:
            return read_names(text.read(2**26), file.where)
    return None


def _sports1m_list(file: ListFile, split: str) -> Iterator[Found]:
    name = _plain_name(file.place)
    if name.endswith((".jsonl", ".ndjson")):
        return sports1m_json_rows(((line, "", entry) for line, entry in json_lines(file)), split)
    if name.endswith(".json"):
        return sports1m_json_rows(json_entries(file), split)
    return sports1m_rows(file, split)


def _ucf101_classes(places: Sequence[str], encoding: str | None) -> Collection[str]:
    found = set()
    for place in places:
        with list_file(place, encoding) as file:
            found |= {text.partition("/")[0] for _, text in text_lines(file) if isinstance(text, str)}
    return found


def _hmdb_class(place: str) -> str:
    match = _HMDB.fullmatch(place.rpartition("/")[2])
    return match.group(1) if match else stem(place)


def _base(name: str) -> str:
    return name.rpartition("/")[2].lower()
