"""Counters of a store's requests, bytes and retries in this process."""

from __future__ import annotations

import threading
from dataclasses import dataclass

_LOCK = threading.Lock()


@dataclass
class Counters:
    """Numbers that only grow; a copy of a store in another process counts from zero.

    `requests`: operations, each try of them counted (of a directory: reads); `bytes`: of objects read, broken answers
    included; `retries`: tries after the first.
    """

    requests: int = 0
    bytes: int = 0
    retries: int = 0

    def add(self, requests: int = 0, bytes: int = 0, retries: int = 0) -> None:
        """Count, from any thread."""
        with _LOCK:
            self.requests += requests
            self.bytes += bytes
            self.retries += retries

    def __reduce__(self) -> tuple[type[Counters], tuple[()]]:
        return Counters, ()
