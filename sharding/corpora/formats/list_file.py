"""Opens a list of a corpus, or a file of class names, local or in a store, in the encoding that the user names."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sharding.base.text import SAVE_OR_SAY_ENCODING, opened_text
from sharding.corpora.entries.roots import local_copy, sanitised

LONGEST_LINE = 2**20  # characters


@dataclass(frozen=True)
class ListFile:
    """A list as a local file. `place`: the path or address that the user gave; `encoding`: None for UTF-8."""

    path: Path
    place: str
    encoding: str | None = None

    @property
    def where(self) -> str:
        """The place, for messages."""
        return sanitised(self.place)

    def opened(
        self, newline: str | None = None, strict: bool = True
    ) -> contextlib.AbstractContextManager[io.TextIOBase]:
        """A context manager with its text; raises as `opened_text`."""
        return opened_text(self.path, self.where, "list", self.encoding, newline, strict, SAVE_OR_SAY_ENCODING)

    def first_line(self) -> str:
        """The first line, decoded leniently: a list is recognised by it, and read strictly afterwards."""
        with self.opened(strict=False) as text:
            line = text.readline(LONGEST_LINE)
        if "\0" in line:
            with self.opened():  # which refuses it
                pass
        return line


@contextlib.contextmanager
def list_file(place: str, encoding: str | None = None) -> Iterator[ListFile]:
    """The list at a place, copied from its store until the `with` ends. Raises as `local_copy`."""
    with local_copy(place) as path:
        yield ListFile(path, place, encoding)
