"""Packets read one range at a time decode to what an ordinary player shows, and damage is told."""

from __future__ import annotations

import io
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from pretrain.data.device.tensors import made_batch, plane_batch
from pretrain.data.device.transforms import network_input, pictures
from pretrain.data.reading.decode import Planes, decode_frames
from pretrain.data.reading.packets import group_range, needed_spans, read_spans
from pretrain.data.reading.store_split import DamagedData, Split, open_split
from pretrain.data.views.views import ClipSettings, centre_view
from pretrain.data.workers.batches import BatchMaker
from sharding.base.errors import UserError
from sharding.corpora.manifest import CorpusSettings
from sharding.format.record import read_record
from sharding.make.prepare import prepare
from sharding.make.shard import ShardSettings
from sharding.media.encoder import EncodeSettings
from sharding.storage.store import Store, open_store
from tests.support.stores import make
from tests.support.videos.odd_videos import write_video


@pytest.fixture(scope="module")
def split(store: str) -> Split:
    return open_split(open_store(store), "train")


def rows_of(split: Split) -> dict[str, tuple[str, int, int]]:
    """Tar, offset and size of every sample's mp4, by key, from the records themselves."""
    result = {}
    for part in split.index.parts:
        for row in read_record(split.store, part.split, part.job).to_pylist():
            if row["part"] == part.part:
                result[row["key"]] = (part.path, row["offset"], row["size"])
    return result


@pytest.fixture(scope="module")
def ordinary(split: Split) -> list[list[NDArray[np.uint8]]]:
    """Every sample's frames by PyAV's own demuxer and decoder: luma over both chroma planes."""
    rows = rows_of(split)
    result = []
    for number in range(len(split)):
        tar, offset, size = rows[split.sample(number).key]
        with av.open(io.BytesIO(split.store.get_range(tar, offset, offset + size))) as container:
            result.append([frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)])
    return result


