"""A file over ranges of an object: the same bytes, few requests, bounded memory, and a store's errors as themselves."""

from __future__ import annotations

import io
import itertools
import threading
import time
from pathlib import Path
from typing import Any

import av
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharding.base.errors import UserError
from sharding.corpora.manifest import Video
from sharding.media.clip import Clip
from sharding.media.encoder import EncodeSettings
from sharding.media.input.bad_video import BadVideo
from sharding.media.input.ranged import RangedFile
from sharding.media.input.segments import SegmentSettings
from sharding.media.input.source import Source
from sharding.media.transcode import VideoSettings, transcode
from sharding.storage.local import LocalStore
from sharding.storage.store import open_store
from tests.sharding.conftest import FOOTAGE
from tests.support.videos.odd_videos import loop_video

ENCODE = EncodeSettings(short_edge=64, preset="ultrafast")
DATA = bytes(range(251)) * 40


class Counting(LocalStore):
    """A directory that notes which ranges were asked for, and fails after some."""

    def __init__(self, root: str, good: int = 10**9) -> None:
        super().__init__(root)
        self.asked: list[tuple[int, int]] = []
        self.good = good
        self.lock = threading.Lock()

    def get_range(self, path: str, start: int, end: int) -> bytes:
        with self.lock:
            self.asked.append((start, end))
            if len(self.asked) > self.good:
                raise UserError("the store does not answer", path, "wait")
        return super().get_range(path, start, end)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("objects")
    (path / "object").write_bytes(DATA)
    return path


STEPS = st.lists(
    st.tuples(st.sampled_from(["read", "set", "from here", "from end"]), st.integers(0, 12000)), max_size=30
)


