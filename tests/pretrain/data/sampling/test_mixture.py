"""Several stores in one stream: their ratio exact in every period, each in the sequence of its own order."""

from __future__ import annotations

import pickle
from collections import Counter
from math import gcd

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.sampling.mixture import Mixture
from pretrain.data.sampling.order import Draw, Order, ShardSizes
from sharding.base.errors import UserError


def mixture(sizes: list[list[int]], weights: list[int], seed: int = 7, lanes: int = 3, batch: int = 2) -> Mixture:
    """Of stores with shards of so many samples, of 10 bytes each, in blocks of 60."""
    shards = [ShardSizes(np.array(store), np.array(store) * 10) for store in sizes]
    orders = tuple(Order(each, seed, lanes, batch, 60, store=number) for number, each in enumerate(shards))
    return Mixture(orders, tuple(weights), seed)


@st.composite
def mixtures(draw: st.DrawFn) -> Mixture:
    """Two to four stores of a few shards."""
    stores = draw(st.integers(2, 4))
    sizes = [draw(st.lists(st.integers(1, 12), min_size=1, max_size=5)) for _ in range(stores)]
    weights = [draw(st.integers(1, 9)) for _ in range(stores)]
    return mixture(sizes, weights, draw(st.integers(0, 2**63)), draw(st.integers(1, 8)), draw(st.integers(1, 7)))


@given(mixtures(), st.integers(0, 10**6))
def test_every_period_has_the_ratio(mixed: Mixture, number: int) -> None:
    assert [part * gcd(*mixed.weights) for part in mixed.parts] == list(mixed.weights)
    for lane in range(mixed.orders[0].lanes):
        draws = mixed.stream(lane, number * mixed.period, mixed.period)
        counts = Counter(draw.store for draw in draws)
        assert [counts[store] for store in range(len(mixed.orders))] == list(mixed.parts)


@pytest.mark.slow
@given(mixtures(), st.integers(0, 50), st.integers(1, 40))
def test_each_store_comes_in_its_own_order(mixed: Mixture, first: int, count: int) -> None:
    for lane in range(mixed.orders[0].lanes):
        whole = mixed.stream(lane, 0, first + count)
        assert mixed.stream(lane, first, count) == whole[first:]
        for order in mixed.orders:
            mine = [draw for draw in whole if draw.store == order.store]
            assert mine == order.stream(lane, 0, len(mine))


@given(mixtures(), st.integers(0, 60), st.integers(1, 5))
def test_steps_and_the_shards_they_need(mixed: Mixture, step: int, steps: int) -> None:
    batch = mixed.orders[0].lane_batch
    for lane in range(mixed.orders[0].lanes):
        draws = [draw for at in range(step, step + steps) for draw in mixed.lane(at, lane)]
        assert draws == mixed.stream(lane, step * batch, steps * batch)
        opened, used = mixed.open_shards(step, lane), {(draw.store, draw.shard) for draw in draws[:batch]}
        assert used <= set(opened) and len(set(opened)) == len(opened)
        assert {store for store, _ in opened} == {store for store, _ in used}
    assert pickle.loads(pickle.dumps(mixed)) == mixed


@pytest.mark.slow
def test_stores_are_mixed_evenly_and_each_lane_in_its_own_way() -> None:
    """Of 3 and 1, the 1 comes at any of the four places as often."""
    mixed = mixture([[50], [50]], [6, 2], lanes=4)
    assert mixed.parts == (3, 1)
    stores = np.array([[draw.store for draw in mixed.stream(lane, 0, 4000)] for lane in range(4)])
    counts = stores.reshape(4, 1000, 4).sum(1)
    assert (np.square(counts - 250) / 250).sum(1).max() < 16.3  # chi-squared, 3 degrees of freedom, p = 0.001
    alike = (stores[0] == stores[1]).mean()
    assert 0.58 < alike < 0.67  # 5/8 where they have nothing to do with each other


def test_passes_count_how_often_a_store_was_shown() -> None:
    mixed = mixture([[100], [10]], [3, 1], lanes=2, batch=4)
    assert mixed.passes_by_store(25) == [1.5, 5.0] and mixed.passes(25) == 1.5
    draws = [draw for step in range(25) for lane in range(2) for draw in mixed.lane(step, lane)]
    assert Counter(draw.pass_number for draw in draws if draw.store == 1) == dict.fromkeys(range(5), 10)


def test_it_says_how_often_a_small_store_repeats() -> None:
    assert mixture([[1000], [10]], [3, 1]).describe(["sports", "extra"]) == (
        "a pass of sports takes the longest; sports: 3 of every 4, a pass is 1,000 samples; "
        "extra: 1 of every 4, a pass is 10 samples, 33.3 times in each of those"
    )


@pytest.mark.parametrize(
    ("weights", "said"), [([1], "2 stores have the weights 1"), ([3, 0], "3, 0"), ([65536, 1], "65,537 samples")]
)
def test_weights_that_cannot_be_are_refused(weights: list[int], said: str) -> None:
    with pytest.raises(UserError, match=said) as error:
        mixture([[3], [3]], weights)
    assert "3 and 1" in error.value.remedy


def test_the_mixed_order_is_what_it_always_was() -> None:
    """Pinned: another value here means that no run of several stores can be resumed or repeated by this version."""
    mixed = mixture([[3, 1, 4, 2], [2, 2]], [2, 1])
    assert mixed.lane(4, 0) == [Draw(2, 0, 1, store=1), Draw(2, 0, 1, store=0)]
    assert mixed.lane(4, 2) == [Draw(1, 3, 0, store=0), Draw(1, 2, 0, store=0)]
    stores = [draw.store for draw in mixed.stream(1, 0, 18)]
    assert stores == [0, 0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 1, 0, 1, 0, 1, 0, 0]
