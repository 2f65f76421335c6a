"""Slow ranks are named, whatever the others' pace, and nobody else is."""

from __future__ import annotations

import math
import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.resilience.stragglers import SlowRank, slow_ranks

seconds = st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=40)


def hosts(count: int) -> list[str]:
    return [f"host{rank // 8}" for rank in range(count)]


def test_slow_ranks_are_named_the_slowest_first() -> None:
    found = slow_ranks([1.0, 2.0, 1.0, 1.0, 3.0, 1.29], ["a", "a", "b", "b", "c", "c"])
    median = (1.0 + 1.29) / 2
    assert found == [SlowRank(4, "c", 3 / median), SlowRank(1, "a", 2 / median)]


@given(seconds, st.floats(1.01, 5))
def test_they_are_those_above_the_factor(own: list[float], factor: float) -> None:
    slow_ones = slow_ranks(own, hosts(len(own)), factor)
    median = statistics.median(own)
    assert {slow.rank for slow in slow_ones} == {rank for rank, each in enumerate(own) if each > factor * median}
    assert all(slow.host == f"host{slow.rank // 8}" for slow in slow_ones)
    assert all(slow.times == pytest.approx(own[slow.rank] / median) for slow in slow_ones)
    assert [slow.times for slow in slow_ones] == sorted((slow.times for slow in slow_ones), reverse=True)
    assert 2 * len(slow_ones) <= len(own)  # never the half that makes the median


@given(seconds, st.integers(-8, 8))
def test_the_pace_of_all_does_not_matter(own: list[float], power: int) -> None:
    names = hosts(len(own))
    scaled = [each * 2.0**power for each in own]
    assert slow_ranks(scaled, names) == slow_ranks(own, names)


@given(seconds, st.data())
def test_what_is_not_known_counts_nowhere(own: list[float], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(own)))
    gap = data.draw(st.sampled_from([math.nan, math.inf]))
    found = slow_ranks([*own[:place], gap, *own[place:]], ["x"] * (len(own) + 1))
    expected = slow_ranks(own, ["x"] * len(own))
    assert [(slow.rank - (slow.rank > place), slow.times) for slow in found] == [
        (slow.rank, slow.times) for slow in expected
    ]


@pytest.mark.parametrize("own", [[], [0.0, 0.0, 0.0], [0.0, 0.0, 5.0], [math.nan], [7.0]])
def test_without_a_pace_nobody_is_slow(own: list[float]) -> None:
    assert slow_ranks(own, hosts(len(own))) == []