@settings(max_examples=60, deadline=None)
@given(steps=STEPS, block=st.integers(1, 3000), keep=st.integers(1, 4), ahead=st.integers(0, 3))
def test_it_reads_as_a_file_does(folder: Path, steps: list[tuple[str, int]], block: int, keep: int, ahead: int) -> None:
    ours, theirs = RangedFile(Counting(str(folder)), "object", block, keep, ahead), io.BytesIO(DATA)
    for step, number in steps:
        if step == "read":
            got = b""
            while len(got) < number and (more := ours.read(number - len(got))):
                got += more
            assert got == theirs.read(number)
        elif step == "set":
            assert ours.seek(number) == theirs.seek(number)
        elif step == "from end":
            assert ours.seek(-number // 2, io.SEEK_END) == theirs.seek(-number // 2, io.SEEK_END)
        else:
            assert ours.seek(number, io.SEEK_CUR) == theirs.seek(number, io.SEEK_CUR)
        assert ours.tell() == theirs.tell()
        assert len(ours._cache) <= keep and len(ours._prefetched) <= ahead
    ours.close()
    assert not ours._cache and not ours._prefetched


def test_no_block_is_fetched_twice_in_a_row_of_reads(folder: Path) -> None:
    for ahead in (0, 2):
        store, counted = Counting(str(folder)), []
        file = RangedFile(store, "object", 1000, 3, ahead, counted.append)
        while file.read(300):
            pass
        file.close()
        assert sorted(store.asked) == [(start, min(start + 1000, len(DATA))) for start in range(0, len(DATA), 1000)]
        assert sum(counted) == len(DATA)


def test_an_error_of_the_store_comes_out(folder: Path) -> None:
    for ahead in (0, 2):
        file = RangedFile(Counting(str(folder), good=3), "object", 1000, 3, ahead)
        with pytest.raises(UserError, match="does not answer"):
            while file.read(100):
                pass
        file.close()


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two minutes, 18 MB, in a folder whose name ends in a class."""
    folder = tmp_path_factory.mktemp("corpus") / "class"
    folder.mkdir()
    return loop_video(FOOTAGE / "carphone.mp4", folder / "long.mp4", 30)


@pytest.fixture(scope="module")
def remote(s3: tuple[dict[str, str], str], long: Path) -> tuple[dict[str, str], str]:
    environment, bucket = s3
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        open_store(f"s3://{bucket}/videos").put_file("class/long.mp4", long)
    return environment, f"s3://{bucket}/videos"


@pytest.fixture()
def bucket(remote: tuple[dict[str, str], str], monkeypatch: pytest.MonkeyPatch) -> str:
    for name, value in remote[0].items():
        monkeypatch.setenv(name, value)
    return remote[1]


def clips(source: Source, **settings: Any) -> list[Clip]:
    found = list(transcode(source, Video(source.uri, (0,), "train"), VideoSettings(encode=ENCODE, **settings)))
    assert all(isinstance(clip, Clip) for clip in found)
    return found  # type: ignore[return-value]


def test_segments_of_an_object_are_those_of_the_file_and_little_is_fetched(bucket: str, long: Path) -> None:
    segments = SegmentSettings(seconds=2, per_video=3)
    local, remote = Source(str(long.parents[1]), "class/long.mp4"), Source(bucket, "class/long.mp4")
    ours, theirs = clips(local, segments=segments), clips(remote, segments=segments)
    assert [clip.data for clip in ours] == [clip.data for clip in theirs]
    size = long.stat().st_size
    assert local.frames == remote.frames < 3 * (60 + 125)
    assert remote.bytes_read < 0.45 * size and local.bytes_read < 0.15 * size


def test_a_whole_object_is_the_file(bucket: str, pieces: list[Path]) -> None:
    open_store(bucket).put_file("class/piece.mp4", pieces[0])
    here, there = Source("", str(pieces[0])), Source("elsewhere", f"{bucket}/class/piece.mp4")
    assert clips(here)[0].data == clips(there)[0].data
    assert there.bytes_read == pieces[0].stat().st_size


def test_a_missing_object_is_a_bad_video(bucket: str) -> None:
    with pytest.raises(BadVideo, match="not in the store") as caught:
        clips(Source(bucket, "class/absent.mp4"))
    assert caught.value.kind == "missing"


@pytest.mark.parametrize(
    ("good", "segments"), [(2, None), *((good, SegmentSettings(seconds=2, per_video=3)) for good in (1, 2, 3, 5))]
)
def test_a_store_that_fails_while_a_video_is_read_is_no_bad_video(
    monkeypatch: pytest.MonkeyPatch, bucket: str, long: Path, good: int, segments: SegmentSettings | None
) -> None:
    store = Counting(str(long.parents[1]), good)
    monkeypatch.setattr("sharding.media.input.source._store", lambda *_: store)
    with pytest.raises(UserError, match="does not answer"):
        clips(Source(bucket, "class/long.mp4"), segments=segments)


@pytest.mark.slow
@pytest.mark.parametrize("segments", [None, SegmentSettings(seconds=2, per_video=2)])
def test_a_store_that_is_waited_for_is_no_stall(
    monkeypatch: pytest.MonkeyPatch, bucket: str, long: Path, segments: SegmentSettings | None
) -> None:
    """Its outage would list every video that is read meanwhile as one that hangs the decoder."""

    class Slow(LocalStore):
        def size(self, path: str) -> int:
            time.sleep(1.5)
            return super().size(path)

        def get_range(self, path: str, start: int, end: int) -> bytes:
            if start > 0:
                time.sleep(1.5)
            return super().get_range(path, start, end)

    store = Slow(str(long.parents[1]))
    monkeypatch.setattr("sharding.media.input.source._store", lambda *_: store)
    beats = [time.monotonic()]
    source, settings = Source(bucket, "class/long.mp4"), VideoSettings(encode=ENCODE, segments=segments)
    video = Video(source.uri, (0,), "train", None if segments else 0.0, None if segments else 2.0)
    assert len([*transcode(source, video, settings, alive=lambda _: beats.append(time.monotonic()))]) >= 1
    assert max(b - a for a, b in itertools.pairwise(beats)) < 1.2


@pytest.mark.parametrize("good", [2, 5, 30])
def test_a_disk_that_fails_while_a_video_is_read_is_no_bad_video(
    monkeypatch: pytest.MonkeyPatch, long: Path, good: int
) -> None:
    class Failing(io.FileIO):
        reads = 0

        def read(self, size: int | None = -1) -> bytes:
            self.reads += 1
            if self.reads > good:
                raise OSError(5, "Input/output error")
            return super().read(size)

    monkeypatch.setattr("sharding.media.input.source.io.FileIO", Failing)
    with pytest.raises(OSError, match="Input/output error") as caught:
        clips(Source("", str(long)))
    assert not isinstance(caught.value, av.error.FFmpegError)
