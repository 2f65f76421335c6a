"""Reads that are under way before they are asked for: the same bytes, many at once, no more than are needed soon."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest

from pretrain.data.reading.prefetch import CONCURRENT_READS, ByteRange, PrefetchingReader
from sharding.storage.store import open_store
from tests.support.network_faults import Proxy, before_s3
from tests.support.s3 import S3Server, running_s3

DATA = bytes(range(256)) * 40
EXTENTS = [ByteRange("object", 100 * number, 100 * number + 60) for number in range(100)]


class Slow:
    """A store that answers when it is let to, and counts."""

    def __init__(self) -> None:
        self.asked: list[ByteRange] = []
        self.let = threading.Event()

    def get_range(self, path: str, start: int, end: int) -> bytes:
        self.asked.append(ByteRange(path, start, end))
        assert self.let.wait(60)
        if path != "object":
            raise FileNotFoundError(path)
        return DATA[start:end]


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_so_many_at_once_and_no_more() -> None:
    store = Slow()
    reader = PrefetchingReader(store)
    reader.expect(EXTENTS)
    until(lambda: len(store.asked) == CONCURRENT_READS)
    store.let.set()
    for number, extent in enumerate(EXTENTS):
        assert reader.get_range(*extent) == DATA[extent.start : extent.end]
        assert len(store.asked) <= number + 1 + CONCURRENT_READS
    assert sorted(store.asked) == EXTENTS


def test_what_was_not_expected_and_what_is_asked_for_twice() -> None:
    store = Slow()
    store.let.set()
    reader = PrefetchingReader(store)
    reader.expect([EXTENTS[3], EXTENTS[1], EXTENTS[3]])
    for extent in (EXTENTS[1], EXTENTS[2], EXTENTS[3], EXTENTS[3]):
        assert reader.get_range(*extent) == DATA[extent.start : extent.end]
    assert len(store.asked) == 4


def test_an_error_is_told_where_its_bytes_are_asked_for() -> None:
    store = Slow()
    store.let.set()
    reader = PrefetchingReader(store)
    reader.expect([ByteRange("absent", 0, 5), EXTENTS[0]])
    assert reader.get_range(*EXTENTS[0]) == DATA[:60]
    with pytest.raises(FileNotFoundError):
        reader.get_range("absent", 0, 5)


def test_what_is_expected_no_more_is_not_read() -> None:
    store = Slow()
    reader = PrefetchingReader(store)
    reader.expect(EXTENTS[:50])
    until(lambda: len(store.asked) == CONCURRENT_READS)
    kept = EXTENTS[CONCURRENT_READS - 1]
    reader.expect([kept, EXTENTS[90]])
    store.let.set()
    assert reader.get_range(*EXTENTS[90]) == DATA[9000:9060]
    assert reader.get_range(*kept) == DATA[kept.start : kept.end]
    assert sorted(store.asked) == [*EXTENTS[:CONCURRENT_READS], EXTENTS[90]]  # the one that was kept, once


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with running_s3() as found:
        yield found


@pytest.fixture()
def proxy(server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    with before_s3(server.environment, monkeypatch, seed=3) as found:
        yield found


@pytest.mark.slow
def test_a_server_is_asked_many_at_once(proxy: Proxy) -> None:
    store = open_store("s3://bucket/ahead")
    store.put("object", DATA)
    assert store.remote and store.get_range("object", 0, 1) == DATA[:1]
    reader = PrefetchingReader(store)
    proxy.requests.clear()
    before = store.counters.bytes
    with proxy.paused():
        reader.expect(EXTENTS)
        until(lambda: len(proxy.requests) == CONCURRENT_READS)
    proxy.rate = 0.1
    assert [reader.get_range(*extent) for extent in EXTENTS] == [DATA[each.start : each.end] for each in EXTENTS]
    assert store.counters.retries > 0 and sum(proxy.counts.values()) > 3
    assert store.counters.bytes - before >= 60 * len(EXTENTS)
