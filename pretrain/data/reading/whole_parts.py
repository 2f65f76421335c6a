"""How the bytes of clips are read: by ranges of a store's tars, or of whole parts that are fetched ahead to this host.

Which is cheaper follows from what a clip needs of a sample. Neither way decides what is shown.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from pretrain.data.reading.outage import StoreGone
from pretrain.data.reading.part_cache import DamagedPart, PartCache, PartCacheSettings
from pretrain.data.reading.prefetch import ByteRange, PrefetchingReader
from pretrain.data.reading.store_split import RangeReader, Split, TarPart
from pretrain.data.views.frames import needed_frames
from pretrain.data.views.views import ClipSettings
from sharding.base.errors import UserError
from sharding.base.lru import LRU

log = logging.getLogger("reelscale")

_REQUEST = 2**16  # bytes that could have been read in the time of a request
_GROUP = 16  # frames that a range has more than its clip, as long as groups are the ones that `shard` makes
_OPEN = 64  # parts that are kept open
_WANTED = 1024  # shards that are not asked for again


class ReadingSettings(PartCacheSettings):
    """How bytes are read from a store: packets of single clips, or whole tar parts through a cache."""

    mode: Annotated[
        Literal["auto", "ranges", "parts"],
        Field(
            description="ranges: only the packets of each clip; parts: whole tar parts, read ahead into the cache; "
            "auto: parts where there is a cache and it holds all of them or a clip needs most of a sample"
        ),
    ] = "auto"


def uses_whole_parts(settings: ReadingSettings, split: Split, clip: ClipSettings) -> bool:
    """Whether whole parts are fetched. Raises UserError where they are asked for and have no place."""
    if settings.mode == "ranges":
        return False
    if settings.folder is None:
        if settings.mode == "auto":
            return False
        raise UserError(
            "whole parts are to be read, and nothing says where they are kept",
            "data.reading",
            "set data.reading.folder to a folder on a local disk, or data.reading.mode=ranges",
        )
    total, samples = sum(split.shard_bytes), len(split)
    if settings.mode == "parts" or total <= settings.bytes:
        return True
    frames = split.index.splits[split.name].frames / samples
    share = min(1.0, (needed_frames(clip.frames, clip.stride) + _GROUP) / frames)
    return total / samples * share + _REQUEST >= total / samples


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
        if isinstance(self._store, PrefetchingReader):
            self._store.expect(extent for extent in byte_ranges if self._handle(extent.path) is None)

    def _handle(self, path: str) -> int | None:
        handle = self._handles.get(path)
        if handle is None:
            part = self._parts[path]
            handle = self._cache.open(part.sha256, part.bytes)
            if handle is not None:
                self._handles.put(path, handle)
        return handle


class PartPrefetcher:
    """Fetches the parts of splits to this host, in a thread: one that needs a part meanwhile reads ranges of it.

    `close` ends the thread, after the part it is at.
    """

    def __init__(self, splits: Mapping[int, Split], cache: PartCache) -> None:
        self._splits, self._cache = splits, cache
        self._queue: queue.SimpleQueue[tuple[Split, str] | None] = queue.SimpleQueue()
        self._wanted: LRU[tuple[int, int], bool] = LRU(_WANTED)
        self._closed = False
        threading.Thread(target=self._fetch, name="parts", daemon=True).start()

    def want(self, shards: Iterable[tuple[int, int]]) -> None:
        """Fetch the parts of these shards, (split, shard), in this order, unless they were wanted lately."""
        for number, shard in shards:
            if number not in self._splits:
                continue
            if self._wanted.get((number, shard)):
                continue
            self._wanted.put((number, shard), True)
            for path in self._splits[number].paths(shard):
                self._queue.put((self._splits[number], path))

    def close(self) -> None:
        """Fetch nothing more."""
        self._closed = True
        self._queue.put(None)

    def _fetch(self) -> None:
        while (wanted := self._queue.get()) is not None and not self._closed:
            split, path = wanted
            part = split.parts[path]
            try:
                self._cache.fetch(split.store, path, part.sha256, part.bytes)
            except DamagedPart as error:
                log.warning("damaged: %s; its samples are read one by one", error)
            except (UserError, FileNotFoundError, StoreGone) as error:
                log.warning("a part is not fetched: %s", error)  # who needs its samples is told by the store, too


def part_prefetcher(settings: ReadingSettings, splits: Sequence[Split], clip: ClipSettings) -> PartPrefetcher | None:
    """What fetches parts ahead, if any split is read so.

    Raises as `uses_whole_parts`, and UserError for a bad folder.
    """
    fetched = {number: split for number, split in enumerate(splits) if uses_whole_parts(settings, split, clip)}
    if not fetched:
        return None
    assert settings.folder is not None
    return PartPrefetcher(fetched, PartCache(settings.folder, settings.bytes))
