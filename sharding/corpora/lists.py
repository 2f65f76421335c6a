"""Tables of videos (CSV, JSON lines, Parquet) → rows: a column each for uri, labels, split, start and end."""

from __future__ import annotations

import csv
import functools
import gzip
import io
import itertools
import json
import math
import re
import zlib
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sharding.corpora.labels import Labels
from sharding.corpora.roots import tellable
from sharding.corpora.rows import Refusal, Row
from sharding.corpora.splits import SPLITS
from sharding.errors import UserError

COLUMNS = {
    "uri": ("uri", "path", "video", "file", "filename", "url"),
    "labels": ("labels", "label", "classes", "class"),
    "split": ("split",),
    "start": ("start", "time_start"),
    "end": ("end", "time_end"),
}
LONGEST_LINE = 2**20  # characters
Found = Row | Refusal


class Malformed(ValueError):
    """A value that cannot be read, in words."""


def csv_rows(path: Path, where: str, split: str = "", names: Collection[str] = ()) -> Iterator[Found]:
    """Rows of a CSV with a header line; separated by commas, tabs or semicolons.

    `split`: of rows where the list has no such column. `names`: the classes that are known, which a cell is never
    cut apart into several labels. Raises UserError for a list without a header.
    """
    header, lines = csv_table(path, where)
    column = columns(header, where)
    cell_labels = functools.lru_cache(65536)(functools.partial(labels_of_cell, names=frozenset(names)))
    for line, cells in lines:
        if isinstance(cells, Refusal):
            yield cells
        else:
            value = {name: cells[at] if at < len(cells) else "" for name, at in column.items()}
            yield table_row(value, cell_labels, split, line)


def json_rows(entries: Iterable[tuple[int, Any]], split: str = "") -> Iterator[Found]:
    """Rows of JSON objects, each with its line or number."""
    for line, entry in entries:
        if isinstance(entry, Refusal):
            yield entry
        elif not isinstance(entry, dict):
            yield Refusal(shown(entry), "malformed", "it is not a JSON object with uri and labels", line)
        else:
            yield table_row(_by_name(entry), labels_of_value, split, line)


def parquet_rows(path: Path, where: str, split: str = "") -> Iterator[Found]:
    """Rows of a Parquet file, a row group's columns at a time."""
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            header = file.schema_arrow.names
            column = columns(header, where)
            batches = file.iter_batches(
                batch_size=8192, columns=[header[at] for at in column.values()], use_threads=False
            )
            line = 0
            for batch in batches:
                read = {name: batch.column(header[at]).to_pylist() for name, at in column.items()}
                for values in zip(*read.values(), strict=True):
                    line += 1
                    yield table_row(dict(zip(read, values, strict=True)), labels_of_value, split, line)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, KeyError) as error:  # also a column twice
        what = f"the Parquet list cannot be read: {str(error).splitlines()[0]}"
        raise UserError(what, tellable(where), "write it anew; it seems to be cut off or no Parquet file") from error


def json_lines(path: Path, where: str) -> Iterator[tuple[int, Any]]:
    """(line, object) of a file with a JSON object a line; a line that is none is a Refusal."""
    for line, text in text_lines(path, where):
        if isinstance(text, Refusal):
            yield line, text
            continue
        try:
            yield line, json.loads(text)
        except (ValueError, RecursionError):
            yield line, Refusal(text, "malformed", "it is not a line of JSON", line)


def columns(header: Sequence[str], where: str) -> dict[str, int]:
    """Column number by our word for it. Raises UserError if there is none for the uri, or none for the labels."""
    names = {str(name).strip().lower(): at for at, name in reversed(list(enumerate(header)))}
    found = {
        word: next(names[name] for name in allowed if name in names)
        for word, allowed in COLUMNS.items()
        if any(name in names for name in allowed)
    }
    for word in ("uri", "labels"):
        if word not in found:
            columns_here = ", ".join(tellable(str(name)) for name in header[:8])
            wanted = f"{word} ({' or '.join(COLUMNS[word])})"
            what = f"the list has no column for {wanted}; its first line holds: {columns_here}"
            raise UserError(what, tellable(where), "write the columns' names as the first line, e.g. uri,label,split")
    return found


def table_row(value: dict[str, Any], labels: Callable[[Any], Labels], split: str, line: int) -> Found:
    """A row from what a table says under our words."""
    name = value.get("uri")
    try:
        name = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
        if not isinstance(name, str) or not name.strip():
            raise Malformed("it has no uri")
        found = labels(value.get("labels"))
        start, end = seconds(value.get("start")), seconds(value.get("end"))
        return Row(name, found, split_word(value.get("split"), split), start, end, line)
    except Malformed as error:
        return Refusal(shown(name), "malformed", str(error), line)


def labels_of_cell(text: Any, names: frozenset[str]) -> Labels:
    """The labels in a cell: one, a JSON list, or several separated by ; , or |."""
    text = (text or "").strip()
    if text in names:
        return (text,)
    if text.startswith("["):
        try:
            return labels_of_value(json.loads(text))
        except (json.JSONDecodeError, RecursionError):
            raise Malformed(f"its labels are not a JSON list: {shown(text)}") from None
    return tuple(part for cut in re.split(r"[;,|]", text) if (part := cut.strip()))


