"""The cache of whole parts: bounded, shared by processes, nothing half and nothing left behind."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import pickle
import random
import shlex
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.reading import part_cache as cache_module
from pretrain.data.reading.part_cache import DamagedPart, PartCache, PartCacheSettings
from sharding.base.errors import UserError
from sharding.storage.local import LocalStore
from sharding.storage.store import open_store

SIZES = [20_000 + 7_000 * number for number in range(12)]
PARTS = {f"train/{n}.tar": random.Random(n).randbytes(size) for n, size in enumerate(SIZES)}
SUMS = {path: hashlib.sha256(data).hexdigest() for path, data in PARTS.items()}
FIRST, SECOND, THIRD, *_ = PARTS


@pytest.fixture()
def store(tmp_path: Path) -> LocalStore:
    made = LocalStore(str(tmp_path / "store"))
    for path, data in PARTS.items():
        made.put(path, data)
    return made


def fetched(cache: PartCache, store: Any, path: str) -> bool:
    return cache.fetch(store, path, SUMS[path], len(PARTS[path]))


def held(cache: PartCache, path: str) -> bytes | None:
    """What the cache gives for a part."""
    handle = cache.open(SUMS[path], len(PARTS[path]))
    if handle is None:
        return None
    try:
        return os.pread(handle, 10**6, 0)
    finally:
        os.close(handle)


def names(cache: PartCache) -> list[str]:
    return sorted(path.name for path in cache.folder.iterdir())


def test_what_was_fetched_is_here(store: LocalStore, tmp_path: Path) -> None:
    cache = PartCache(tmp_path / "deep" / "cache", 10**6)
    assert held(cache, FIRST) is None and not PartCacheSettings().folder
    assert fetched(cache, store, FIRST) and fetched(cache, store, FIRST)
    assert held(cache, FIRST) == PARTS[FIRST] and held(pickle.loads(pickle.dumps(cache)), FIRST) == PARTS[FIRST]
    assert names(cache) == sorted([".lock", SUMS[FIRST]])
    assert store.counters.bytes == len(PARTS[FIRST])
    with pytest.raises(FileNotFoundError):
        cache.fetch(store, "absent", "0" * 64, 5)
    assert names(cache) == sorted([".lock", SUMS[FIRST]])
    cache.discard(SUMS[FIRST])
    cache.discard(SUMS[FIRST])
    assert held(cache, FIRST) is None and names(cache) == [".lock"]


def test_a_large_part_comes_in_chunks(store: LocalStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cache_module, "_CHUNK", 1000)
    cache = PartCache(tmp_path / "cache", 10**6)
    assert fetched(cache, store, SECOND) and held(cache, SECOND) == PARTS[SECOND]
    assert store.counters.requests == len(PARTS[SECOND]) / 1000


def test_the_least_recently_used_goes(store: LocalStore, tmp_path: Path) -> None:
    cache = PartCache(tmp_path / "cache", len(PARTS[FIRST]) + len(PARTS[SECOND]) + len(PARTS[THIRD]) - 1)
    for path in (FIRST, SECOND):
        assert fetched(cache, store, path)
        time.sleep(0.02)
    reading = cache.open(SUMS[SECOND], len(PARTS[SECOND]))
    assert reading is not None
    time.sleep(0.02)
    assert held(cache, FIRST) == PARTS[FIRST]
    assert fetched(cache, store, THIRD)
    assert [held(cache, path) is not None for path in (FIRST, SECOND, THIRD)] == [True, False, True]
    assert os.pread(reading, 10**6, 0) == PARTS[SECOND]  # who reads it reads on
    os.close(reading)
    other = PartCache(cache.folder, len(PARTS[THIRD]))  # a smaller bound holds at once
    assert [held(other, path) is not None for path in (FIRST, THIRD)] == [False, True]
    assert not PartCache(cache.folder, 10).fetch(store, FIRST, SUMS[FIRST], len(PARTS[FIRST]))
    assert [name for name in names(cache) if name.startswith(".tmp")] == []


@given(st.lists(st.tuples(st.sampled_from(list(PARTS)), st.booleans()), max_size=30), st.integers(0, 400_000))
def test_never_above_the_bound(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, bool]], bound: int
) -> None:
    folder = tmp_path_factory.mktemp("bound")
    store, cache = LocalStore(str(folder / "store")), PartCache(folder / "cache", bound)
    for path, drop in steps:
        store.put(path, PARTS[path])
        assert fetched(cache, store, path) == (len(PARTS[path]) <= bound)
        assert held(cache, path) in (PARTS[path], None)
        if drop:
            cache.discard(SUMS[path])
        assert sum(path.stat().st_size for path in cache.folder.iterdir()) <= bound


class Lying(LocalStore):
    """Gives other bytes the first `lies` times."""

    lies = 1

    def get_range(self, path: str, start: int, end: int) -> bytes:
        data = super().get_range(path, start, end)
        self.lies -= 1
        return data if self.lies < 0 else bytes(len(data))


def test_other_bytes_are_asked_for_once_more(store: LocalStore, tmp_path: Path) -> None:
    lying, cache = Lying(store.url), PartCache(tmp_path / "cache", 10**6)
    assert fetched(cache, lying, FIRST) and held(cache, FIRST) == PARTS[FIRST]
    lying.lies = 2
    with pytest.raises(DamagedPart, match=f"{SECOND}.*{SUMS[SECOND]}"):
        fetched(cache, lying, SECOND)
    with pytest.raises(DamagedPart, match="no sha256"):
        cache.fetch(store, FIRST, "../" + SUMS[FIRST], len(PARTS[FIRST]))
    assert names(cache) == sorted([".lock", SUMS[FIRST]])


def test_a_copy_of_another_length_is_no_copy(store: LocalStore, tmp_path: Path) -> None:
    cache = PartCache(tmp_path / "cache", 10**6)
    for length in (0, len(PARTS[FIRST]) - 1):
        assert fetched(cache, store, FIRST)
        os.truncate(cache.folder / SUMS[FIRST], length)
        assert held(cache, FIRST) is None and names(cache) == [".lock"]
    (cache.folder / SUMS[FIRST]).write_bytes(b"short")
    assert fetched(cache, store, FIRST) and held(cache, FIRST) == PARTS[FIRST]


class StoreWait(LocalStore):
    """Gives nothing until it may."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.asked, self.may = threading.Event(), threading.Event()

    def get_range(self, path: str, start: int, end: int) -> bytes:
        self.asked.set()
        assert self.may.wait(60)
        return super().get_range(path, start, end)


