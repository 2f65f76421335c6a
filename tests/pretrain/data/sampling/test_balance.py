"""Class balancing: each class its share of a pass, each sample of a class the same, exact over the passes."""

from __future__ import annotations

import pickle
from collections import Counter
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.sampling import balance as module
from pretrain.data.sampling.balance import Balance
from pretrain.data.sampling.order import Draw, Order, ShardSizes
from sharding.base.errors import UserError

Histograms = list[dict[int, int]]
HISTOGRAMS = st.lists(
    st.dictionaries(st.sampled_from([0, 1, 2, 5, 400]), st.integers(1, 12), min_size=1), min_size=1, max_size=8
)
SEEDS = st.integers(0, 2**63)


def balanced(histograms: Histograms, balance: float, samples: list[int] | None = None) -> Balance:
    """As many samples as labels, unless given."""
    sizes = samples or [max(1, sum(histogram.values())) for histogram in histograms]
    return Balance(ShardSizes(np.array(sizes), np.array(sizes) * 10), histograms, balance)


def totals(histograms: Histograms) -> Counter[int]:
    """Samples of each label."""
    return sum((Counter(histogram) for histogram in histograms), Counter())


def shown(shards: Balance, seed: int, pass_number: int) -> Counter[tuple[int, int, int]]:
    """How often a pass shows each (shard, row, label), straight from the shards' showings."""
    result: Counter[tuple[int, int, int]] = Counter()
    seen = set()
    for shard, count in enumerate(shards.showings(seed, pass_number).tolist()):
        columns = shards.shown(seed, pass_number, shard, np.arange(count))
        for row, label, repeat in zip(*(column.tolist() for column in columns), strict=True):
            assert repeat == result[shard, row, label]
            result[shard, row, label] += 1
            seen.add((shard, row, label, repeat))
    assert len(seen) == sum(result.values()) == shards.total
    return result


@given(HISTOGRAMS, st.floats(0.01, 1), SEEDS, st.integers(0, 10**6))
def test_a_pass_gives_each_class_its_share_and_each_sample_of_it_the_same(
    histograms: Histograms, balance: float, seed: int, pass_number: int
) -> None:
    shards = balanced(histograms, balance)
    result = shown(shards, seed, pass_number)
    classes = totals(histograms)
    assert shards.classes.tolist() == sorted(classes)
    weights = {label: samples ** (1 - balance) for label, samples in classes.items()}
    for label, share in zip(shards.classes.tolist(), shards.shares, strict=True):
        assert share == pytest.approx(shards.total * weights[label] / sum(weights.values()))
        rows = [
            result[shard, row, label]
            for shard, histogram in enumerate(histograms)
            for row in range(histogram.get(label, 0))
        ]
        assert abs(sum(rows) - share) < 1
        assert max(rows) - min(rows) <= 1
    # Nothing else is shown: every row is one of the shard's with this label.
    assert all(0 <= row < histograms[shard].get(label, 0) for shard, row, label in result)


@pytest.mark.slow
@given(HISTOGRAMS, st.sampled_from([0.3, 0.5, 1.0]), SEEDS)
def test_over_the_passes_every_sample_comes_to_its_due(histograms: Histograms, balance: float, seed: int) -> None:
    shards, passes = balanced(histograms, balance), 60
    result = sum((shown(shards, seed, number) for number in range(passes)), Counter())
    due = dict(zip(shards.classes.tolist(), shards.shares / shards.samples, strict=True))
    for label, samples in totals(histograms).items():
        rows = [
            result[shard, row, label]
            for shard, histogram in enumerate(histograms)
            for row in range(histogram.get(label, 0))
        ]
        # The phases of 60 passes, multiples of the golden ratio, miss the length of an interval by 2.27 at most.
        assert abs(sum(rows) - passes * due[label] * samples) < 2.3
        assert max(abs(row - passes * due[label]) for row in rows) < 2.3


