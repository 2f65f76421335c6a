"""Reads an object of a store once, from beginning to end, and computes its sha256 on the way."""

from __future__ import annotations

import hashlib

from sharding.storage.store import Store

BLOCK = 8 * 2**20  # bytes fetched at a time


class SequentialReader:
    """Reads ranges of an object in ascending order; each block is fetched and hashed once."""

    def __init__(self, store: Store, path: str) -> None:
        self.store, self.path = store, path
        self.size = store.size(path)
        self.hash = hashlib.sha256()
        self.buffer = bytearray()
        self.base = 0  # where the buffer begins

    def read(self, start: int, end: int) -> bytes:
        """Bytes [start, end), fewer at the object's end; bytes before `start` can no longer be read."""
        assert start >= self.base
        end = min(end, self.size)
        while self.base + len(self.buffer) < end:
            self._forget(start)
            at = self.base + len(self.buffer)
            block = self.store.get_range(self.path, at, min(at + BLOCK, self.size))
            self.hash.update(block)
            self.buffer += block
        self._forget(start)
        return bytes(self.buffer[: max(end - start, 0)])

    def digest(self) -> str:
        """sha256 (hex) of the whole object; reads to its end."""
        self.read(self.size, self.size)
        return self.hash.hexdigest()

    def _forget(self, start: int) -> None:
        gone = min(start - self.base, len(self.buffer))
        del self.buffer[:gone]
        self.base += gone