def test_a_part_is_fetched_by_one(store: LocalStore, tmp_path: Path) -> None:
    waiting, cache = StoreWait(store.url), PartCache(tmp_path / "cache", len(PARTS[FIRST]) + len(PARTS[SECOND]) - 1)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(fetched, cache, waiting, FIRST)
        assert waiting.asked.wait(60)
        assert not fetched(cache, store, FIRST) and not fetched(PartCache(cache.folder, 10**6), store, FIRST)
        assert not fetched(cache, store, SECOND)  # there is no room beside the one that comes
        assert held(cache, FIRST) is None and names(cache) == [".lock", f".tmp-{SUMS[FIRST]}"]
        waiting.may.set()
        assert first.result()
    assert held(cache, FIRST) == PARTS[FIRST]


def _fetch_slowly(folder: str, url: str, pipe: Connection) -> None:
    class Slow(LocalStore):
        def get_range(self, path: str, start: int, end: int) -> bytes:
            if start:
                pipe.send(start)
                time.sleep(600)
            return super().get_range(path, start, end)

    cache_module._CHUNK = 10_000
    fetched(PartCache(folder, 10**6), Slow(url), SECOND)


def test_a_killed_process_leaves_nothing(store: LocalStore, tmp_path: Path) -> None:
    cache = PartCache(tmp_path / "cache", 10**6)
    here, other = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    for _ in range(2):
        child = spawn.Process(target=_fetch_slowly, args=(str(cache.folder), store.url, other))
        child.start()
        assert here.poll(60) and here.recv() == 10_000
        assert not fetched(cache, store, SECOND) and names(cache) == [".lock", f".tmp-{SUMS[SECOND]}"]
        child.kill()
        child.join()
        assert names(cache) == [".lock", f".tmp-{SUMS[SECOND]}"]
        PartCache(cache.folder, 10**6)  # the next that comes removes it
        assert names(cache) == [".lock"]
    child = spawn.Process(target=_fetch_slowly, args=(str(cache.folder), store.url, other))
    child.start()
    assert here.poll(60)
    child.kill()
    child.join()
    assert fetched(cache, store, SECOND) and held(cache, SECOND) == PARTS[SECOND]  # or takes it up
    assert names(cache) == sorted([".lock", SUMS[SECOND]])


