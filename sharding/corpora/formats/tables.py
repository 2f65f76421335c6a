"""Reads tables of videos (CSV, JSON, Parquet) into rows: columns for uri, labels, split, start and end."""

from __future__ import annotations

import functools
import itertools
import json
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from sharding.base.errors import UserError
from sharding.corpora.entries.labels import Labels, class_name
from sharding.corpora.entries.roots import sanitised
from sharding.corpora.entries.rows import Refusal, Row
from sharding.corpora.entries.splits import SPLITS
from sharding.corpora.formats.csv_table import csv_table
from sharding.corpora.formats.list_file import LONGEST_LINE, ListFile

COLUMNS = {
    "uri": ("uri", "path", "video", "file", "filename", "url"),
    "labels": ("labels", "label", "classes", "class"),
    "split": ("split",),
    "start": ("start", "time_start"),
    "end": ("end", "time_end"),
}
RowOrRefusal = Row | Refusal


class Malformed(ValueError):
    """Raised for a value of a list that cannot be read; its text says why."""


class LabelCells:
    """Reads the cells of a table's label column: a text is one label, or several with `separator` between them.

    `names`: the classes where they are listed, which are never cut apart.
    """

    def __init__(self, separator: str | None = None, names: Collection[str] = ()) -> None:
        self._separator = separator
        self._names = frozenset(names)

    def of_text(self, text: str) -> Labels:
        """The labels in a text."""
        text = text.strip()
        if self._separator is None or class_name(text) in self._names:
            return (text,) if text else ()
        return tuple(dict.fromkeys(part for cut in text.split(self._separator) if (part := cut.strip())))

    def of_cell(self, text: str) -> Labels:
        """The labels in a CSV's cell, which may also be a JSON list. Raises Malformed for a list that is none."""
        text = text.strip()
        if text.startswith("[") and text.endswith("]") and class_name(text) not in self._names:
            try:
                return labels_of_value(json.loads(text))
            except (json.JSONDecodeError, RecursionError):
                if text[1:].lstrip().startswith(("'", '"')):  # else it may be [Something] colliding with [something]
                    raise Malformed(f"its labels are not a JSON list: {shown(text)}") from None
        return self.of_text(text)

    def of_value(self, value: Any) -> Labels:
        """The labels of a JSON or Parquet value; the texts in a list are a label each. Raises as `labels_of_value`."""
        return self.of_text(value) if isinstance(value, str) else labels_of_value(value)


def csv_rows(file: ListFile, split: str = "", labels: LabelCells | None = None) -> Iterator[RowOrRefusal]:
    """Rows of a CSV with a header line; separated by commas, tabs or semicolons.

    `split`: that of rows which give none. Raises UserError for a list without the columns uri and labels.
    """
    header, lines = csv_table(file)
    column = columns(header, file.where)
    cell_labels = functools.lru_cache(65536)((labels or LabelCells()).of_cell)
    for line, cells in lines:
        if isinstance(cells, Refusal):
            yield cells
        else:
            value = {name: cells[at] if at < len(cells) else "" for name, at in column.items()}
            yield table_row(value, cell_labels, split, line)


def json_rows(
    entries: Iterable[tuple[int, str, Any]], split: str = "", labels: LabelCells | None = None
) -> Iterator[RowOrRefusal]:
    """Rows of JSON objects, each with its line or number and the key of its list, which may be a split."""
    value_labels = (labels or LabelCells()).of_value
    for line, key, entry in entries:
        if isinstance(entry, Refusal):
            yield entry
        elif not isinstance(entry, dict):
            yield Refusal(shown(entry), "malformed", "it is not a JSON object with uri and labels", line)
        else:
            yield table_row(_by_name(entry), value_labels, SPLITS.get(key.lower(), split), line)


