"""Bounded caches of values that can be made again: the least recently used are dropped first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LRU(Generic[K, V]):
    """At most `size` values by their keys, without the least recently used. Safe for threads; pickled empty.

    `dropped` is called with every value that leaves for lack of room; not with those that are popped or cleared.
    """

    def __init__(self, size: int, dropped: Callable[[V], object] | None = None) -> None:
        self.size, self._dropped = size, dropped
        self._values: OrderedDict[K, V] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: K) -> V | None:
        """The value of a key, which counts as a use; None if it has none."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key]

    def put(self, key: K, value: V) -> None:
        """Keep a value as the one used last."""
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            excess = [self._values.popitem(last=False)[1] for _ in range(len(self._values) - self.size)]
        if self._dropped is not None:
            for each in excess:
                self._dropped(each)

    def get_or_make(self, key: K, make: Callable[[], V]) -> V:
        """The value of a key, made and kept if it has none: by two threads at once, it may be made twice."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        made = make()
        self.put(key, made)
        return made

    def pop(self, key: K) -> V | None:
        """Take a value out; None if there is none."""
        with self._lock:
            return self._values.pop(key, None)

    def items(self) -> list[tuple[K, V]]:
        """All values with their keys, the least recently used first; no use of any."""
        with self._lock:
            return list(self._values.items())

    def clear(self) -> None:
        """Forget all values."""
        with self._lock:
            self._values.clear()

    def __contains__(self, key: object) -> bool:
        return key in self._values

    def __len__(self) -> int:
        return len(self._values)

    def __reduce__(self) -> tuple[Any, ...]:
        return LRU, (self.size, self._dropped)


class GroupedLRU(Generic[V]):
    """An LRU of `size` values for each of some groups, such as lanes. Safe for threads; pickled empty."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._groups: dict[Hashable, LRU[Hashable, V]] = {}

    def get_or_make(self, group: Hashable, key: Hashable, make: Callable[[], V]) -> V:
        """The value of a key in its group, made if it is not at hand."""
        values = self._groups.get(group)
        if values is None:
            values = self._groups.setdefault(group, LRU(self._size))
        return values.get_or_make(key, make)

    def __reduce__(self) -> tuple[Any, ...]:
        return GroupedLRU, (self._size,)
