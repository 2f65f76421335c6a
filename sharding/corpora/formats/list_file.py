"""A list of a corpus, or a file of class names, as a text of this machine in the encoding that the user names."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sharding.base.text import SAY, opened_text
from sharding.corpora.entries.roots import local_copy, sanitised

LONGEST_LINE = 2**20  # characters


@dataclass(frozen=True)
class ListFile:
    """A list at `path`, of which the user knows as `place`: a path, or an address in a store.

    `encoding`: of its text; None for UTF-8.
    """

    path: Path
    place: str
    encoding: str | None = None

    @property
    def where(self) -> str:
        """The place as it can be shown."""
        return sanitised(self.place)

    def opened(
        self, newline: str | None = None, strict: bool = True
    ) -> contextlib.AbstractContextManager[io.TextIOBase]:
        """Its text, as `opened_text` gives it."""
        return opened_text(self.path, self.where, "list", self.encoding, newline, strict, SAY)

    def first_line(self) -> str:
        """The first line, whatever bytes follow: by it a list is recognised, and read strictly afterwards."""
        with self.opened(strict=False) as text:
            line = text.readline(LONGEST_LINE)
        if "\0" in line:
            with self.opened():  # which refuses it
                pass
        return line


@contextlib.contextmanager
def list_file(place: str, encoding: str | None = None) -> Iterator[ListFile]:
    """The list at a place, fetched for as long as it is read. Raises as `local_copy`."""
    with local_copy(place) as path:
        yield ListFile(path, place, encoding)
