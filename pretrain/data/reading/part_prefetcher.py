"""Whole tar parts, downloaded to this host's part cache before they are needed, by a thread."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Iterable, Mapping, Sequence

from pretrain.data.reading.outage import StoreGone
from pretrain.data.reading.part_cache import DamagedPart, PartCache
from pretrain.data.reading.reading_mode import ReadingSettings, uses_whole_parts
from pretrain.data.reading.store_split import Split
from pretrain.data.views.views import ClipSettings
from sharding.base.errors import UserError

log = logging.getLogger("reelscale")


class PartPrefetcher:
    """Fetches the parts of splits to this host, in a thread: one that needs a part meanwhile reads ranges of it.

    `close` ends the thread, after the part it is at.
    """

    def __init__(self, splits: Mapping[int, Split], cache: PartCache) -> None:
        self._splits, self._cache = splits, cache
        self._queue: queue.SimpleQueue[tuple[Split, str] | None] = queue.SimpleQueue()
        self._wanted: frozenset[tuple[int, int]] = frozenset()
        self._closed = False
        threading.Thread(target=self._fetch, name="parts", daemon=True).start()

    def want(self, shards: Iterable[tuple[int, int]]) -> None:
        """Fetch the parts of all shards that are wanted now, (split, shard), in this order.

        Not of those that were in the last call, too: where one found no room, it would find none again. One that is
        wanted again later may have been dropped meanwhile.
        """
        now = dict.fromkeys(each for each in shards if each[0] in self._splits)
        for number, shard in now:
            if (number, shard) not in self._wanted:
                for path in self._splits[number].paths(shard):
                    self._queue.put((self._splits[number], path))
        self._wanted = frozenset(now)

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
