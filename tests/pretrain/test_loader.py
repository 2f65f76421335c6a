"""Clips for the trainer: the same whatever the threads and wherever it begins, and errors told."""

from __future__ import annotations

import copy
import itertools
import shutil
from pathlib import Path

import pytest
import torch

from pretrain.data.clips import clip_frames, train_start
from pretrain.data.decode import decode_frames
from pretrain.data.loader import Loader, LoaderSettings, evaluation_clips, target, train_clip
from pretrain.data.order import Order, sample_randoms
from pretrain.data.stream import DamagedSample, Split, open_split
from pretrain.data.transforms import ClipSettings, rgb_clip, train_view
from sharding.store import open_store
from tests.pretrain.conftest import CLASSES, CLIP, SHORT

SETTINGS = ClipSettings.model_validate(CLIP)


@pytest.fixture(scope="module")
def split(store: str) -> Split:
    return open_split(open_store(store), "train")


def loader(split: Split, threads: int = 1, lanes: range = range(2), ahead: int = 2) -> Loader:
    order = Order(split.shard_sizes, seed=3, lanes=2, lane_batch=2, block=6)
    settings = LoaderSettings(threads=threads, ahead=ahead)
    return Loader(split, order, SETTINGS, settings, lanes, len(CLASSES))


def shown(loader: Loader, first: int, last: int) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    return [[(clips.video, clips.targets) for clips in lanes] for lanes in loader.steps(first, last)]


def assert_equal(left: object, right: object) -> None:
    torch.testing.assert_close(left, right, rtol=0, atol=0)


def test_threads_and_depth_change_nothing(split: Split) -> None:
    one = shown(loader(split), 0, 6)
    assert len(one) == 6 and all(len(lanes) == 2 for lanes in one)
    video, targets = one[0][0]
    assert video.shape == (2, 3, 4, 16, 16) and video.dtype == torch.uint8
    assert targets.shape == (2, len(CLASSES)) and targets.dtype == torch.float32
    assert_equal(shown(loader(split, threads=3), 0, 6), one)
    assert_equal(shown(loader(split, threads=3, ahead=9), 0, 6), one)


def test_it_begins_anywhere(split: Split) -> None:
    whole = shown(loader(split), 0, 9)
    assert_equal(shown(loader(split, threads=2), 5, 9), whole[5:])
    assert shown(loader(split), 9, 9) == []


def test_a_ranks_lanes_are_those_of_the_whole(split: Split) -> None:
    whole = shown(loader(split), 0, 4)
    assert_equal(shown(loader(split, lanes=range(1, 2)), 0, 4), [lanes[1:] for lanes in whole])


def test_clips_and_targets_are_the_samples(split: Split) -> None:
    """A whole pass, every clip made again from the order, the formulas and the planes."""
    made = loader(split)
    order = Order(split.shard_sizes, seed=3, lanes=2, lane_batch=2, block=6)
    seen = []
    for step, lanes in enumerate(made.steps(0, 4)):
        for lane, clips in enumerate(lanes):
            for row, (number, index) in enumerate(order.lane(step, lane)):
                sample = split.sample(index)
                start, *view = sample_randoms(3, number, index, 4)
                first = train_start(sample.frames, 4, start)
                planes = decode_frames(split.store, sample, clip_frames(sample.frames, first, 4, 1))
                expected = rgb_clip(planes, SETTINGS, train_view(SETTINGS, (view[0], view[1], view[2])))
                assert torch.equal(clips.video[row], expected)
                assert clips.targets[row].nonzero().flatten().tolist() == list(sample.labels)
                seen.append((number, index))
    assert {index for number, index in seen if number == 0} == set(range(13))
    assert made.wait_seconds > 0


def test_another_pass_is_another_view(split: Split) -> None:
    number = max(range(13), key=lambda index: split.sample(index).frames)
    clips = [train_clip(split, SETTINGS, 0, passed, number) for passed in range(4)]
    assert all(not torch.equal(left, right) for left, right in itertools.combinations(clips, 2))
    assert torch.equal(clips[1], train_clip(split, SETTINGS, 0, 1, number))
    assert not torch.equal(clips[1], train_clip(split, SETTINGS, 1, 1, number))


def test_evaluation_clips_of_long_and_short_videos(split: Split) -> None:
    for number in range(13):
        sample = split.sample(number)
        clips = evaluation_clips(split, SETTINGS, number, 5)
        short = sample.frames == SHORT
        assert clips.shape == (1 if short else 5, 3, 4, 16, 16)
        if short:
            assert torch.equal(clips[0, :, 0], clips[0, :, 3])  # frame 0 again after the last
            assert not torch.equal(clips[0, :, 0], clips[0, :, 1])


def test_labels_share_the_weight() -> None:
    assert target((1,), 4).tolist() == [0, 1, 0, 0]
    assert target((0, 3), 4).tolist() == [0.5, 0, 0, 0.5]
    row = target((0, 1, 2), 4)
    assert row.sum() == pytest.approx(1) and row[3] == 0 and row.dtype == torch.float32


@pytest.mark.parametrize("threads", [1, 3])
def test_damage_reaches_the_caller(store: str, tmp_path: Path, threads: int) -> None:
    copy = open_store(str(shutil.copytree(store, tmp_path / "store")))
    damaged = open_split(copy, "train")
    sample = damaged.sample(6)
    body = bytearray(copy.get(sample.tar))
    for offset in sample.packet_offset:
        body[sample.offset + offset + 6] ^= 0xFF
    copy.put(sample.tar, bytes(body))
    with pytest.raises(DamagedSample, match=sample.key):
        shown(loader(damaged, threads), 0, 4)


def test_a_caller_that_leaves_early_leaves_no_work_behind(split: Split) -> None:
    steps = loader(split, threads=2).steps(0, 1000)
    next(steps)
    steps.close()
    assert list(steps) == []


def test_labels_without_the_packets(split: Split) -> None:
    numbers = range(len(split))
    assert [split.labels(number) for number in numbers] == [split.sample(number).labels for number in numbers]


@pytest.mark.parametrize(("block", "kept"), [(1, 64), (8192, 2 * (128 + 1)), (10**9, 1000)])
def test_the_records_of_two_blocks_are_kept(split: Split, block: int, kept: int) -> None:
    large = copy.copy(split)
    large.shard_sizes = (64,) * 1000
    large.keep_for(block)
    assert large.records_kept == kept
