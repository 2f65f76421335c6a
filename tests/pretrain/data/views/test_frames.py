"""Which frames make a clip: the recipe's formulas, for every length and rate."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pretrain.data.views.frames import (
    clip_frames,
    clip_frames_at,
    evaluation_starts,
    is_looped,
    needed_frames,
    needed_frames_at,
    train_start,
)

UNIFORM = st.floats(0.0, 1.0, exclude_max=True)
RATES = st.sampled_from([Fraction(10), Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(60)])
WANTED = st.sampled_from([Fraction(1), Fraction(15, 2), Fraction(12), Fraction(25), Fraction(30), Fraction(50)])
TICKS = st.sampled_from([None, 1000, 12800, 90000])  # a second's; None: times are not rounded


def times_of(frames: int, rate: Fraction, ticks: int | None, first: float = 0.0) -> list[float]:
    """When frames of a constant rate are shown, as a container has it."""
    exact = [number / rate for number in range(frames)]
    return [first + float(time if ticks is None else Fraction(round(time * ticks), ticks)) for time in exact]


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
    assert is_looped(15, 16) and not is_looped(16, 16)


@given(st.integers(2, 200), RATES, WANTED, TICKS, st.integers(1, 40), st.data())
def test_a_constant_rate_has_a_closed_form(
    frames: int, rate: Fraction, fps: Fraction, ticks: int | None, length: int, data: st.DataObject
) -> None:
    """Whatever ticks the times are rounded to, a millisecond of Matroska's included."""
    times = times_of(frames, rate, ticks, first=data.draw(st.sampled_from([0.0, 1.25, 1e4])))
    start = data.draw(st.integers(0, frames - 1))
    steps = [start + i * rate / fps for i in range(length)]
    assume(ticks is None or steps[-1] < frames)  # rounded times are not a constant rate's, loop after loop
    # Times on the very edge between two frames may round either way; those on a frame's own may not.
    slack = [abs(step - round(step)) / rate for step in steps]
    assume(all(each == 0 or each > Fraction(4, 1000) for each in slack))
    assert clip_frames_at(times, start, length, float(fps)) == [math.floor(step) % frames for step in steps]
    needed = math.ceil((length - 1) * rate / fps) + 1
    assert min(needed_frames_at(times, length, float(fps)), frames + 1) == min(needed, frames + 1)


@given(st.integers(1, 200), st.integers(1, 40), st.integers(1, 4), st.data())
def test_a_fraction_of_the_rate_is_a_stride(frames: int, length: int, stride: int, data: st.DataObject) -> None:
    times = times_of(frames, Fraction(24000, 1001), 90000)
    fps = 24000 / 1001 / stride
    needed = needed_frames_at(times, length, fps)
    assert is_looped(frames, needed) == is_looped(frames, needed_frames(length, stride))
    if frames > 1:
        start = data.draw(st.integers(0, frames - 1))
        assert clip_frames_at(times, start, length, fps) == clip_frames(frames, start, length, stride)


@given(st.lists(st.floats(0.02, 0.5), min_size=1, max_size=80), st.integers(1, 30), st.floats(1.0, 60.0), st.data())
def test_frames_of_any_rate_are_those_shown(
    intervals: list[float], length: int, fps: float, data: st.DataObject
) -> None:
    times = np.cumsum([3.5, *intervals])
    frames = len(times)
    needed = needed_frames_at(times, length, fps)
    assert 1 <= needed <= frames + 1
    if needed > frames:
        assert times[-1] < times[0] + (length - 1) / fps
        return
    start = data.draw(st.integers(0, frames - needed))
    shown = clip_frames_at(times, start, length, fps)
    assert shown[0] == start and shown == sorted(shown)
    for i, number in enumerate(shown):
        wanted = times[start] + i / fps
        assert times[number] <= wanted + 0.002
        assert number == frames - 1 or times[number + 1] > wanted
    last = frames - needed + 1  # the next start does not fit
    assert last == frames or times[last] + (length - 1) / fps > times[-1]


def test_a_short_video_of_any_rate_is_looped() -> None:
    assert clip_frames_at([0.0, 0.1, 0.2], 0, 8, 10.0) == [0, 1, 2, 0, 1, 2, 0, 1]
    assert clip_frames_at([0.0, 0.1, 0.4], 0, 7, 10.0) == [0, 1, 1, 1, 2, 2, 0]  # the last is shown for 0.2 s
    assert clip_frames_at([7.0], 0, 3, 10.0) == [0, 0, 0] and needed_frames_at([7.0], 3, 10.0) == 2
    assert needed_frames_at([7.0], 1, 10.0) == 1
    assert is_looped(3, needed_frames_at([0.0, 0.1, 0.2], 4, 10.0))
    assert not is_looped(3, needed_frames_at([0.0, 0.1, 0.2], 3, 10.0))
