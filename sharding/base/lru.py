"""A small memory of values that can be made again."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Recent(Generic[T]):
    """The last few values made for each of some groups. Safe for threads; travels to another process empty."""

    def __init__(self, kept: int) -> None:
        self._kept = kept
        self._groups: dict[Hashable, OrderedDict[Hashable, T]] = {}
        self._lock = threading.Lock()

    def get(self, group: Hashable, key: Hashable, make: Callable[[], T]) -> T:
        """The value of a key, made if it is not at hand."""
        with self._lock:
            values = self._groups.setdefault(group, OrderedDict())
            if key in values:
                values.move_to_end(key)
                return values[key]
        made = make()
        with self._lock:
            values[key] = made
            if len(values) > self._kept:
                values.popitem(last=False)
        return made

    def __reduce__(self) -> tuple[type[Recent[T]], tuple[int]]:
        return Recent, (self._kept,)