def parquet_rows(file: ListFile, split: str = "", labels: LabelCells | None = None) -> Iterator[RowOrRefusal]:
    """Rows of a Parquet file, a row group's columns at a time."""
    import pyarrow
    from pyarrow import parquet

    value_labels = (labels or LabelCells()).of_value
    try:
        with parquet.ParquetFile(file.path) as table:
            header = table.schema_arrow.names
            column = columns(header, file.where)
            batches = table.iter_batches(
                batch_size=8192, columns=[header[at] for at in column.values()], use_threads=False
            )
            line = 0
            for batch in batches:
                read = {name: batch.column(header[at]).to_pylist() for name, at in column.items()}
                for values in zip(*read.values(), strict=True):
                    line += 1
                    yield table_row(dict(zip(read, values, strict=True)), value_labels, split, line)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError, KeyError) as error:  # also a column twice
        what = f"the Parquet list cannot be read: {str(error).splitlines()[0]}"
        raise UserError(what, file.where, "write it anew; it seems to be cut off or no Parquet file") from error


def json_lines(file: ListFile) -> Iterator[tuple[int, Any]]:
    """(line number, object) of a file with one JSON object a line; a Refusal for a line that is not JSON."""
    for line, text in text_lines(file):
        if isinstance(text, Refusal):
            yield line, text
            continue
        try:
            yield line, json.loads(text)
        except (ValueError, RecursionError):
            yield line, Refusal(text, "malformed", "it is not a line of JSON", line)


def columns(header: Sequence[str], where: str) -> dict[str, int]:
    """The number of each column by the keys of COLUMNS. Raises UserError without a column for the uri or the labels."""
    names = {str(name).strip().lower(): at for at, name in reversed(list(enumerate(header)))}
    numbers = {
        word: next(names[name] for name in allowed if name in names)
        for word, allowed in COLUMNS.items()
        if any(name in names for name in allowed)
    }
    for word in ("uri", "labels"):
        if word not in numbers:
            columns_here = ", ".join(sanitised(str(name)) for name in header[:8])
            wanted = f"{word} ({' or '.join(COLUMNS[word])})"
            what = f"the list has no column for {wanted}; its first line holds: {columns_here}"
            raise UserError(what, where, "write the columns' names as the first line, e.g. uri,label,split")
    return numbers


def table_row(value: dict[str, Any], labels: Callable[[Any], Labels], split: str, line: int) -> RowOrRefusal:
    """The Row of one line's values by the keys of COLUMNS; a Refusal if one of them cannot be read."""
    name = value.get("uri")
    try:
        name = name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else name
        if not isinstance(name, str) or not name.strip():
            raise Malformed("it has no uri")
        row_labels = labels(value.get("labels"))
        start, end = seconds(value.get("start")), seconds(value.get("end"))
        return Row(name, row_labels, split_word(value.get("split"), split), start, end, line)
    except Malformed as error:
        return Refusal(shown(name), "malformed", str(error), line)


def labels_of_value(value: Any) -> Labels:
    """The labels in a JSON or Parquet value: a name, an index, or a list of these. Raises Malformed for others."""
    if value is None:
        return ()
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            raise Malformed(f"its labels are bytes that are not UTF-8: {value[:99]!r}") from None
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
    """The split that a corpus' word means: "train", "val", "test"; `otherwise` for no word. Raises Malformed."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return otherwise
    word = str(value).strip().lower()
    if not word:
        return otherwise
    if word not in SPLITS:
        raise Malformed(f"its split is {shown(value)}, which is none of train, val and test")
    return SPLITS[word]


def seconds(value: Any) -> float | None:
    """A time in seconds; None for an empty value. Raises Malformed for one that is no number."""
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
    """A value as text for a message: short, and without secrets."""
    return sanitised(value if isinstance(value, str) else repr(value)[:300])


def text_lines(file: ListFile, strict: bool = True) -> Iterator[tuple[int, str | Refusal]]:
    """(line number, text) of each line that is not empty; a Refusal for a line that is far too long."""
    with file.opened(strict=strict) as opened:
        read = functools.partial(opened.readline, LONGEST_LINE)
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


def _by_name(entry: dict[str, Any]) -> dict[str, Any]:
    """The values of a JSON object by the keys of COLUMNS."""
    names = {key.strip().lower(): value for key, value in entry.items()}
    return {
        word: next(names[name] for name in allowed if name in names)
        for word, allowed in COLUMNS.items()
        if any(name in names for name in allowed)
    }