def labels_of_value(value: Any) -> Labels:
    """The labels that a JSON or Parquet value holds: a name, an index, or a list of these."""
    if value is None:
        return ()
    if isinstance(value, bytes):
        value = value.decode("utf-8", "surrogateescape")
    if isinstance(value, str):
        return (value.strip(),) if value.strip() else ()
    if isinstance(value, float) and math.isnan(value):
        return ()
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return (int(value),)
    if isinstance(value, int) and not isinstance(value, bool):
        return (value,)
    if isinstance(value, list | tuple) and not any(isinstance(one, list | tuple) for one in value):
        return tuple(dict.fromkeys(label for one in value for label in labels_of_value(one)))
    raise Malformed(f"its labels are neither names nor indices: {shown(value)}")


def split_word(value: Any, otherwise: str = "") -> str:
    """ "train", "val", "test"; `otherwise` where none is given."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return otherwise
    word = str(value).strip().lower()
    if not word:
        return otherwise
    if word not in SPLITS:
        raise Malformed(f"its split is {shown(value)}, which is none of train, val and test")
    return SPLITS[word]


def seconds(value: Any) -> float | None:
    """A time; None where none is given."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    try:
        if isinstance(value, str) and not value.strip():
            return None
        if isinstance(value, bool):
            raise ValueError
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise Malformed(f"{shown(value)} is no time in seconds") from None


def shown(value: Any) -> str:
    """A value as a message may show it: short, and without secrets."""
    return tellable(value if isinstance(value, str) else repr(value)[:300])


@contextmanager
def opened(path: Path, where: str, newline: str | None = None) -> Iterator[io.TextIOBase]:
    """A list's text, unpacked where it is gzip; bytes that are not UTF-8 come through as they are.

    Raises UserError for UTF-16, which a spreadsheet may write, and, while it is read, for a damaged file.
    """
    try:
        with path.open("rb") as raw:
            head = raw.read(2)
            raw.seek(0)
            if head in (b"\xff\xfe", b"\xfe\xff"):
                raise UserError("the list is in UTF-16", tellable(where), "save it as UTF-8")
            data = gzip.GzipFile(fileobj=raw) if head == b"\x1f\x8b" else raw
            with io.TextIOWrapper(data, "utf-8-sig", "surrogateescape", newline) as text:  # type: ignore[arg-type]
                yield text
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        what = f"the gzip file is damaged: {error}"
        raise UserError(what, tellable(where), "get it again; it may have been cut off on its way") from error
    except OSError as error:
        what = f"the list cannot be read: {error.strerror or error}"
        raise UserError(what, tellable(where), "give a readable file") from error


def text_lines(path: Path, where: str) -> Iterator[tuple[int, str | Refusal]]:
    """(number, text) of each line that is not empty; a Refusal for one that no list has."""
    with opened(path, where) as file:
        read = functools.partial(file.readline, LONGEST_LINE)
        for number in itertools.count(1):
            text = read()
            if not text:
                return
            if len(text) == LONGEST_LINE and not text.endswith("\n"):
                yield number, Refusal(text[:300], "malformed", "the line is far too long", number)
                while len(text) == LONGEST_LINE and not text.endswith("\n"):
                    text = read()
                continue
            text = text.strip()
            if text:
                yield number, text


def csv_table(path: Path, where: str) -> tuple[list[str], Iterator[tuple[int, list[str] | Refusal]]]:
    """A CSV's header, and (line, cells) of what follows. Raises UserError for an empty file."""
    with opened(path, where) as file:
        first = file.readline(LONGEST_LINE)
    if not first.strip():
        raise UserError("the list is empty", tellable(where), "write a header line, then a line a video")
    separator = max(",\t;", key=first.count)
    return next(csv.reader([first], delimiter=separator)), _csv_lines(path, where, separator)


def _csv_lines(path: Path, where: str, separator: str) -> Iterator[tuple[int, list[str] | Refusal]]:
    with opened(path, where, newline="") as file:
        lines = _Lines(file)
        reader = csv.reader(lines, delimiter=separator)
        next(reader)
        line = 1
        while True:
            line += len(lines.taken)
            lines.taken.clear()
            try:
                cells = next(reader, None)
                if len(lines.taken) > 1:  # a quote that is never closed takes in all that follows, which is lenient
                    next(csv.reader(lines.taken, delimiter=separator, strict=True))
            except csv.Error as error:
                lines.give_back()
                yield line, Refusal(lines.taken[0][:300], "malformed", f"it is no line of CSV: {error}", line)
                continue
            if cells is None:
                return
            if any(cells):
                yield line, cells


class _Lines:
    """A file's lines, of which all but the first that were `taken` can be given back."""

    def __init__(self, file: io.TextIOBase) -> None:
        self.taken: list[str] = []
        self._file = file
        self._waiting: deque[str] = deque()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        text = self._waiting.popleft() if self._waiting else self._file.readline()
        if not text:
            raise StopIteration
        self.taken.append(text)
        return text

    def give_back(self) -> None:
        self._waiting.extendleft(reversed(self.taken[1:]))
        del self.taken[1:]


def _by_name(entry: dict[str, Any]) -> dict[str, Any]:
    """An object's values under our words for them."""
    names = {key.strip().lower(): value for key, value in entry.items()}
    return {
        word: next(names[name] for name in allowed if name in names)
        for word, allowed in COLUMNS.items()
        if any(name in names for name in allowed)
    }
