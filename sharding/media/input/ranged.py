"""A seekable file over an object of a store: fetched by blocks, a bounded number of them kept."""

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
_BEAT = 0.5  # seconds between two signs of life while the store is waited for


class RangedFile:
    """Reads an object of `store` by ranges of `block` bytes; for one reader at a time.

    `ahead`: blocks fetched in the background while the reader goes on from one block to the next; memory is at most
    `keep` + `ahead` blocks. `counted` is told of the bytes of every range that was fetched; `waiting` is called now and
    then while the store is waited for, which itself gives up in time. Raises what the store raises.
    """

    def __init__(
        self,
        store: Store,
        path: str,
        block: int = MEBIBYTE,
        keep: int = 16,
        ahead: int = 0,
        counted: Callable[[int], None] | None = None,
        waiting: Callable[[], None] | None = None,
    ) -> None:
        self.store = store
        self.path = path
        self.block = block
        self.ahead = ahead
        self.counted = counted
        self.waiting = waiting
        self.position = 0
        self._kept: LRU[int, bytes] = LRU(keep)
        self._coming: dict[int, Future[bytes]] = {}
        self._pool: ThreadPoolExecutor | None = None
        self._latest = -1
        self._counting = threading.Lock()
        self._asking: ThreadPoolExecutor | None = None
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
        """Go to a byte; returns its number."""
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
        """Forget everything; what is still being fetched is waited for."""
        for pool in (self._pool, self._asking):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)
        self._pool = self._asking = None
        self._coming.clear()
        self._kept.clear()

    def _block(self, number: int) -> bytes:
        data = self._kept.get(number)
        if data is None:
            coming = self._coming.pop(number, None)
            data = self._waited(lambda: self._fetch(number)) if coming is None else self._result(coming)
            self._kept.put(number, data)
        if number == self._latest + 1 and self.ahead and number:  # block 0 alone is what every reader begins with
            self._fetch_ahead(number)
        self._latest = number
        return data

    def _waited(self, ask: Callable[[], T]) -> T:
        if self.waiting is None:
            return ask()
        if self._asking is None:
            self._asking = ThreadPoolExecutor(1, thread_name_prefix="reelscale-range")
        return self._result(self._asking.submit(ask))

    def _result(self, coming: Future[T]) -> T:
        while self.waiting is not None and not wait([coming], _BEAT).done:
            self.waiting()
        return coming.result()

    def _fetch(self, number: int) -> bytes:
        start = number * self.block
        data = self.store.get_range(self.path, start, min(start + self.block, self.size))
        if self.counted is not None:
            with self._counting:
                self.counted(len(data))
        return data

    def _fetch_ahead(self, number: int) -> None:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(1, thread_name_prefix="reelscale-ahead")
        wanted = range(number + 1, number + 1 + self.ahead)
        for other in [other for other in self._coming if other not in wanted]:
            self._coming.pop(other).cancel()  # the reader went elsewhere
        for other in wanted:
            if other * self.block < self.size and other not in self._kept and other not in self._coming:
                self._coming[other] = self._pool.submit(self._fetch, other)
