"""Ranges and whole parts: the same bytes either way, and copies on this host that rot, or were never right."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from pretrain.data.loader import Loader
from pretrain.data.reading.decode import decode_frames
from pretrain.data.reading.part_cache import PartCache
from pretrain.data.reading.part_prefetcher import PartPrefetcher
from pretrain.data.reading.part_reader import CachedPartReader
from pretrain.data.reading.reading_mode import ReadingSettings, uses_whole_parts
from pretrain.data.reading.store_split import DamagedData, Split, open_split
from pretrain.data.sources import DataSettings, open_sources, order_of
from pretrain.data.views.views import ClipSettings
from pretrain.data.workers.pool import LoaderSettings
from sharding.base.errors import UserError
from sharding.storage.store import open_store
from tests.pretrain.conftest import CLIP

SETTINGS = ClipSettings.model_validate(CLIP)


@pytest.fixture()
def split(store: str) -> Split:
    return open_split(open_store(store), "train")


def settings(**values: object) -> ReadingSettings:
    return ReadingSettings.model_validate(values)


def test_what_is_read(split: Split, tmp_path: Path) -> None:
    assert not uses_whole_parts(settings(), split, SETTINGS)
    assert not uses_whole_parts(settings(folder=tmp_path, mode="ranges"), split, SETTINGS)
    assert uses_whole_parts(settings(folder=tmp_path, mode="parts", bytes=1), split, SETTINGS)
    assert uses_whole_parts(settings(folder=tmp_path), split, SETTINGS)  # they fit, for ever
    assert uses_whole_parts(settings(folder=tmp_path, bytes=1), split, SETTINGS)  # small samples: a request costs more
    with pytest.raises(UserError, match="nothing says where") as caught:
        uses_whole_parts(settings(mode="parts"), split, SETTINGS)
    assert "data.reading.folder" in caught.value.remedy


def test_large_samples_are_read_by_ranges(split: Split, tmp_path: Path) -> None:
    split.shard_bytes = tuple(2_000_000 * samples for samples in split.shard_sizes)
    frames = split.index.splits["train"].frames // len(split)
    assert not uses_whole_parts(settings(folder=tmp_path, bytes=1), split, SETTINGS.model_copy(update={"frames": 1}))
    assert uses_whole_parts(settings(folder=tmp_path, bytes=1), split, SETTINGS.model_copy(update={"frames": frames}))


@pytest.fixture()
def reader(split: Split, tmp_path: Path) -> CachedPartReader:
    return CachedPartReader(split.store, split.parts, PartCache(tmp_path / "cache", 10**9))


def fetched(reader: CachedPartReader, split: Split, path: str) -> None:
    PartPrefetcher({0: split}, reader._cache).want([(0, shard) for shard in range(4) if path in split.paths(shard)])
    deadline = time.monotonic() + 60
    while not (Path(reader._cache.folder) / split.parts[path].sha256).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_part_that_is_here_is_not_asked_for(split: Split, reader: CachedPartReader) -> None:
    sample = split.sample(0)
    expected = decode_frames(split.store, sample, [0, 3])
    assert (decode_frames(reader, sample, [0, 3]).y == expected.y).all()  # of the store as yet
    fetched(reader, split, sample.tar)
    before = split.store.counters.requests
    assert (decode_frames(reader, sample, [0, 3]).y == expected.y).all()
    assert split.store.counters.requests == before


def test_a_part_that_was_dropped_is_fetched_again_when_it_is_wanted_again(split: Split, tmp_path: Path) -> None:
    """A store that is larger than the cache: each pass finds the parts gone that the others took the place of."""
    largest = max(part.bytes for part in split.parts.values())
    cache = PartCache(tmp_path / "cache", largest)
    prefetcher, shards = PartPrefetcher({0: split}, cache), range(len(split.shard_sizes))
    reader = CachedPartReader(split.store, split.parts, cache)
    for shard in [*shards, *shards]:
        (path, *_) = split.paths(shard)
        prefetcher.want([(0, shard)])
        deadline = time.monotonic() + 60
        while not (tmp_path / "cache" / split.parts[path].sha256).exists():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        reader.get_range(path, 0, 9)
        deleted = [os.fstat(handle).st_nlink for _, handle in reader._handles.items()].count(0)
        assert deleted == 0
    prefetcher.close()


def test_a_copy_that_rots_is_fetched_anew(split: Split, reader: CachedPartReader) -> None:
    sample = split.sample(0)
    expected = decode_frames(split.store, sample, [0])
    fetched(reader, split, sample.tar)
    copy = Path(reader._cache.folder) / split.parts[sample.tar].sha256
    copy.write_bytes(bytes(copy.stat().st_size))
    assert (decode_frames(reader, sample, [0]).y == expected.y).all()
    assert not copy.exists()
    fetched(reader, split, sample.tar)
    assert (decode_frames(reader, sample, [0]).y == expected.y).all()


def test_a_part_that_is_damaged_in_the_store_is_not_kept(
    split: Split, reader: CachedPartReader, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sample = split.sample(0)
    body = bytearray(split.store.get(sample.tar))
    body[sample.packets.start + int(sample.packets.offset[0]) + 5] ^= 1
    monkeypatch.setattr(split.store, "get_range", lambda path, start, end: bytes(body[start:end]))
    PartPrefetcher({0: split}, reader._cache).want([(0, split.place(0)[0])])
    deadline = time.monotonic() + 60
    while "its samples are read one by one" not in caplog.text:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    with pytest.raises(DamagedData, match=f"{sample.key}.*group 0 is damaged"):
        decode_frames(reader, sample, [0])


def keys_of(data: DataSettings, reading: ReadingSettings, last: int = 6) -> tuple[list[list[str]], Loader]:
    sources = open_sources(data)
    loader = Loader(
        sources,
        order_of(sources, data, 1, 2, 2),
        data.clip,
        LoaderSettings(workers=2, damaged=0),
        range(2),
        last=last,
        reading=reading,
    )
    with loader:
        return [[key for clips in lanes for key in clips.keys] for lanes in loader], loader


@pytest.mark.slow
def test_workers_share_what_they_fetch(store: str, tmp_path: Path) -> None:
    data = DataSettings.model_validate({"store": store, "clip": CLIP})
    expected, _ = keys_of(data, settings())
    reading = settings(folder=tmp_path / "cache", mode="parts")
    assert keys_of(data, reading)[0] == expected
    kept = {path.name for path in (tmp_path / "cache").iterdir() if not path.name.startswith(".")}
    parts = {part.sha256 for part in open_split(open_store(store), "train").parts.values()}
    assert kept and kept <= parts
    keys, loader = keys_of(data, reading, last=30)
    assert keys[:6] == expected and loader.stats.clips == 120


def test_a_loader_that_is_closed_fetches_no_more(store: str, tmp_path: Path) -> None:
    before = set(threading.enumerate())
    data = DataSettings.model_validate({"store": store, "clip": CLIP, "reading": {"folder": tmp_path, "mode": "parts"}})
    sources = open_sources(data)
    order = order_of(sources, data, 0, 1, 2)
    with Loader(sources, order, SETTINGS, LoaderSettings(workers=1), range(1), reading=data.reading) as loader:
        next(iter(loader))
        (fetching,) = set(threading.enumerate()) - before
    fetching.join(30)
    assert not fetching.is_alive()