def _use(folder: str, url: str, bound: int, seed: int, pipe: Connection) -> None:
    """Read parts in random order as a job would; tell how many were wrong and how many came from the cache."""
    store, cache, draw = open_store(url), PartCache(folder, bound), random.Random(seed)
    wrong = hits = 0
    for _ in range(100):
        path = draw.choice(list(PARTS))
        data = held(cache, path)
        if data is None and fetched(cache, store, path):
            data = held(cache, path)
        hits += data is not None
        wrong += data not in (None, PARTS[path])
    pipe.send((wrong, hits))


def test_many_processes_share_it(store: LocalStore, tmp_path: Path) -> None:
    folder, bound = tmp_path / "cache", 300_000
    here, there = multiprocessing.Pipe()
    spawn = multiprocessing.get_context("spawn")
    children = [spawn.Process(target=_use, args=(str(folder), store.url, bound, n, there)) for n in range(4)]
    for child in children:
        child.start()
    most = 0
    while any(child.is_alive() for child in children):
        # A listing takes a while: what it has seen may have gone and what it sees have come since.
        first, total = _sizes(folder)
        if (first, total) == _sizes(folder):
            most = max(most, total)
        time.sleep(0.001)
    told = [here.recv() for _ in children]
    assert [wrong for wrong, _ in told] == [0] * 4 and sum(hits for _, hits in told) > 200, told
    assert 200_000 < most <= bound + 4 * max(SIZES)
    assert _sizes(folder)[1] <= bound
    assert set(_sizes(folder)[0]) <= {".lock", *SUMS.values()}


def _sizes(folder: Path) -> tuple[dict[str, int], int]:
    result = {}
    for entry in os.scandir(folder) if folder.exists() else ():
        try:
            result[entry.name] = entry.stat().st_size
        except FileNotFoundError:
            continue
    return result, sum(result.values())


def test_a_folder_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="the cache's folder"):
        PartCache(tmp_path / "file" / "cache", 10)


def test_a_folder_that_goes_away(store: LocalStore, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = PartCache(tmp_path / "cache", 10**6)
    (cache.folder / ".lock").unlink()
    cache.folder.rmdir()
    assert held(cache, FIRST) is None
    assert not fetched(cache, store, FIRST) and not fetched(cache, store, SECOND)
    assert [record.levelname for record in caplog.records] == ["WARNING"] and not cache.folder.exists()


FULL = """
import logging, os, sys
logging.basicConfig(stream=sys.stdout, format="%(message)s")
from tests.pretrain.data.reading.test_part_cache import *
store, cache = LocalStore(sys.argv[2]), PartCache(sys.argv[1], 10**9)
print([fetched(cache, store, path) for path in PARTS])
print([held(cache, path) == PARTS[path] for path in PARTS])
print(sorted(os.listdir(sys.argv[1])) == sorted([".lock", *(SUMS[path] for path in list(PARTS)[:4])]))
print([name for name in ("torch", "fsspec") if name in sys.modules])
"""


def test_a_full_disk(store: LocalStore, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=140k tmpfs {disk}"
    if subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    program = shlex.join([sys.executable, "-c", FULL, str(disk), store.url])
    done = subprocess.run(["unshare", "-rm", "sh", "-c", f"{mount} && {program}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    what = f"the cache keeps nothing more: No space left on device ({disk}); parts are read from the store"
    some = [True] * 4 + [False] * 8
    assert done.stdout == f"{what}\n{some}\n{some}\nTrue\n[]\n"
