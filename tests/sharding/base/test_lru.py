"""Values that are made again when they were dropped: the least recently used are."""

from __future__ import annotations

import pickle
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from sharding.base.lru import LRU, GroupedLRU


def test_the_least_recently_used_is_dropped() -> None:
    dropped: list[str] = []
    cache: LRU[str, str] = LRU(2, dropped.append)
    assert cache.get("a") is None and "a" not in cache and not cache
    cache.put("a", "A")
    cache.put("b", "B")
    assert cache.get("a") == "A"
    cache.put("c", "C")
    assert dropped == ["B"] and "b" not in cache and len(cache) == 2
    cache.put("a", "A2")  # the one put last is the one used last, also under a key that was there
    cache.put("d", "D")
    assert dropped == ["B", "C"] and cache.get("a") == "A2"
    assert cache.pop("a") == "A2" and cache.pop("a") is None
    cache.clear()
    assert not cache and dropped == ["B", "C"]


def test_a_size_can_change_and_be_none() -> None:
    cache: LRU[int, int] = LRU(0)
    assert cache.get_or_make(1, lambda: 10) == 10 and not cache
    cache.size = 3
    for key in range(5):
        cache.put(key, key)
    assert [key in cache for key in range(5)] == [False, False, True, True, True]
    cache.size = 1
    cache.put(5, 5)
    assert len(cache) == 1 and cache.get(5) == 5


def test_values_are_made_once_while_they_are_kept() -> None:
    made: list[int] = []

    def get(cache: LRU[int, int], key: int) -> int:
        return cache.get_or_make(key, lambda: made.append(key) or key * 10)

    cache: LRU[int, int] = LRU(2)
    assert [get(cache, key) for key in (1, 2, 1, 3, 1, 2)] == [10, 20, 10, 30, 10, 20]
    assert made == [1, 2, 3, 2]
    elsewhere = pickle.loads(pickle.dumps(cache))
    assert elsewhere.size == 2 and not elsewhere and get(elsewhere, 1) == 10


def test_threads_share_one() -> None:
    cache: LRU[int, int] = LRU(8)
    together, interval = threading.Barrier(4), sys.getswitchinterval()

    def use(first: int) -> int:
        together.wait()
        return sum(cache.get_or_make((first + key) % 32, lambda: 1) for key in range(5000))

    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(use, range(4))) == [5000] * 4
    finally:
        sys.setswitchinterval(interval)
    assert len(cache) == 8


def test_the_last_values_of_each_group_are_kept() -> None:
    made: list[str] = []

    def get(cache: GroupedLRU[str], group: int, key: str) -> str:
        return cache.get_or_make(group, key, lambda: made.append(f"{group}{key}") or f"{group}{key}")

    cache: GroupedLRU[str] = GroupedLRU(2)
    assert [get(cache, 0, key) for key in "abab"] == ["0a", "0b", "0a", "0b"] and made == ["0a", "0b"]
    assert get(cache, 1, "a") == "1a" and get(cache, 0, "a") == "0a" and made[2:] == ["1a"]
    get(cache, 0, "c")  # b was used longest ago
    assert [get(cache, 0, key) for key in "acb"] == ["0a", "0c", "0b"] and made[3:] == ["0c", "0b"]
    elsewhere = pickle.loads(pickle.dumps(cache))
    get(elsewhere, 1, "a")
    assert made[5:] == ["1a"]
    assert [get(elsewhere, 1, key) for key in "bcc"] == ["1b", "1c", "1c"] and made[6:] == ["1b", "1c"]
