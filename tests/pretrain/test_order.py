"""The order of training samples: every sample once a pass, the same on any topology, and never another."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.order import Order, mix, pass_order, sample_randoms
from pretrain.engine.world import World
from pretrain.trainer import lanes_of

SIZES = st.lists(st.integers(0, 40), max_size=12)
SEEDS = st.integers(0, 2**63)
WORDS = st.integers(0, 2**64 - 1)


@given(SIZES, SEEDS, st.integers(0, 1000), st.integers(1, 60))
def test_a_pass_is_a_permutation(sizes: list[int], seed: int, number: int, block: int) -> None:
    order = pass_order(sizes, seed, number, block)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(sum(sizes)))


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12), SEEDS, st.integers(1, 60))
def test_samples_stay_in_the_block_of_their_shards(sizes: list[int], seed: int, block: int) -> None:
    ends = np.cumsum(sizes)
    shard_of = np.searchsorted(ends, pass_order(sizes, seed, 0, block), side="right")
    # A shard is laid out in one stretch, so its samples are no farther apart than that and two blocks.
    for shard, size in enumerate(sizes):
        positions = np.flatnonzero(shard_of == shard)
        assert positions[-1] // block - positions[0] // block <= (size - 1) // block + 1


@given(SEEDS, st.integers(0, 1000))
def test_passes_and_seeds_differ(seed: int, number: int) -> None:
    sizes = [16] * 4
    order = pass_order(sizes, seed, number, 32)
    assert not np.array_equal(order, pass_order(sizes, seed, number + 1, 32))
    assert not np.array_equal(order, pass_order(sizes, seed + 1, number, 32))


def test_samples_are_spread_evenly() -> None:
    """Where sample 0 lands over many passes: every place about equally often."""
    landed = [int(np.flatnonzero(pass_order([5] * 4, 3, number, 20) == 0)[0]) for number in range(2000)]
    counts = np.bincount(landed, minlength=20)
    assert (np.square(counts - 100) / 100).sum() < 43.8  # chi-squared, 19 degrees of freedom, p = 0.001


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=5),
    SEEDS,
    st.integers(1, 8),
    st.integers(1, 7),
    st.integers(1, 12),
)
def test_steps_walk_through_the_passes_with_nothing_lost(
    sizes: list[int], seed: int, lanes: int, lane_batch: int, steps: int
) -> None:
    order = Order(tuple(sizes), seed, lanes, lane_batch, block=6)
    shown = [pair for step in range(steps) for lane in range(lanes) for pair in order.lane(step, lane)]
    assert len(shown) == steps * lanes * lane_batch
    for number in range(len(shown) // order.samples + 1):
        # Consecutive: a batch that crosses the end of a pass begins the next one.
        part = shown[number * order.samples : (number + 1) * order.samples]
        assert {pair[0] for pair in part} <= {number}
        expected = pass_order(sizes, seed, number, 6)[: len(part)]
        assert [pair[1] for pair in part] == expected.tolist()


@given(st.sampled_from([1, 2, 3, 4, 6, 12]), st.integers(0, 30))
def test_ranks_do_not_change_what_a_step_shows(ranks: int, step: int) -> None:
    order = Order((7, 3, 11), 5, lanes=12, lane_batch=2, block=8)
    worlds = [World(rank, ranks, device=None) for rank in range(ranks)]  # type: ignore[arg-type]
    by_lane = {lane: order.lane(step, lane) for world in worlds for lane in lanes_of(world, 12)}
    assert list(by_lane) == list(range(12))
    whole = Order((7, 3, 11), 5, lanes=1, lane_batch=24, block=8).lane(step, 0)
    assert [pair for lane in range(12) for pair in by_lane[lane]] == whole


@given(WORDS, st.integers(0, 2**32), st.integers(0, 2**40), st.integers(1, 8))
def test_a_samples_random_numbers(seed: int, number: int, sample: int, count: int) -> None:
    found = sample_randoms(seed, number, sample, count)
    assert len(found) == count and all(0.0 <= value < 1.0 for value in found)
    assert len(set(found)) == count
    assert found == sample_randoms(seed, number, sample, count + 3)[:count]
    assert not set(found) & set(sample_randoms(seed ^ 1, number, sample, count))
    assert not set(found) & set(sample_randoms(seed, number + 1, sample, count))
    assert not set(found) & set(sample_randoms(seed, number, sample + 1, count))


def test_the_random_numbers_are_uniform() -> None:
    values = np.array([sample_randoms(0, 0, sample, 4) for sample in range(2000)])
    assert np.abs(values.mean(0) - 0.5).max() < 0.03
    assert np.abs(values.var(0) - 1 / 12).max() < 0.006
    assert np.abs(np.corrcoef(values.T) - np.eye(4)).max() < 0.08


def reference_mix(*words: int) -> int:
    """SplitMix64's finaliser over the words, in Python's integers."""
    whole, state = 2**64 - 1, 0
    for word in words:
        state = ((state ^ word) + 0x9E3779B97F4A7C15) & whole
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & whole
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & whole
        state ^= state >> 31
    return state


@given(st.lists(WORDS, min_size=1, max_size=5))
def test_the_hash_is_splitmix64_chained(words: list[int]) -> None:
    assert mix(*words).tolist() == [reference_mix(*words)]
    assert mix(*words[:-1], np.asarray([words[-1], 7], np.uint64)).tolist() == [
        reference_mix(*words),
        reference_mix(*words[:-1], 7),
    ]


def test_the_order_is_what_it_always_was() -> None:
    """Pinned: another value here means that no run can be resumed or repeated by this version."""
    assert mix(0).tolist() == [16294208416658607535]  # SplitMix64's first output from seed 0
    assert mix(1, 2, 3).tolist() == [15020427595393229491]
    assert pass_order([3, 1, 4, 2], 7, 0, 4).tolist() == [0, 8, 1, 2, 5, 4, 9, 3, 6, 7]
    assert pass_order([3, 1, 4, 2], 7, 1, 4).tolist() == [3, 0, 1, 2, 6, 5, 7, 4, 8, 9]
    expected = [0.07166370763826013, 0.6503755621876899, 0.6486766921488195]
    assert sample_randoms(1, 2, 3, 3) == pytest.approx(expected, abs=0)