@pytest.mark.slow
@given(HISTOGRAMS, st.integers(1, 9), st.integers(1, 3), st.integers(1, 400), SEEDS)
def test_an_order_shows_a_balanced_pass(
    histograms: Histograms, lanes: int, batch: int, block_bytes: int, seed: int
) -> None:
    shards = balanced(histograms, 1.0)
    order = Order(shards, seed, lanes, batch, block_bytes)
    passes: dict[int, Counter[Draw]] = {}
    steps = -(-2 * shards.total // (lanes * batch)) + 1
    for step, lane in product(range(steps), range(lanes)):
        for draw in order.lane(step, lane):
            passes.setdefault(draw.pass_number, Counter())[draw] += 1
    for number in range(2):
        assert max(passes[number].values()) == 1
        places = Counter((draw.shard, draw.row, draw.label) for draw in passes[number])
        assert places == shown(shards, seed, number)


@pytest.mark.parametrize("seed", range(6))
def test_the_samples_of_a_class_shown_in_every_second_pass_take_turns(seed: int) -> None:
    """Which passes show the class and which of its samples is shown do not go together."""
    shards = balanced([{0: 3, 1: 1, 2: 1, 3: 1}], 1.0, samples=[2])
    assert shards.shares.tolist() == [0.5] * 4
    found = sum((shown(shards, seed, number) for number in range(600)), Counter())
    assert [found[0, row, 0] for row in range(3)] == pytest.approx([100] * 3, abs=3.1)


def test_classes_become_equally_frequent() -> None:
    """Of 90 %, 9 % and 1 % of a split; with the exponent 1/2, as their roots."""
    histograms = [{0: 90, 1: 9, 2: 1} for _ in range(10)]
    for balance, weights in [(1.0, np.ones(3)), (0.5, np.sqrt([90, 9, 1]))]:
        order = Order(balanced(histograms, balance), 1, 1, 1)
        labels = Counter(draw.label for draw in order.stream(0, 0, 1000))
        expected = (1000 * weights / weights.sum()).tolist()
        assert [labels[label] for label in range(3)] == pytest.approx(expected, abs=1)


def test_a_sample_of_two_labels_counts_under_each() -> None:
    """Three samples, one of them of both labels: it is row 0 of label 0 as well as of label 7."""
    shards = balanced([{0: 1, 7: 3}], 1.0, samples=[3])
    result = sum((shown(shards, 5, number) for number in range(100)), Counter())
    assert {label for _, _, label in result} == {0, 7}
    assert result[0, 0, 0] == pytest.approx(150, abs=2)
    assert [result[0, row, 7] for row in range(3)] == pytest.approx([50] * 3, abs=4)


def test_shards_without_a_showing_are_not_opened() -> None:
    """A frequent class spread over many shards, of which a pass has room for few."""
    shards = balanced([{0: 1} for _ in range(50)] + [{1 + label: 1} for label in range(50)], 1.0)
    order = Order(shards, 3, 1, 1)
    opened = {draw.shard for draw in order.stream(0, 0, shards.total)}
    assert len(opened & set(range(50))) == round(shards.shares[0]) == 2
    assert len(order.open_shards(0, 0)) == len(opened)
    # Over the passes all of them are.
    assert set(range(50)) <= {draw.shard for draw in order.stream(0, 0, 60 * shards.total)}


@pytest.mark.parametrize("at_once", [1, 3, 7])
def test_many_shards_are_planned_in_pieces(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = balanced([{label: 1 + (shard * label) % 5 for label in range(shard % 4)} for shard in range(20)], 0.7)
    whole = shards.showings(1, 2).tolist()
    assert whole[0] == 0 and sum(whole) == shards.total
    monkeypatch.setattr(module, "_AT_ONCE", at_once)
    assert shards.showings(1, 2).tolist() == whole


def test_counts_that_need_all_of_64_bits() -> None:
    """Half a thousand million samples, of three: what is planned is still whole, and in proportion."""
    shards = balanced([{0: 2**28, 1: 3}, {0: 2**28 - 1}, {1: 4, 2: 10**6 + 3}], 0.3)
    assert shards.shares.sum() == shards.total > 2**29
    weights = np.array([2.0**29 - 1, 7, 10**6 + 3]) ** 0.7
    assert shards.shares == pytest.approx(shards.total * weights / weights.sum(), rel=1e-6)
    counts = np.array([shards.showings(2**64 - 1, number) for number in range(30)])
    assert (counts.sum(1) == shards.total).all() and (counts > 0).all()
    halves = (shards.shares[0] / 2, shards.shares[2])
    assert counts.mean(0) == pytest.approx([halves[0], halves[0], halves[1]], rel=1e-3)


def test_it_says_by_how_much_samples_repeat() -> None:
    shards = balanced([{0: 90, 1: 10}], 1.0)
    assert shards.describe() == (
        "balance=1: passes of 100 showings, in which samples repeat and are left out by design: each is shown "
        "5 times a pass for class 1 (10 samples), down to 0.556 times a pass for class 0 (90 samples)"
    )
    assert "for 'surfing' (10 samples), down to 0.556 times a pass for 'golf'" in shards.describe(["golf", "surfing"])


def test_without_labels_there_is_nothing_to_balance() -> None:
    with pytest.raises(UserError, match="no training sample has a label") as error:
        balanced([{}, {3: 0}], 1.0, samples=[2, 2])
    assert "balance=0" in error.value.remedy
    with pytest.raises(AssertionError):
        balanced([{0: 1}], 1.0, samples=[1, 1])


def test_the_balanced_order_is_what_it_always_was() -> None:
    """Pinned: another value here means that no balanced run can be resumed or repeated by this version."""
    shards = balanced([{0: 2, 1: 1}, {1: 1}, {0: 4}, {0: 2}], 0.5)
    assert shards._share_ends.tolist() == [0, 28633115306, 42949672960]
    order = Order(shards, 7, 2, 3, 100)
    assert order.lane(1, 0) == [Draw(0, 0, 0, 1, 0), Draw(0, 0, 0, 1, 1), Draw(1, 0, 0, 1, 0)]
    assert order.lane(1, 1) == [Draw(0, 2, 2, 0, 0), Draw(0, 2, 0, 0, 0), Draw(1, 3, 1, 0, 0)]
    assert pickle.loads(pickle.dumps(order)).lane(1, 1) == order.lane(1, 1)
