"""Waits for a store that is unreachable for a while: reads are tried again until it is back, or patience ends."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from sharding.base.errors import CommandFailed, DamagedStore, UserError
from sharding.storage.counters import Counters
from sharding.storage.store import Store

T = TypeVar("T")

STORE_RETRY_SECONDS = 10.0  # seconds for which a remote store itself tries, before anybody is told
_PAUSES = 0.5, 5.0  # seconds between two looks: the first, and the longest
_TOLD_EVERY, _LOGGED_EVERY = 5.0, 60.0  # seconds: by a worker to the trainer, and by that in the log

log = logging.getLogger("reelscale")


class NoMoreClips(CommandFailed):
    """Clips do not come any more, or not soon enough: the run is to stop as it is, and may go on another time."""


class StoreGone(NoMoreClips):
    """A store was waited for in vain."""


@dataclass(frozen=True)
class StoreWait:
    """A report that a store is waited for: `why`, for how many of the allowed seconds; `over`: it is back."""

    url: str
    why: str
    seconds: float
    allowed: float
    over: bool = False


class PatientStore:
    """A store's reads that wait while it is unreachable, told by an object that exists as long as the store does.

    An object that is missing is missing if that one is there; otherwise the store is gone: its directory was unmounted
    or moved, its server does not answer. So is one that cannot be used. Then reads wait, and raise StoreGone once
    `patience` seconds have passed. What they give is whole and the same bytes, as before. Picklable; safe for threads.
    """

    def __init__(self, store: Store, mark: str, patience: float) -> None:
        """`mark`: the path of that object."""
        self._store, self._mark, self._patience = store, mark, patience
        self.tell: Callable[[StoreWait], object] = _nobody
        self._lock, self._last_word = threading.Lock(), 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {"_store": self._store, "_mark": self._mark, "_patience": self._patience}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, tell=_nobody, _lock=threading.Lock(), _last_word=0.0)

    @property
    def url(self) -> str:
        """The store's."""
        return str(self._store.url)

    @property
    def remote(self) -> bool:
        """See `sharding.storage.store.Store`."""
        return bool(self._store.remote)

    @property
    def counters(self) -> Counters:
        """See `sharding.storage.store.Store`."""
        found: Counters = self._store.counters
        return found

    def get(self, path: str) -> bytes:
        """See `sharding.storage.store.Store`."""
        return self._patiently(lambda: self._store.get(path))

    def get_range(self, path: str, start: int, end: int) -> bytes:
        """See `sharding.storage.store.Store`."""
        return self._patiently(lambda: self._store.get_range(path, start, end))

    def get_tail(self, path: str, size: int) -> tuple[bytes, int]:
        """See `sharding.storage.store.Store`."""
        return self._patiently(lambda: self._store.get_tail(path, size))

    def size(self, path: str) -> int:
        """See `sharding.storage.store.Store`."""
        return self._patiently(lambda: self._store.size(path))

    def _patiently(self, read: Callable[[], T]) -> T:
        try:
            return read()
        except DamagedStore:
            raise
        except (FileNotFoundError, UserError) as error:
            why = _why(error)
        begin, pause, waited = time.monotonic(), _PAUSES[0], False
        while True:
            outcome = self._trouble(read)
            if isinstance(outcome, _Answer):
                if waited:
                    self._say(why, time.monotonic() - begin, over=True)
                return outcome.value
            why, waited, seconds = outcome, True, time.monotonic() - begin
            self._say(why, seconds)
            if seconds > self._patience:
                raise StoreGone(
                    f"the store {self.url} was gone for {seconds:.0f} s, and is waited for no longer "
                    f"(data.patience_seconds={self._patience:g}): {why}"
                )
            time.sleep(min(pause, max(self._patience - seconds, 0.05)))
            pause = min(2 * pause, _PAUSES[1])

    def _trouble(self, read: Callable[[], T]) -> _Answer[T] | str:
        """What `read` gives or raises now, as far as the store is there to say so; else why it is gone."""
        try:
            if not self._store.exists(self._mark):
                return f"it has no {self._mark}, with which the run began"
            return _Answer(read())
        except (DamagedStore, FileNotFoundError):
            raise
        except UserError as error:
            return _why(error)

    def _say(self, why: str, seconds: float, over: bool = False) -> None:
        with self._lock:
            now = time.monotonic()
            if not over and now - self._last_word < _TOLD_EVERY:
                return
            self._last_word = 0.0 if over else now
        self.tell(StoreWait(self.url, why, seconds, self._patience, over))


class OutageLog:
    """Logs the stores that workers report to be waited for: the first report, one a minute, and the end."""

    def __init__(self) -> None:
        self._since: dict[str, tuple[float, float]] = {}  # by url: when it was last heard of, and last logged

    @property
    def ongoing(self) -> bool:
        """Whether a store is waited for just now."""
        return any(time.monotonic() - heard < 4 * _TOLD_EVERY for heard, _ in self._since.values())

    def tell(self, waiting: StoreWait) -> None:
        """By a worker: of the many that wait for the same store, the first word counts."""
        now = time.monotonic()
        _, logged = self._since.get(waiting.url, (0.0, float("-inf")))
        if waiting.over:
            if self._since.pop(waiting.url, None):
                log.warning("the store %s is back after %.0f s; training goes on", waiting.url, waiting.seconds)
            return
        if now - logged > _LOGGED_EVERY:
            log.warning(
                "the store %s is gone (%s): it is waited for, for %.0f s more (data.patience_seconds)",
                waiting.url, waiting.why, max(0.0, waiting.allowed - waiting.seconds),
            )  # fmt: skip
            logged = now
        self._since[waiting.url] = (now, logged)


@dataclass(frozen=True)
class _Answer(Generic[T]):
    value: T


def _why(error: Exception) -> str:
    return error.what if isinstance(error, UserError) else "the store's directory or bucket is not there"


def _nobody(waiting: StoreWait) -> None:
    """Report to nobody."""
