"""A seekable file over an object of a store, read by blocks: the last ones cached, the next ones prefetched."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

from sharding.base.lru import LRU
from sharding.storage.store import Store

T = TypeVar("T")

MEBIBYTE = 2**20
_WAIT_CALL_SECONDS = 0.5  # between two calls of `on_wait` while the store is waited for


class RangedFile:
    """Reads an object of `store` by ranges of `block` bytes; for one reader at a time.

    `prefetch_blocks`: how many blocks are fetched in the background while the reader goes on from one block to the
    next; memory is at most `cached_blocks` + `prefetch_blocks` blocks. `on_read` is called with the bytes of every
    range that was fetched, `on_wait` twice a second while the store is waited for. Raises what the store raises.
    """

    def __init__(
        self,
        store: Store,
        path: str,
        block: int = MEBIBYTE,
        cached_blocks: int = 16,
        prefetch_blocks: int = 0,
        on_read: Callable[[int], None] | None = None,
        on_wait: Callable[[], None] | None = None,
    ) -> None:
        self.store = store
        self.path = path
        self.block = block
        self.cached_blocks = cached_blocks
        self.prefetch_blocks = prefetch_blocks
        self.on_read = on_read
        self.on_wait = on_wait
        self.position = 0
        self._cache: LRU[int, bytes] = LRU(cached_blocks)
        self._prefetched: dict[int, Future[bytes]] = {}
        self._prefetch_pool: ThreadPoolExecutor | None = None
        self._last_block = -1
        self._count_lock = threading.Lock()
        self._wait_pool: ThreadPoolExecutor | None = None
        self.size = self._waited(lambda: store.size(path))

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes, fewer at the end of a block; b"" at the end of the object."""
        if self.position >= self.size or size == 0:
            return b""
        number, offset = divmod(self.position, self.block)
        data = self._block(number)
        taken = data[offset : offset + size] if size > 0 else data[offset:]
        self.position += len(taken)
        return taken

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position, which it returns."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.size}[whence]
        if base + offset < 0:
            raise ValueError(f"there is no byte {base + offset}")
        self.position = base + offset
        return self.position

    def tell(self) -> int:
        """Byte that is read next."""
        return self.position

    def seekable(self) -> bool:
        """True: `seek` goes anywhere."""
        return True

    def readable(self) -> bool:
        """True."""
        return True

    def close(self) -> None:
        """Drop the cache and end the threads, after what they are fetching."""
        for pool in (self._prefetch_pool, self._wait_pool):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)
        self._prefetch_pool = self._wait_pool = None
        self._prefetched.clear()
        self._cache.clear()

    def _block(self, number: int) -> bytes:
        data = self._cache.get(number)
        if data is None:
            fetch = self._prefetched.pop(number, None)
            data = self._waited(lambda: self._fetch(number)) if fetch is None else self._result(fetch)
            self._cache.put(number, data)
        # Not after block 0, which every reader reads first, wherever it goes from there.
        if number == self._last_block + 1 and self.prefetch_blocks and number:
            self._prefetch(number)
        self._last_block = number
        return data

    def _waited(self, ask: Callable[[], T]) -> T:
        if self.on_wait is None:
            return ask()
        if self._wait_pool is None:
            self._wait_pool = ThreadPoolExecutor(1, thread_name_prefix="reelscale-range")
        return self._result(self._wait_pool.submit(ask))

    def _result(self, fetch: Future[T]) -> T:
        while self.on_wait is not None and not wait([fetch], _WAIT_CALL_SECONDS).done:
            self.on_wait()
        return fetch.result()

    def _fetch(self, number: int) -> bytes:
        start = number * self.block
        data = self.store.get_range(self.path, start, min(start + self.block, self.size))
        if self.on_read is not None:
            with self._count_lock:
                self.on_read(len(data))
        return data

    def _prefetch(self, number: int) -> None:
        if self._prefetch_pool is None:
            self._prefetch_pool = ThreadPoolExecutor(1, thread_name_prefix="reelscale-prefetch")
        wanted = range(number + 1, number + 1 + self.prefetch_blocks)
        for other in [other for other in self._prefetched if other not in wanted]:
            self._prefetched.pop(other).cancel()  # the reader went elsewhere
        for other in wanted:
            if other * self.block < self.size and other not in self._cache and other not in self._prefetched:
                self._prefetched[other] = self._prefetch_pool.submit(self._fetch, other)