def as_ordinary(planes: Planes) -> NDArray[np.uint8]:
    """Planes in the layout of PyAV's yuv420p arrays: [T, H * 3 / 2, W]."""
    count, height, width = planes.y.shape
    assert planes.uv.shape == (count, 2, height // 2, width // 2)
    return np.concatenate([planes.y, planes.uv.reshape(count, height // 2, width)], axis=1)


@given(st.data())
def test_any_frames_are_those_of_an_ordinary_player(
    split: Split, ordinary: list[list[NDArray[np.uint8]]], data: st.DataObject
) -> None:
    number = data.draw(st.integers(0, len(split) - 1))
    sample = split.sample(number)
    assert sample.frames == len(ordinary[number])
    wanted = data.draw(st.lists(st.integers(0, sample.frames - 1), min_size=1, max_size=6))
    planes = decode_frames(split.store, sample, wanted)
    assert planes.y.shape == (len(wanted), sample.height, sample.width)
    assert planes.matrix == sample.matrix
    assert np.array_equal(as_ordinary(planes), np.stack([ordinary[number][frame] for frame in wanted]))


def test_threads_do_not_disturb_each_other(split: Split, ordinary: list[list[NDArray[np.uint8]]]) -> None:
    def whole(number: int) -> NDArray[np.uint8]:
        sample = split.sample(number)
        return as_ordinary(decode_frames(split.store, sample, range(sample.frames)))

    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(whole, [*range(len(split))] * 2)):
            assert np.array_equal(found, np.stack(ordinary[number % len(split)]))


def longest(split: Split) -> int:
    return max(range(len(split)), key=lambda number: split.sample(number).frames)


def test_only_the_groups_that_hold_the_frames_are_read(split: Split) -> None:
    sample = split.sample(longest(split))
    keys = [number for number, key in enumerate(sample.packets.key) if key]
    assert len(keys) == 3
    for first, last, begin, end in (
        (0, 0, 0, keys[1]),
        (keys[1], keys[1], keys[1], keys[2]),
        (keys[1] + 1, keys[2], keys[1], sample.frames),
        (keys[2] - 1, keys[2] - 1, keys[1], keys[2]),
    ):
        assert group_range(sample.packets, first, last) == (begin, end)
        ((found, packets),) = read_spans(split.store, "", sample.packets, [(first, last)])
        assert (found, len(packets)) == (begin, end - begin)
        assert [len(packet) for packet in packets] == sample.packets.size[begin:end].tolist()


def test_groups_between_the_frames_are_not_decoded(
    split: Split, ordinary: list[list[NDArray[np.uint8]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    number = longest(split)
    sample = split.sample(number)
    keys = np.flatnonzero(sample.packets.key).tolist()
    wanted = [0, 2, sample.frames - 1]
    assert len(keys) == 3 and needed_spans(sample.packets, wanted) == [(0, 2), (sample.frames - 1, sample.frames - 1)]
    assert needed_spans(sample.packets, [0, keys[1]]) == [(0, 0), (keys[1], keys[1])]
    assert needed_spans(sample.packets, [keys[1] - 1, keys[1]]) == [(keys[1] - 1, keys[1])]
    assert needed_spans(sample.packets, [keys[1], keys[2] - 1]) == [(keys[1], keys[2] - 1)]
    for gap, reads in ((0, 2), (2**16, 1)):
        monkeypatch.setattr("pretrain.data.reading.packets._GAP", gap)
        before = split.store.counters.requests
        planes = decode_frames(split.store, sample, wanted)
        assert split.store.counters.requests - before == reads
        assert np.array_equal(as_ordinary(planes), np.stack([ordinary[number][frame] for frame in wanted]))


@pytest.fixture()
def damaged(store: str, tmp_path: Path) -> Store:
    return open_store(str(shutil.copytree(store, tmp_path / "store")))


def flip(store: Store, tar: str, position: int) -> None:
    body = bytearray(store.get(tar))
    body[position] ^= 0x10
    store.put(tar, bytes(body))


def test_a_flipped_byte_names_the_sample(damaged: Store) -> None:
    split = open_split(damaged, "train")
    number = longest(split)
    sample = split.sample(number)
    keys = [number for number, key in enumerate(sample.packets.key) if key]
    intact = decode_frames(damaged, sample, [0])
    flip(damaged, sample.tar, sample.packets.start + sample.packets.offset[keys[1]] + 20)
    with pytest.raises(DamagedData) as caught:
        decode_frames(damaged, sample, [keys[1]])
    for words in (sample.key, sample.uri, sample.tar, "group 1"):
        assert words in str(caught.value)
    assert caught.value.kind == "checksum"
    # The groups before and after it, and every other sample, are as good as ever.
    assert np.array_equal(decode_frames(damaged, sample, [0]).y, intact.y)
    decode_frames(damaged, sample, [keys[2]])
    for other in set(range(len(split))) - {number}:
        decode_frames(damaged, split.sample(other), [0])


def test_packets_that_do_not_decode_are_damage_too(split: Split, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that have their crc32 and are no H.264: an error that names the sample, and no harm after it."""
    sample = split.sample(longest(split))
    good = decode_frames(split.store, sample, [0])
    damage = [(0, [memoryview(b"\x00\x00\x00\x04\x65\xff\xff\xff")] * 3)]
    monkeypatch.setattr("pretrain.data.reading.decode.read_spans", lambda *_: damage)
    with pytest.raises(DamagedData, match=sample.key) as caught:
        decode_frames(split.store, sample, [0])
    assert caught.value.kind == "decode"
    monkeypatch.undo()
    assert np.array_equal(decode_frames(split.store, sample, [0]).y, good.y)


def copied_split(tmp_path: Path, name: str, **made: Any) -> Split:
    """A store of one video's packets as they are."""
    (tmp_path / "corpus" / "class").mkdir(parents=True)
    write_video(tmp_path / "corpus" / "class" / name, **made)
    store = open_store(str(tmp_path / "store"))
    settings = ShardSettings(encode=EncodeSettings(copy=True))
    make(prepare(str(tmp_path / "corpus"), store, settings, CorpusSettings(validation=0)), settings)
    return open_split(store, "train")


def played(split: Split) -> list[NDArray[np.uint8]]:
    """The first sample's luma planes as a player has them."""
    sample = split.sample(0)
    _, offset, size = rows_of(split)[sample.key]
    with av.open(io.BytesIO(split.store.get_range(sample.tar, offset, offset + size))) as container:
        return [frame.to_ndarray(format="yuv420p")[: sample.height] for frame in container.decode(video=0)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("open.mp4", "libx264", {"bf": "3", "x264-params": "open-gop=1:keyint=30:min-keyint=30:scenecut=0"}),
        ("open.mkv", "libx265", {"x265-params": "log-level=none:pools=1:open-gop=1:keyint=30:min-keyint=30:bframes=3"}),
    ],
)
def test_open_groups_of_a_copied_source(tmp_path: Path, name: str, codec: str, options: dict[str, str]) -> None:
    """What is shown before a key frame and comes after it is made from the group before, too."""
    split = copied_split(tmp_path, name, codec=codec, options=options)
    sample = split.sample(0)
    assert sum(sample.packets.key) > 2 and (np.diff(sample.packets.pts) < 0).any()
    luma = played(split)
    for number in range(sample.frames):
        planes = decode_frames(split.store, sample, [number, min(number + 3, sample.frames - 1)])
        assert np.array_equal(planes.y[0], luma[number]), number


@pytest.mark.parametrize("codec", ["mpeg4", "libvpx-vp9"])
def test_odd_sizes_of_a_copied_source(tmp_path: Path, codec: str) -> None:
    """Chroma planes of half as many lines, rounded up: nothing is lost at the edge, whole or in a batch."""
    rng = np.random.default_rng(0)
    coarse = rng.integers(40, 220, (10, 12, 3)).repeat(8, 0).repeat(8, 1)[:75, :93].astype(np.uint8)
    split = copied_split(tmp_path, "odd.mkv", codec=codec, frames=[np.roll(coarse, 2 * i, 1) for i in range(12)])
    sample = split.sample(0)
    assert (sample.height, sample.width) == (75, 93)
    tar, offset, size = rows_of(split)[sample.key]
    with av.open(io.BytesIO(split.store.get_range(tar, offset, offset + size))) as container:
        frames = list(container.decode(video=0))
    planes = decode_frames(split.store, sample, range(sample.frames))
    assert planes.y.shape[1:] == (75, 93) and planes.uv.shape[1:] == (2, 38, 47)
    for number, frame in enumerate(frames):
        for found, plane in zip((planes.y[number], *planes.uv[number]), frame.planes, strict=True):
            there = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
            assert np.array_equal(found, there[: plane.height, : plane.width])
    clip = ClipSettings(frames=4, resize=(75, 93), crop=75)
    batch = BatchMaker([split], split, clip, lambda length: memoryview(bytearray(length))).evaluation([0], 3)
    whole = [decode_frames(split.store, sample, range(first, first + 4)) for first in (0, 4, 8)]
    views = batch.planes.views
    alone = network_input(plane_batch(whole, views), clip)
    assert np.allclose(network_input(made_batch(batch.planes), clip), alone, atol=1e-6)


@pytest.mark.parametrize(
    ("pix_fmt", "matrix", "full"),
    [
        ("yuv420p", 6, True),
        ("yuvj420p", 6, True),
        ("yuv420p10le", 9, False),
        ("yuv444p", 7, False),
        ("yuv420p", 1, False),
    ],
)
def test_colours_of_a_copied_source(tmp_path: Path, pix_fmt: str, matrix: int, full: bool) -> None:
    def mark(stream: Any) -> None:
        stream.codec_context.colorspace = matrix
        stream.codec_context.color_range = 2 if full else 1

    colours = [np.full((64, 64, 3), colour, np.uint8) for colour in ((255, 255, 255), (200, 30, 30), (30, 60, 220))]
    convert = {"dst_colorspace": matrix, "dst_color_range": 2 if full else 1, "src_color_range": 2}
    frames = []
    for picture in colours:
        frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=pix_fmt, **convert)
        frame.colorspace, frame.color_range = matrix, 2 if full else 1
        frames.append(frame)
    options = {"preset": "ultrafast", "crf": "1"}
    split = copied_split(tmp_path, "colours.mp4", frames=frames, pix_fmt=pix_fmt, options=options, prepare=mark)
    sample = split.sample(0)
    planes = decode_frames(split.store, sample, [0, 1, 2])
    clip = ClipSettings(frames=3, resize=(64, 64), crop=64)
    shown = (
        pictures(plane_batch([planes], [centre_view(clip, (64, 64))]), clip)[0].permute(1, 2, 3, 0).numpy().astype(int)
    )
    assert np.abs(shown - np.stack(colours)).max() <= 8


def test_a_split_that_is_not_there(store: str) -> None:
    with pytest.raises(UserError, match=r"no 'test' sample \(it has: train, val\)") as refused:
        open_split(open_store(store), "test")
    assert refused.value.remedy == "name a split that it has, split=train or split=val"


def test_samples_are_numbered_through_the_shards(split: Split) -> None:
    assert len(split) == sum(split.shard_sizes) == 13 and len(split.shard_sizes) >= 3
    assert len({split.sample(number).key for number in range(13)}) == 13
    tars = [split.sample(number).tar for number in range(13)]
    assert tars == sorted(tars)
