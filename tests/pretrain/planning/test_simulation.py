"""The plan's arithmetic beside a simulation of 1,024 ranks: order, reads, shard bottlenecks, interruptions."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.data.sampling.order import Order, ShardSizes
from pretrain.engine.distributed import World
from pretrain.planning.estimate import Cluster, estimate
from pretrain.planning.reading import hottest_shard_clips
from pretrain.planning.workload import StoreFacts, Workload
from pretrain.training.setup import lanes_of
from tests.pretrain.planning.conftest import load_of, on_a
from tests.pretrain.planning.simulated_cluster import simulate_run, simulate_steps

RANKS = 1024
LLAMA_3 = 419 / (54 * 16_384)
STORE = StoreFacts(2_000_000, 400, 300, 600, 5_000, 2_000_000 * 300 * 600 / 5_000)


def big(**changes: object) -> tuple[Workload, Cluster]:
    """1,024 lanes on 128 nodes of 8 GPUs."""
    load = load_of(lanes=RANKS, lane_batch=8, steps=30_000, store=STORE)
    return replace(load, **changes), on_a(nodes=128, jitter=0.01, per_gpu_day=LLAMA_3)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("limit", ["GPUs", "a node's reading", "one shard"])
def test_a_step_of_1024_ranks_is_as_long_as_the_plan_says(limit: str) -> None:
    """Within 3 %; where one shard is the limit, whose clips vary from step to step, within 20 %."""
    load, on = big()
    if limit == "a node's reading":
        on = replace(on, store=20e6)
    if limit == "one shard":
        on = replace(on, shard=0.2e6)
    expected = estimate(load, on)
    assert expected.binds == limit
    seen = simulate_steps(load, on, first=100, steps=5)
    assert seen.seconds.mean() == pytest.approx(expected.step, rel=0.2 if limit == "one shard" else 0.03)


def test_shards_are_read_by_few_lanes_while_there_are_enough_of_them() -> None:
    load, on = big()
    seen = simulate_steps(load, on, first=0, steps=3)
    assert seen.readers <= 3  # neighbours in a pass meet at a shard that their stretches' ends cut
    assert 4 <= seen.open_shards <= 11  # blocks of 256 MiB, of shards of 48 to 96 MB; of two blocks at the most
    assert seen.node_bytes.max() == 8 * 8 * load.clip_bytes


@pytest.mark.slow
def test_fewer_shards_than_lanes_are_a_bottleneck_that_the_plan_foresees() -> None:
    total = STORE.total_bytes / 10
    facts = replace(STORE, samples=STORE.samples // 10, shards=64, shard_bytes=total / 64)
    load, on = big(store=facts)
    seen = simulate_steps(load, replace(on, shard=1e6), first=50, steps=3)
    foreseen = hottest_shard_clips(load.lanes, load.lane_batch, 64, facts.shard_bytes, load.block_bytes)
    assert foreseen == 128 and seen.readers >= 16
    assert foreseen <= seen.hottest <= 1.6 * foreseen  # a third larger than the mean, and cut at both ends
    assert estimate(load, replace(on, shard=1e6)).binds == "one shard"


@pytest.mark.parametrize("per_gpu_day", [LLAMA_3, 20 * LLAMA_3, 200 * LLAMA_3])
def test_interruptions_cost_what_the_plan_says(per_gpu_day: float) -> None:
    """The mean of 300 simulated runs, within four of its standard errors; up to several interruptions an hour."""
    load, on = big()
    on = replace(on, per_gpu_day=per_gpu_day, pause=5.0)
    expected = estimate(load, replace(on, start=on.start))
    step = expected.work / load.steps
    runs = [simulate_run(load, on, step, seed) for seed in range(300)]
    for value, seen in (
        (expected.total, np.array([run.seconds for run in runs])),
        (expected.interruptions, np.array([run.interruptions for run in runs])),
    ):
        assert abs(seen.mean() - value) < 4 * seen.std() / np.sqrt(len(runs)) + 1e-3 * value


def test_saving_as_often_as_the_plan_says_is_best_in_simulated_runs_too() -> None:
    load, on = big()
    on = replace(on, per_gpu_day=200 * LLAMA_3, pause=5.0)
    expected = estimate(load, on)
    step = expected.work / load.steps
    best = max(1, round(expected.best / step))

    def mean(every: int) -> float:
        runs = [simulate_run(replace(load, checkpoint_every=every), on, step, seed) for seed in range(200)]
        return float(np.mean([run.seconds for run in runs]))

    assert mean(best) < min(mean(best * 5), mean(max(1, best // 5)))
    assert mean(best) == pytest.approx(expected.at_best, rel=0.02)


DIVISORS = [1, 2, 3, 4, 6, 12]


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    every=st.integers(1, 9),
    often=st.floats(0.05, 3.0),
    ranks=st.lists(st.sampled_from(DIVISORS), min_size=1, max_size=8),
    sizes=st.lists(st.integers(1, 90), min_size=4, max_size=40),
)
def test_every_sample_is_read_once_a_pass_whatever_is_interrupted(
    seed: int, every: int, often: float, ranks: list[int], sizes: list[int]
) -> None:
    """Nodes come and go among the divisors of the lanes; what was done after a checkpoint is done anew."""
    samples, passes = sum(sizes), 2
    order = Order(ShardSizes(np.array(sizes), 1000 * np.array(sizes)), seed % 2**16, 12, 2, 20_000)
    steps = -(-passes * samples // (12 * 2))
    load = load_of(lanes=12, lane_batch=2, steps=steps, checkpoint_every=every, lost_seconds=1)
    a_day = often / 12 * 86_400 / steps  # so many interruptions in a run that has none, about
    on = on_a(nodes=12, gpus_per_node=1, per_gpu_day=a_day, pause=0.1, start=1, reschedule=1)
    run = simulate_run(load, on, 1.0, seed, tuple(ranks))
    shown = list[tuple[int, int, int]]()
    for attempt, following in zip(run.attempts, [*run.attempts[1:], None], strict=True):
        kept = following.begin if following else attempt.end
        assert (attempt.begin <= kept <= attempt.end and kept % every == 0) or following is None
        for step in range(attempt.begin, kept):
            for rank in range(attempt.ranks):
                for lane in lanes_of(World(rank, attempt.ranks, None), 12):  # type: ignore[arg-type]
                    shown += [(draw.pass_number, draw.shard, draw.row) for draw in order.lane(step, lane)]
    assert len(shown) == steps * 24
    counts = Counter(shown)
    for number in range(passes):
        of_pass = {(shard, row): count for (its, shard, row), count in counts.items() if its == number}
        assert len(of_pass) == samples and set(of_pass.values()) == {1}
