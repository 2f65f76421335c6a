"""Questions to what may hang: a disk far away, a driver. Who asks waits for a moment only."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Probe(Generic[T]):
    """A question that a thread of its own asks, one at a time; an answer holds for `fresh` seconds.

    While it does not come within `patience` seconds there is none, and nothing else is asked: a file system that
    hangs costs one thread, and each who asks that moment.
    """

    def __init__(self, ask: Callable[[], T | None], patience: float = 0.25, fresh: float = 2.0) -> None:
        """`ask` gives the answer, None for none; what it raises counts as none."""
        self._ask, self._patience, self._fresh = ask, patience, fresh
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._over.set()
        self._answer: T | None = None
        self._asked = float("-inf")

    def answer(self) -> T | None:
        """The answer of now, or of the last `fresh` seconds; None where there is none."""
        with self._lock:
            over = self._over
            if over.is_set() and time.monotonic() - self._asked > self._fresh:
                self._asked = time.monotonic()
                self._over = over = threading.Event()
                threading.Thread(target=self._run, args=(over,), name="metrics-probe", daemon=True).start()
            late = time.monotonic() - self._asked > self._patience  # who comes later waits no more
        return self._answer if over.wait(0 if late else self._patience) else None

    def _run(self, over: threading.Event) -> None:
        try:
            self._answer = self._ask()
        except Exception:  # whatever a file system or a driver says: there is no figure
            self._answer = None
        finally:
            over.set()
