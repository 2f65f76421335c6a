"""Which frames make a clip: the recipe's formulas, for every length."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.clips import clip_frames, evaluation_starts, key_groups, needed_frames, train_start

UNIFORM = st.floats(0.0, 1.0, exclude_max=True)


@given(st.integers(1, 64), st.integers(1, 8))
def test_needed_frames_is_the_span(length: int, stride: int) -> None:
    needed = needed_frames(length, stride)
    frames = clip_frames(needed, 0, length, stride)
    assert frames == list(range(0, needed, stride)) and frames[-1] == needed - 1


@given(st.integers(1, 500), st.integers(1, 100), UNIFORM)
def test_a_training_clip_fits_the_video(frames: int, needed: int, uniform: float) -> None:
    start = train_start(frames, needed, uniform)
    assert 0 <= start <= max(frames - needed, 0)
    assert start == 0 or start + needed <= frames


@given(st.integers(1, 60), st.integers(1, 60))
def test_every_training_start_comes_equally_often(needed: int, room: int) -> None:
    tries = 20 * (room + 1)
    starts = [train_start(needed + room, needed, (i + 0.5) / tries) for i in range(tries)]
    assert {start: starts.count(start) for start in starts} == dict.fromkeys(range(room + 1), 20)


@given(st.integers(1, 10**6), st.integers(1, 200), st.integers(2, 100))
def test_evaluation_clips_are_uniform_with_both_ends(frames: int, needed: int, clips: int) -> None:
    starts = evaluation_starts(frames, needed, clips)
    if frames <= needed:
        assert starts == [0]
        return
    assert starts == [math.floor(i * (frames - needed) / (clips - 1)) for i in range(clips)]
    assert starts[0] == 0 and starts[-1] == frames - needed


@pytest.mark.parametrize(
    ("frames", "needed", "clips", "starts"),
    [
        (100, 16, 10, [0, 9, 18, 28, 37, 46, 56, 65, 74, 84]),
        (17, 16, 4, [0, 0, 0, 1]),
        (16, 16, 10, [0]),
        (5, 16, 10, [0]),
        (100, 16, 1, [42]),
        (17, 16, 1, [0]),
    ],
)
def test_evaluation_starts_worked_out_by_hand(frames: int, needed: int, clips: int, starts: list[int]) -> None:
    assert evaluation_starts(frames, needed, clips) == starts


def test_a_short_video_is_looped() -> None:
    assert clip_frames(3, 0, 8, 1) == [0, 1, 2, 0, 1, 2, 0, 1]
    assert clip_frames(3, 0, 4, 2) == [0, 2, 1, 0]
    assert clip_frames(20, 5, 4, 3) == [5, 8, 11, 14]


def test_groups_begin_at_key_frames() -> None:
    assert key_groups([True, False, False, True, True, False]) == [0, 3, 4]
