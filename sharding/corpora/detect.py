"""Detects what kind of corpus a path or address is, by its lists' names and first lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from sharding.base.errors import UserError
from sharding.base.text import WrongEncoding
from sharding.corpora.entries.roots import sanitised
from sharding.corpora.entries.settings import CorpusSettings
from sharding.corpora.entries.splits import SPLITS
from sharding.corpora.formats.csv_table import csv_table
from sharding.corpora.formats.kinetics import is_kinetics_header
from sharding.corpora.formats.list_file import list_file
from sharding.corpora.formats.listed_corpus import HMDB, Kind, ListedCorpus, listed_corpus, plain_name, split_of_name
from sharding.corpora.formats.tables import columns, json_lines, parquet_rows, text_lines

_ENDS: dict[str, Kind] = {
    ".csv": "csv", ".tsv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".parquet": "parquet", ".pq": "parquet",
}  # fmt: skip
_PARTITION = re.compile(r"(train|test)_partition\.txt(\.gz)?")
_FOLDS = re.compile(r"sports(\d)_(train|test)\.txt(\.gz)?")
_JSON = re.compile(r"sports-?_?1m.*(train|test).*\.json(\.gz)?")
_UCF = re.compile(r"(train|test)list(\d+)\.txt")
_OF_FOLDS = ((_FOLDS, 1), (_UCF, 2), (HMDB, 2))  # and which group is the fold
_YOUTUBE = re.compile(r"https?://\S*youtu\S*\s+\d+(,\d+)*")
LOOKED_FOR = (
    "a folder of class folders; a .csv, .jsonl or .parquet list with the columns uri and labels; Sports-1M's "
    "train_partition.txt, its cross-validation's sportsN_train.txt or its JSON; Kinetics' CSV (label, youtube_id, "
    "time_start, time_end, split); UCF101's trainlist01.txt; HMDB51's CLASS_test_split1.txt"
)
MOST_LISTS = 1000


def is_list_name(path: str) -> bool:
    """Whether a file in a corpus' folder may be one of its lists, by its name: not too deep, not hidden."""
    name = path.rpartition("/")[2].lower()
    if path.count("/") > 1 or name.startswith(".") or path.startswith("."):
        return False
    if any(pattern.fullmatch(name) for pattern in (_PARTITION, _FOLDS, _JSON, _UCF, HMDB)):
        return True
    # Below the top, a table without a split's name is rather a note beside some video, of which there may be a million.
    return _end(name) != "" and ("/" not in path or split_of_name(name) != "")


def detect_list(place: str, settings: CorpusSettings) -> ListedCorpus:
    """The corpus that a single list file makes. Raises UserError if it is of no known kind."""
    folder, _, name = place.rpartition("/")
    kind = settings.kind
    try:
        recognised = _kind_of_file(place, name.lower(), settings.encoding) if kind == "auto" else kind
    except FileNotFoundError:
        raise UserError("there is no such list", sanitised(place), "check the path") from None
    if recognised in ("folder", "ucf101", "hmdb51", None):
        wanted = "" if kind == "auto" else f", but {kind} was asked for"
        remedy = f"give the folder that holds the videos or their lists{wanted}. Known are: {LOOKED_FOR}"
        raise UserError("the corpus is a file, not a folder, and no list that is known", sanitised(place), remedy)
    return listed_corpus(recognised, folder, [place], settings)


def detect_folder(root: str, names: Sequence[str], settings: CorpusSettings) -> ListedCorpus | None:
    """The corpus that the lists in a folder make, by the `names` in it that may be lists; None if it holds none.

    Raises UserError if `settings.kind` was asked for and its lists are not there, or those of another fold alone.
    """
    kind, fold, encoding = settings.kind, settings.fold, settings.encoding
    lists: dict[str, Callable[[], list[str]]] = {
        "sports1m": lambda: _sports1m(names, fold),
        "ucf101": lambda: _of_fold(names, _UCF, fold),
        "hmdb51": lambda: _of_fold(names, HMDB, fold),
        "kinetics": lambda: [
            name for name in names if _end(name) == "csv" and _is_kinetics(f"{root}/{name}", encoding)
        ],
        "csv": lambda: _tables(root, names, "csv", settings),
        "jsonl": lambda: _tables(root, names, "jsonl", settings),
        "parquet": lambda: _tables(root, names, "parquet", settings),
    }
    for candidate, names_of_lists in lists.items():
        if kind not in ("auto", candidate):
            continue
        chosen = sorted(names_of_lists())
        if chosen:
            return listed_corpus(candidate, root, [f"{root}/{name}" for name in chosen], settings)  # type: ignore[arg-type]
        if kind == candidate:
            what = f"there is no list of {kind} in this folder (fold {fold})"
            raise UserError(
                what, sanitised(root), f"give the folder that holds it, or another fold. Known are: {LOOKED_FOR}"
            )
    if kind == "auto" and (folds := _folds(names)):
        there = ", ".join(map(str, folds))
        what = f"the lists in this folder are of fold {there}, none of fold {fold}"
        raise UserError(what, sanitised(root), f"set fold={folds[0]}, or kind=folder to read class folders")
    return None


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


def _end(name: str) -> str:
    """The table format that a file's ending names: "csv", "jsonl", "parquet"; "" for none."""
    name = plain_name(name)
    return next((kind for end, kind in _ENDS.items() if name.endswith(end)), "")


def _beginning(place: str, encoding: str | None) -> str:
    """The first 2,000 characters of each of a list's first 20 lines."""
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
    """The lists of Sports-1M's own partition, of its JSON, or of a cross-validation fold: the first that is there."""
    for pattern in (_PARTITION, _JSON, _FOLDS):
        matching = [
            name
            for name in names
            if (match := pattern.fullmatch(_base(name))) is not None
            and (pattern is not _FOLDS or int(match.group(1)) == fold)
        ]
        lower = {name.lower() for name in matching}
        unique = [name for name in matching if not name.lower().endswith(".gz") or name.lower()[:-3] not in lower]
        if unique:
            return unique
    return []


def _folds(names: Sequence[str]) -> list[int]:
    """The folds of which there are lists of any corpus."""
    matches = ((pattern.fullmatch(_base(name)), at) for name in names for pattern, at in _OF_FOLDS)
    return sorted({int(match.group(at)) for match, at in matches if match is not None})


def _of_fold(names: Sequence[str], pattern: re.Pattern[str], fold: int) -> list[str]:
    return [
        name for name in names if (match := pattern.fullmatch(_base(name))) is not None and int(match.group(2)) == fold
    ]


def _tables(root: str, names: Sequence[str], kind: str, settings: CorpusSettings) -> list[str]:
    """The tables at the folder's top: all of the format if it was asked for, else those named train, val, test."""
    tables = [name for name in names if "/" not in name and _end(name) == kind]
    if settings.kind != "auto":
        return tables
    splits = [name for name in tables if list_stem(name) in SPLITS]
    return splits if splits and all(_has_columns(f"{root}/{name}", kind, settings.encoding) for name in splits) else []


def list_stem(name: str) -> str:
    """A list's name in lower case, without its ending."""
    return plain_name(name).rpartition(".")[0]


def _has_columns(place: str, kind: str, encoding: str | None) -> bool:
    """Whether a list has the columns uri and labels. Raises WrongEncoding where that cannot be seen."""
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


def _base(name: str) -> str:
    return name.rpartition("/")[2].lower()
