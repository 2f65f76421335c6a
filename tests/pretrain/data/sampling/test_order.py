"""The order of training samples: every sample once a pass, the same on any topology, and never another."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.sampling.order import Draw, Order, OrderSettings, ShardSizes, mix, sample_randoms
from pretrain.engine.distributed import World
from pretrain.training.setup import lanes_of
from sharding.base.errors import UserError
from sharding.base.settings import load_settings

SEEDS = st.integers(0, 2**63)
WORDS = st.integers(0, 2**64 - 1)


@st.composite
def orders(draw: st.DrawFn, remainder: str = "carry") -> Order:
    """Few and many shards, lanes and blocks: more of each than of the others, of any sizes."""
    sizes = draw(st.lists(st.tuples(st.integers(1, 25), st.integers(1, 400)), min_size=1, max_size=12))
    shards = ShardSizes(*map(np.array, zip(*sizes, strict=True)))
    lanes, batch = draw(st.integers(1, 24)), draw(st.integers(1, 5))
    if remainder == "drop":
        lanes = min(lanes, shards.total)
        batch = min(batch, shards.total // lanes)
    return Order(shards, draw(SEEDS), lanes, batch, draw(st.integers(1, 1500)), remainder)  # type: ignore[arg-type]


def shown_by_pass(order: Order, lane_batches: int) -> dict[int, list[Counter[tuple[int, int]]]]:
    """(shard, row) of each pass, lane by lane, in the first steps of an order."""
    passes: dict[int, list[Counter[tuple[int, int]]]] = {}
    for step, lane in product(range(lane_batches), range(order.lanes)):
        draws = order.lane(step, lane)
        assert len(draws) == order.lane_batch
        for draw in draws:
            assert (draw.label, draw.repeat, draw.store) == (-1, 0, 0)
            lanes = passes.setdefault(draw.pass_number, [Counter() for _ in range(order.lanes)])
            lanes[lane][draw.shard, draw.row] += 1
    return passes


def corpus(order: Order) -> Counter[tuple[int, int]]:
    """Every (shard, row) once."""
    assert isinstance(order.shards, ShardSizes)
    return Counter((shard, row) for shard, size in enumerate(order.shards.samples.tolist()) for row in range(size))


@pytest.mark.slow
@given(orders())
def test_every_pass_shows_every_sample_once(order: Order) -> None:
    steps = -(-3 * order.samples // (order.lanes * order.lane_batch)) + 1
    passes = shown_by_pass(order, steps)
    ended = order.pass_of(steps)
    assert ended == int(order.passes(steps)) >= 3
    for number, lanes in passes.items():
        shown = sum(lanes, Counter())
        if number < ended:  # over for every lane
            assert shown == corpus(order)
        assert max(shown.values()) == 1
        before = [sum(passes[p][lane].total() for p in range(number + 1)) for lane in range(order.lanes)]
        if number < ended:
            assert max(before) - min(before) <= 1
    assert set(range(ended)) <= set(passes)


@pytest.mark.slow
@given(orders("drop"))
def test_without_remainders_every_lane_has_the_same_number_of_batches_a_pass(order: Order) -> None:
    batches = order.samples // (order.lanes * order.lane_batch)
    steps = 3 * batches
    assert [order.passes(step) for step in (0, batches, steps)] == [0, 1, 3]
    passes = shown_by_pass(order, steps)
    assert sorted(passes) == [0, 1, 2]
    for lanes in passes.values():
        assert {lane.total() for lane in lanes} == {batches * order.lane_batch}
        shown = sum(lanes, Counter())
        assert max(shown.values()) == 1 and shown <= corpus(order)
    assert [order.pass_of(step) for step in range(steps)] == [step // batches for step in range(steps)]
    assert {draw.pass_number for draw in order.lane(batches, 0)} == {1}


@pytest.mark.parametrize(("lanes", "batch"), [(4, 3), (11, 1), (1, 11)])
def test_a_pass_without_a_whole_batch_is_refused(lanes: int, batch: int) -> None:
    shards = ShardSizes(np.array([6, 4]), np.array([1, 1]))
    with pytest.raises(UserError, match=f"10 training samples .* {lanes} lanes × {batch}") as error:
        Order(shards, 0, lanes, batch, remainder="drop")
    assert "remainder=carry" in error.value.remedy
    assert len(Order(shards, 0, lanes, batch).lane(0, 0)) == batch


@pytest.mark.slow
@given(orders(), st.data())
def test_a_run_goes_on_where_it_stopped_on_any_number_of_ranks(order: Order, data: st.DataObject) -> None:
    stops = data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
    expected = [[order.lane(step, lane) for lane in range(order.lanes)] for step in range(sum(stops))]
    step = 0
    for steps in stops:
        ranks = data.draw(st.sampled_from([n for n in range(1, order.lanes + 1) if order.lanes % n == 0]))
        fresh = [pickle.loads(pickle.dumps(order)) for _ in range(ranks)]
        for _ in range(steps):
            worlds = [World(rank, ranks, device=None) for rank in range(ranks)]  # type: ignore[arg-type]
            shown = [fresh[world.rank].lane(step, lane) for world in worlds for lane in lanes_of(world, order.lanes)]
            assert shown == expected[step]
            step += 1


@given(orders(), st.data())
def test_what_was_asked_before_does_not_matter(order: Order, data: st.DataObject) -> None:
    asked = data.draw(st.lists(st.tuples(st.integers(0, 30), st.integers(0, order.lanes - 1)), min_size=1, max_size=15))
    first = {at: order.lane(*at) for at in asked}
    again = {at: order.lane(*at) for at in reversed(asked)}
    alone = {at: pickle.loads(pickle.dumps(order)).lane(*at) for at in asked}
    assert first == again == alone
    lane = asked[0][1]
    whole = order.stream(lane, 0, 7 * order.lane_batch)
    assert whole == [draw for step in range(7) for draw in order.lane(step, lane)]


@given(orders(), st.integers(0, 20))
def test_a_lane_needs_no_more_shards_than_a_block_has(order: Order, step: int) -> None:
    most = (order.block_bytes - 1) // int(order.shards.bytes.min()) + 2
    for lane in range(order.lanes):
        opened = order.open_shards(step, lane)
        assert len(set(opened)) == len(opened)
        assert {(0, draw.shard) for draw in order.lane(step, lane)} <= set(opened)
        for position in range(step * order.lane_batch, (step + 1) * order.lane_batch):
            assert len(order.shards_open(lane, position, 1)) <= most


def test_a_block_is_shown_whole_before_the_next_is_begun() -> None:
    """Shards of 10 samples and 10 bytes in blocks of 40 bytes: four at a time."""
    order = Order(ShardSizes(np.full(12, 10), np.full(12, 10)), 3, 1, 10, block_bytes=40)
    blocks = [order.stream(0, 40 * number, 40) for number in range(3)]
    shards = [{draw.shard for draw in block} for block in blocks]
    assert [len(each) for each in shards] == [4, 4, 4] and len(set.union(*shards)) == 12
    for number, block in enumerate(blocks):
        opened = list(dict.fromkeys((0, draw.shard) for draw in block))
        assert all(order.open_shards(step, 0) == opened for step in range(4 * number, 4 * number + 4))
        assert len({draw.shard for draw in block[:10]}) >= 3  # shuffled among each other


def test_passes_and_seeds_differ() -> None:
    shards = ShardSizes(np.full(4, 16), np.full(4, 16))
    streams = [
        Order(shards, seed, 1, 64, 32).stream(0, 64 * number, 64) for seed, number in product(range(5), range(5))
    ]
    assert len({tuple((draw.shard, draw.row) for draw in stream) for stream in streams}) == 25


def chi_squared(landed: list[int], places: int) -> float:
    """Of how often each place was hit against each as often as the others."""
    expected = len(landed) / places
    return float((np.square(np.bincount(landed, minlength=places) - expected) / expected).sum())


@pytest.mark.slow
@pytest.mark.parametrize(("shards", "block"), [(1, 10**6), (1, 7), (4, 10**6), (4, 7)])
def test_a_sample_comes_anywhere_in_a_pass(shards: int, block: int) -> None:
    """Also of a single shard that lanes and blocks share: which lane shows it, and when."""
    order = Order(ShardSizes(np.full(shards, 20 // shards), np.full(shards, 20 // shards)), 3, 4, 1, block)
    stretches = [[order.stream(lane, 5 * number, 5) for lane in range(4)] for number in range(1000)]
    landed = [
        5 * lane + place
        for lanes in stretches
        for lane, draws in enumerate(lanes)
        for place, draw in enumerate(draws)
        if (draw.shard, draw.row) == (0, 0)
    ]
    assert len(landed) == 1000
    assert chi_squared(landed, 20) < 43.8  # 19 degrees of freedom, p = 0.001


@pytest.mark.slow
def test_neighbours_are_parted() -> None:
    """Two samples of one shard are with the same lane as often as chance has it."""
    order = Order(ShardSizes(np.array([20]), np.array([20])), 3, 4, 1)
    together = 0
    for number in range(1000):
        lanes = [{draw.row for draw in order.stream(lane, 5 * number, 5)} for lane in range(4)]
        together += any({0, 1} <= rows for rows in lanes)
    assert abs(together - 1000 * 4 / 19) < 3.3 * (1000 * 4 / 19 * 15 / 19) ** 0.5


def test_the_samples_left_out_are_others_in_each_pass() -> None:
    order = Order(ShardSizes(np.array([23]), np.array([23])), 3, 2, 5, remainder="drop")
    left_out = []
    for number in range(1000):
        shown = {draw.row for lane in range(2) for draw in order.stream(lane, 10 * number, 10)}
        left_out += sorted(set(range(23)) - shown)
    assert len(left_out) == 3000
    assert chi_squared(left_out, 23) < 48.3  # 22 degrees of freedom, p = 0.001


def test_sizes_that_need_all_of_64_bits() -> None:
    order = Order(ShardSizes(np.full(5, 2**20), np.full(5, 2**50)), 2**64 - 1, 1000, 4, block_bytes=2**38)
    draws = order.lane(10**9, 999)
    assert len(set(draws)) == 4 and {draw.pass_number for draw in draws} == {order.pass_of(10**9)}
    assert len(order.open_shards(10**9, 999)) == 1


def test_an_order_travels_light() -> None:
    shards = ShardSizes([3, 1, 4], [1, 1, 1])
    order = Order(shards, 7, 2, 3)
    fresh = len(pickle.dumps(order))
    order.stream(0, 0, 1000)
    assert len(pickle.dumps(order)) < fresh + 100
    other = pickle.loads(pickle.dumps(order))
    assert other == order and hash(other) == hash(order) and other.stream(1, 0, 50) == order.stream(1, 0, 50)
    assert order != Order(ShardSizes([3, 1, 5], [1, 1, 1]), 7, 2, 3) != Order(ShardSizes([3, 1, 5], [1, 2, 1]), 7, 2, 3)
    assert shards.firsts.tolist() == [0, 3, 4] and shards.total == 8


@pytest.mark.parametrize("sizes", [([], []), ([1, 0], [1, 1]), ([1, 1], [1, 0]), ([1, 1], [1])])
def test_shards_without_samples_are_refused(sizes: tuple[list[int], list[int]]) -> None:
    with pytest.raises(AssertionError):
        ShardSizes(*sizes)


@pytest.mark.parametrize("wrong", ["block_bytes=0", "remainder=keep", "balance=1.5", "balance=-0.1"])
def test_settings_that_cannot_be_are_refused(wrong: str) -> None:
    assert load_settings(OrderSettings, None).remainder == "carry"
    with pytest.raises(UserError, match=wrong.partition("=")[0]):
        load_settings(OrderSettings, None, [wrong])


@given(WORDS, st.integers(0, 2**32), st.integers(0, 2**40), st.integers(1, 8))
def test_a_showings_random_numbers(seed: int, pass_number: int, number: int, count: int) -> None:
    draw = Draw(pass_number, 3, 5, label=2, repeat=1, store=1)
    result = sample_randoms(seed, draw, number, count)
    assert len(result) == count and all(0.0 <= value < 1.0 for value in result)
    assert len(set(result)) == count
    assert result == sample_randoms(seed, draw, number, count + 3)[:count]
    others = [draw._replace(**{name: getattr(draw, name) + 1}) for name in ("pass_number", "label", "repeat", "store")]
    shown = [(seed ^ 1, draw, number), (seed, draw, number + 1), *((seed, other, number) for other in others)]
    assert not any(set(result) & set(sample_randoms(*each, count)) for each in shown)
    # A sample is the same wherever its shard or row: only its number counts.
    assert result == sample_randoms(seed, draw._replace(shard=9, row=9), number, count)


def test_the_random_numbers_are_uniform() -> None:
    values = np.array([sample_randoms(0, Draw(0, 0, 0), number, 4) for number in range(2000)])
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
    shards = ShardSizes([3, 1, 4, 2], [30, 10, 40, 20])
    carried, dropped = (Order(shards, 7, 3, 2, 25, remainder) for remainder in ("carry", "drop"))  # type: ignore[arg-type]
    assert numbers(carried) == [[0, 1, 2, 2, 3, 1, 1, 0], [9, 8, 3, 5, 0, 6, 7, 9], [6, 4, 5, 7, 4, 9, 8, 7]]
    assert numbers(dropped) == [[1, 2, 2, 3, 1, 0, 8, 3], [9, 8, 5, 0, 9, 8, 7, 6], [6, 4, 4, 7, 7, 4, 0, 5]]
    expected = [0.6602633448068378, 0.7384386150649819, 0.3914788156218222]
    assert sample_randoms(1, Draw(2, 0, 0), 3, 3) == pytest.approx(expected, abs=0)


def numbers(order: Order) -> list[list[int]]:
    """The numbers of the first eight samples of each lane."""
    assert isinstance(order.shards, ShardSizes)
    firsts = order.shards.firsts.tolist()
    return [[firsts[draw.shard] + draw.row for draw in order.stream(lane, 0, 8)] for lane in range(order.lanes)]
