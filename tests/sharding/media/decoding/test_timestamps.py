"""Timestamps that repeat, lack, stray or begin anew, and the times that they become."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as trying
from hypothesis import strategies as st

from sharding.media.decoding.timestamps import DtsOnlyTimes, with_rising_times

STEP = 0.04
TIMES = st.one_of(st.none(), st.floats(-1e5, 1e5), st.integers(-5, 30).map(float))


def made_even(*times: float | None) -> list[float]:
    """The times in steps; the same whether those that are sure to rise wait for the next or not."""
    stamps = [None if t is None else t * STEP for t in times]
    sure = [a is None or b is None or a < b for a, b in zip(stamps, [*stamps, None][1:], strict=True)]
    timed = list(with_rising_times(zip(range(len(times)), stamps, sure, strict=True), STEP))
    assert [number for number, _ in timed] == list(range(len(times)))
    waiting = list(with_rising_times(zip(range(len(times)), stamps, [False] * len(times), strict=True), STEP))
    assert [time for _, time in waiting] == pytest.approx([time for _, time in timed])
    return [round(time / STEP, 6) for _, time in timed]


@pytest.mark.parametrize(
    ("values", "right"),
    [
        ([0, 1, 2, 3], [0, 1, 2, 3]),
        ([0, 3, 3.5, 9], [0, 3, 3.5, 9]),
        ([-3, -2, -1, 0], [-3, -2, -1, 0]),
        ([None, None, None], [0, 1, 2]),
        ([None] * 50, list(range(50))),
        ([None, None, 3, 4], [1, 2, 3, 4]),
        ([None, None, None, 0, 1], [-3, -2, -1, 0, 1]),
        ([5, None, None, 8], [5, 6, 7, 8]),
        ([0, 1, 1, 3], [0, 1, 2, 3]),
        ([0, 0, 2, 2, 4, 4], [0, 1, 2, 3, 4, 5]),
        ([0, 0, 0, 3, 3, 3], [0, 1, 2, 3, 4, 5]),
        ([0, 2, 1, 3, 5, 4, 6], [0, 1, 2, 3, 4, 5, 6]),
        ([0, 8, 4, 2, 1, 3, 6, 5, 7, 9], list(range(10))),
        ([0, 2, 4, 3], [0, 2, 3, 4]),
        ([0, 1, 1, 126], [0, 1, 2, 126]),
        ([0, 1, 2, 0, 4, 5], [0, 1, 2, 3, 4, 5]),
        ([0, 1, 1], [0, 1, 2]),
        ([7, 7], [7, 8]),
        ([0, 0.5, 1, 1], [0, 0.5, 1, 1.5]),
        ([], []),
    ],
)
def test_times_by_example(values: list[float | None], right: list[float]) -> None:
    assert made_even(*values) == right


def test_a_time_that_strays_moves_no_other() -> None:
    for wrong in (0.0, 500.0, 1e6, -1e6):
        times: list[float] = list(range(40))
        for place in (20, 37):
            found = made_even(*times[:place], wrong, *times[place + 1 :])
            assert found == times
    assert made_even(1e6, *range(1, 40)) == list(range(40))


def test_times_that_begin_anew_follow_those_before() -> None:
    assert made_even(*range(40), *range(40)) == list(range(80))
    assert made_even(*range(40), *range(3)) == list(range(43))
    assert made_even(*range(40), *range(20, 70)) == list(range(90))  # by less than a second
    assert made_even(*range(100, 140), *range(40), *range(9, 49)) == list(range(100, 220))


def test_times_that_were_wrong_for_a_while() -> None:
    """Those after them are as they are given."""
    assert made_even(*range(100, 140), *range(20), *range(160, 170)) == list(range(100, 170))


def test_times_that_all_are_the_same() -> None:
    assert made_even(*[3] * 100) == list(range(3, 103))


@trying(deadline=None)
@given(frames=st.lists(st.tuples(st.integers(), TIMES, st.booleans()), max_size=60))
def test_whatever_is_given_rises_and_no_frame_is_lost(frames: list[tuple[int, float | None, bool]]) -> None:
    found = list(with_rising_times(frames, STEP))
    assert [number for number, _ in found] == [number for number, *_ in frames]
    assert all(b >= a for (_, a), (_, b) in itertools.pairwise(found))


@trying(deadline=None)
@given(gaps=st.lists(st.floats(1e-3, 100), max_size=60), sure=st.booleans())
def test_times_that_rise_are_left_alone(gaps: list[float], sure: bool) -> None:
    times = list(np.cumsum(gaps))
    assert [time for _, time in with_rising_times(((0, time, sure) for time in times), STEP)] == times


def test_a_frame_that_is_sure_to_be_followed_by_a_later_one_does_not_wait() -> None:
    went_in = []

    def frames() -> Iterator[tuple[int, float, bool]]:
        for number in range(5):
            went_in.append(number)
            yield number, number * STEP, number != 2

    assert [len(went_in) for _ in with_rising_times(frames(), STEP)] == [1, 2, 4, 4, 5]


def test_a_container_of_decoding_times_alone() -> None:
    stamps = DtsOnlyTimes()
    for dts in (100, 101, 102):
        stamps.packet(dts)
    assert [stamps.frame(dts) for dts in (102, 103, 104, None)] == [100, 101, 102, None]
    assert DtsOnlyTimes(stamps.delay).frame(205) == 203  # after a seek, whatever came first
