"""Prefetches byte ranges of a remote store by threads, so that many reads are under way at once."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol, runtime_checkable

from pretrain.data.reading.store_split import RangeReader

CONCURRENT_READS = 16  # reads at once: a store answers each late, and many as fast as one


class ByteRange(NamedTuple):
    """Bytes [start, end) of an object."""

    path: str
    start: int
    end: int


@runtime_checkable
class Prefetcher(Protocol):
    """A reader that begins to read byte ranges before they are asked for."""

    def expect(self, byte_ranges: Iterable[ByteRange]) -> None:
        """Begin to read these, which are asked for next in this order; what was expected before is dropped."""


class PrefetchingReader:
    """Reads ranges of a store, same bytes and errors, with up to CONCURRENT_READS of the expected ones begun early.

    Called from one thread.
    """

    def __init__(self, store: RangeReader) -> None:
        self._store = store
        self._threads = ThreadPoolExecutor(CONCURRENT_READS, "ranges")
        self._waiting: deque[ByteRange] = deque()
        self._begun: dict[ByteRange, Future[bytes]] = {}

    def expect(self, byte_ranges: Iterable[ByteRange]) -> None:
        """Begin to read these, which are asked for next in this order; what was expected before is dropped."""
        wanted = dict.fromkeys(byte_ranges)
        for extent in [extent for extent in self._begun if extent not in wanted]:
            self._begun.pop(extent).cancel()
        self._waiting = deque(extent for extent in wanted if extent not in self._begun)
        self._begin()

    def get_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of an object; raises as `sharding.storage.store.Store.get_range`."""
        begun = self._begun.pop(ByteRange(path, start, end), None)
        self._begin()
        return begun.result() if begun else self._store.get_range(path, start, end)

    def _begin(self) -> None:
        while self._waiting and len(self._begun) < CONCURRENT_READS:
            extent = self._waiting.popleft()
            self._begun[extent] = self._threads.submit(self._store.get_range, *extent)
