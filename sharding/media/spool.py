"""Spool: a queue of pickled items, in memory while they are few bytes, on disk when they are many."""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sharding.base.errors import UserError

_IN_MEMORY = 64 * 2**20  # bytes; beyond, all are on disk


class Spool:
    """Pickled items in order, in memory or, if they are many bytes, in a nameless file in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file = tempfile.SpooledTemporaryFile(_IN_MEMORY, dir=str(folder))  # noqa: SIM115 - see `items`

    def add(self, item: bytes) -> None:
        """Append a pickled item. Raises UserError if the disk does not take it."""
        with self._written():
            self._file.write(len(item).to_bytes(8, "little") + item)

    def rewind(self) -> None:
        """Go back to the first item, to read. Raises UserError if the disk does not take the last ones."""
        with self._written():
            self._file.seek(0)

    def items(self) -> Iterator[Any]:
        """The items, unpickled, in order; only once."""
        with self._file:
            while head := self._file.read(8):
                yield pickle.loads(self._file.read(int.from_bytes(head, "little")))

    @contextmanager
    def _written(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            what = f"a video's clips cannot be kept: {error.strerror or error}"
            raise UserError(what, str(self._folder), "free space there, or set TMPDIR to another disk") from error

    def close(self) -> None:
        """Drop the items."""
        with suppress(OSError):  # what could not be written before cannot be now
            self._file.close()
