"""Reads a CSV line by line: a quote that is never closed costs its own line alone, not the rest of the file."""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Iterator

from sharding.base.errors import UserError
from sharding.corpora.entries.rows import Refusal
from sharding.corpora.formats.list_file import ListFile


def csv_table(file: ListFile) -> tuple[list[str], Iterator[tuple[int, list[str] | Refusal]]]:
    """The header of a CSV, and an iterator of (line number, cells) of the rest. Raises UserError for an empty file."""
    first = file.first_line()
    if not first.strip():
        what = "the list begins with an empty line" if first else "the list is empty"
        raise UserError(what, file.where, "begin with a line of the columns' names, then a line a video")
    separator = max(",\t;", key=first.count)
    header = next(csv.reader([first], delimiter=separator))
    return _trimmed(header, [first], separator), _cells_by_line(file, separator)


def _cells_by_line(file: ListFile, separator: str) -> Iterator[tuple[int, list[str] | Refusal]]:
    with file.opened(newline="") as text:
        lines = _Lines(text)
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
                yield line, _trimmed(cells, lines.taken, separator)


def _trimmed(cells: list[str], lines: list[str], separator: str) -> list[str]:
    """The cells of `lines`, read anew where there are blanks before a quoted cell: `a.mp4, "x, y"`."""
    # The first test, which says less, is quick.
    if ' "' not in lines[0] or not any(cell.startswith(" ") and cell.lstrip().startswith('"') for cell in cells):
        return cells
    try:
        return next(csv.reader(lines, delimiter=separator, skipinitialspace=True, strict=True))
    except csv.Error:
        return cells


class _Lines:
    """Iterates over a file's lines; `give_back` returns all lines `taken` but the first, to be read again."""

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
