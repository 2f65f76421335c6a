"""A run on a cluster, simulated rank by rank: what the arithmetic of `estimate` is compared with.

Steps: the real order says which shards every lane reads at every step, and what limits a step is looked for among
ranks, nodes and shards, not taken from means. Runs: interruptions come at random, and take a run back to its last
checkpoint, on as many nodes or fewer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pretrain.data.sampling.order import Order, ShardSizes
from pretrain.planning.compute import compute_seconds
from pretrain.planning.estimate import Cluster, estimate, reading_limits
from pretrain.planning.workload import Workload


@dataclass(frozen=True)
class SimulatedSteps:
    """What was seen over some steps. `seconds`: of each; `hottest`: most clips that one shard gave to a step.

    readers: most lanes that read one shard in a step; node_bytes: read by the node that read the most, of each step;
    open_shards: most shards that a lane's blocks held open at a step.
    """

    seconds: NDArray[np.float64]
    hottest: int
    readers: int
    node_bytes: NDArray[np.float64]
    open_shards: int


def order_of_plan(load: Workload, seed: int) -> Order:
    """The order of a workload's samples, in shards as large as the store's are on average, give or take a third."""
    facts = load.store
    draw = np.random.default_rng(seed)
    shares = draw.uniform(2 / 3, 4 / 3, facts.shards)
    ends = np.floor(np.cumsum(shares) / shares.sum() * facts.samples + 1e-6)
    samples = np.maximum(1, np.diff(ends, prepend=0)).astype(np.int64)
    sample_bytes = max(1, round(facts.frames * facts.bytes_per_frame))
    return Order(ShardSizes(samples, samples * sample_bytes), seed, load.lanes, load.lane_batch, load.block_bytes)


def simulate_steps(load: Workload, on: Cluster, first: int, steps: int, seed: int = 0) -> SimulatedSteps:
    """Steps `first` and following of all ranks: each step is as long as its slowest rank, node or shard takes."""
    order, draw = order_of_plan(load, seed), np.random.default_rng(seed)
    result, share = estimate(load, on), load.lanes // on.ranks
    computing = compute_seconds(share * load.lane_batch, on.clip_rate, on.e2e)
    limits, lane_nodes = reading_limits(load, on), np.arange(load.lanes) // (share * on.gpus_per_node)
    at_all_times = max(limits["decoding cores"], limits["the store's requests"], limits["the store's reading"])
    seconds, node_bytes, hottest, readers, open_shards = [], [], 0, 0, 0
    for step in range(first, first + steps):
        shards = np.array([[sample.shard for sample in order.lane(step, lane)] for lane in range(load.lanes)])
        counts = np.bincount(shards.ravel(), minlength=load.store.shards)
        of_nodes = np.bincount(lane_nodes, minlength=on.nodes) * load.lane_batch * load.clip_bytes
        hottest = max(hottest, int(counts.max()))
        lanes_of_shard = np.bincount(np.concatenate([np.unique(row) for row in shards]), minlength=load.store.shards)
        readers = max(readers, int(lanes_of_shard.max()))
        open_shards = max(open_shards, max(len(order.open_shards(step, lane)) for lane in (0, load.lanes // 2)))
        ranks = computing * (1 + on.jitter * draw.standard_normal(on.ranks))
        shard = counts.max() * load.clip_bytes / on.shard if on.shard else 0.0
        reading = max(at_all_times, float(of_nodes.max()) / on.store, shard)
        seconds.append(max(float(ranks.max()) + result.exposed, reading))
        node_bytes.append(float(of_nodes.max()))
    return SimulatedSteps(np.array(seconds), hottest, readers, np.array(node_bytes), open_shards)


@dataclass(frozen=True)
class Attempt:
    """A start of a simulated run: on so many ranks, from the step of its checkpoint until it ended after another."""

    ranks: int
    begin: int
    end: int


@dataclass(frozen=True)
class SimulatedRun:
    """A run with its interruptions: seconds in all, and each of its attempts in turn."""

    seconds: float
    attempts: list[Attempt]

    @property
    def interruptions(self) -> int:
        """How often it was interrupted."""
        return len(self.attempts) - 1


def simulate_run(
    load: Workload, on: Cluster, step: float, seed: int, ranks_after: tuple[int, ...] = ()
) -> SimulatedRun:
    """A run of steps of `step` seconds on all ranks, whose interruptions come at random, as often as on `on`.

    It goes on from its last checkpoint on the ranks that `ranks_after` names for each attempt in turn, the last of
    them for all others; none: on all. Fewer ranks take longer for a step and are interrupted less often.
    """
    draw, between = np.random.default_rng(seed), estimate(load, on).between
    down = load.lost_seconds + on.reschedule + on.start
    seconds, saved, attempts = on.start, 0, list[Attempt]()
    while True:
        number = len(attempts)
        ranks = on.ranks if not number or not ranks_after else ranks_after[min(number, len(ranks_after)) - 1]
        slower = on.ranks / ranks
        fails_after = draw.exponential(between * slower) if math.isfinite(between) else math.inf
        done, lasted = _steps_within(fails_after, load, saved, step * slower, on.pause)
        attempts.append(Attempt(ranks, saved, saved + done))
        seconds += lasted
        if saved + done >= load.steps:
            return SimulatedRun(seconds, attempts)
        saved = (saved + done) // load.checkpoint_every * load.checkpoint_every
        seconds += down


def _steps_within(limit: float, load: Workload, begin: int, step: float, pause: float) -> tuple[int, float]:
    """(steps that are done by an interruption after `limit` seconds, or by the run's end; the seconds until then)."""
    every, left = load.checkpoint_every, load.steps - begin  # a checkpoint's step is where an attempt begins
    whole = left * step + (left // every) * pause
    if limit >= whole:
        return left, whole
    cycles, rest = divmod(limit, every * step + pause)
    within = min(every, int(rest / step))
    # an interruption in a checkpoint's pause undoes what it was to save
    done = int(cycles) * every + (within if rest < every * step else every - 1)
    return min(done, left), limit
