"""Ranges of a store's tar parts, read from the copies in this host's part cache where there are some."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from pretrain.data.reading.part_cache import PartCache
from pretrain.data.reading.prefetch import ByteRange, Prefetcher
from pretrain.data.reading.store_split import RangeReader, TarPart
from sharding.base.lru import LRU

_OPEN = 64  # parts that are kept open


class CachedPartReader:
    """Ranges of a store's parts: from the copy on this host where there is one, else from the store."""

    def __init__(self, store: RangeReader, parts: Mapping[str, TarPart], cache: PartCache) -> None:
        self._store, self._cache, self._parts = store, cache, parts
        self._handles: LRU[str, int] = LRU(_OPEN, os.close)

    def get_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of a part; raises as `Store.get_range`."""
        handle = self._handle(path)
        if handle is not None and len(data := os.pread(handle, end - start, start)) == end - start:
            return data
        return self._store.get_range(path, start, end)

    def discard(self, path: str) -> bool:
        """Forget a copy, whose bytes turned out to be damaged; whether there was one."""
        handle = self._handles.pop(path)
        if handle is None:
            return False
        os.close(handle)
        self._cache.discard(self._parts[path].sha256)
        return True

    def expect(self, byte_ranges: Iterable[ByteRange]) -> None:
        """See `PrefetchingReader`; a copy is not far away."""
        if isinstance(self._store, Prefetcher):
            self._store.expect(extent for extent in byte_ranges if self._handle(extent.path) is None)

    def _handle(self, path: str) -> int | None:
        handle = self._handles.get(path)
        if handle is None:
            part = self._parts[path]
            handle = self._cache.open(part.sha256, part.bytes)
            if handle is not None:
                self._close_deleted()
                self._handles.put(path, handle)
        return handle

    def _close_deleted(self) -> None:
        """Close the copies that the cache has dropped since, whose place on the disk is free only then."""
        for path, handle in self._handles.items():
            if os.fstat(handle).st_nlink == 0:
                self._handles.pop(path)
                os.close(handle)
