"""A run on a cluster, estimated: a step's seconds and what bounds them, interruptions, days, cost. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pretrain.planning.all_reduce import Network, exposed_seconds, halves, ring_half, ring_seconds, tree_seconds
from pretrain.planning.compute import compute_seconds, slowest_of
from pretrain.planning.faults import best_interval, expected_seconds, mean_time_between
from pretrain.planning.reading import decoding_cores, hottest_shard_clips, read_seconds
from pretrain.planning.workload import Workload

BACKWARD = 2 / 3  # of a step's computing


@dataclass(frozen=True)
class Cluster:
    """The machines, in numbers: rates a second, sizes in bytes. `clip_rate`: of one GPU's network alone."""

    nodes: int
    gpus_per_node: int
    clip_rate: float
    e2e: float
    jitter: float
    network: float
    latency: float
    link: float
    exchange: Literal["auto", "ring", "tree"]
    overlap: float
    cores: int
    core_rate: float
    store: float
    store_total: float | None
    requests: float | None
    shard: float | None
    pause: float
    write: float
    per_gpu_day: float
    per_node_day: float
    reschedule: float
    start: float
    price: float

    @property
    def ranks(self) -> int:
        """GPUs in all, a rank each."""
        return self.nodes * self.gpus_per_node

    @property
    def wiring(self) -> Network:
        """What joins the ranks."""
        return Network(self.nodes, self.gpus_per_node, self.link, self.network, self.latency)


@dataclass(frozen=True)
class Estimate:
    """What comes out, in seconds where nothing is said. `limits`: by name, a step's least seconds by each of them."""

    compute: float
    slowest: float
    ring: float
    tree: float
    exchange: float
    by: str
    exposed: float
    limits: dict[str, float]
    step: float
    validation: float  # a step, on average
    work: float
    between: float  # interruptions
    down: float
    best: float  # interval between two checkpoints
    total: float
    interruptions: float
    at_best: float  # total with the best interval

    @property
    def best_steps(self) -> int:
        """Steps between two checkpoints at the best interval; 0 where there is none, as nothing interrupts the run."""
        return max(1, round(self.best / (self.step + self.validation))) if math.isfinite(self.best) else 0

    @property
    def binds(self) -> str:
        """The name of the limit that a step's seconds are those of."""
        return max(self.limits, key=lambda name: self.limits[name])


GPU, DECODING, NODE_STORE, ALL_STORE, REQUESTS, SHARD, WRITING = (
    "GPUs", "decoding cores", "a node's reading", "the store's reading", "the store's requests", "one shard",
    "writing checkpoints",
)  # fmt: skip


def estimate(load: Workload, on: Cluster) -> Estimate:
    """What a workload takes on a cluster, whose ranks share its lanes evenly."""
    ranks, micro_steps = on.ranks, load.lanes // on.ranks
    compute = compute_seconds(micro_steps * load.lane_batch, on.clip_rate, on.e2e)
    slowest = slowest_of(ranks, on.jitter)
    ring, tree = (reduce(load.gradient_bytes, on.wiring) for reduce in (ring_seconds, tree_seconds))
    exchange, by = _exchange(load, on, ring, tree, micro_steps)
    exposed = exposed_seconds(exchange, BACKWARD * compute, on.overlap)
    limits = {GPU: compute * slowest + exposed} | reading_limits(load, on)
    limits[WRITING] = load.checkpoint_bytes / on.write / load.checkpoint_every
    step = max(limits.values())
    validation = load.validation_clips / (3 * on.clip_rate * ranks) / load.validation_every  # forward passes alone
    work = load.steps * (step + validation)
    between = mean_time_between(ranks, on.per_gpu_day, on.nodes, on.per_node_day)
    down = load.lost_seconds + on.reschedule + on.start
    best = max(best_interval(on.pause, between), load.checkpoint_bytes / on.write, step)
    interval = load.checkpoint_every * (step + validation)
    total, interruptions = expected_seconds(work, min(interval, work), on.pause, between, down)
    at_best, _ = expected_seconds(work, min(best, work), on.pause, between, down)
    return Estimate(
        compute, slowest, ring, tree, exchange, by, exposed, limits, step, validation, work, between, down, best,
        total + on.start, interruptions, at_best + on.start,
    )  # fmt: skip


def _exchange(load: Workload, on: Cluster, ring: float, tree: float, micro_steps: int) -> tuple[float, str]:
    """Seconds of a step's exchange, and how it goes."""
    if on.ranks == 1:
        return 0.0, "none"
    gradients, weights = halves(load.zero, micro_steps)
    if load.zero == 0 and (on.exchange == "tree" or (on.exchange == "auto" and tree < ring)):
        return tree, "tree"
    both = (load.gradient_bytes, gradients), (load.weight_bytes, weights)
    return sum(count * ring_half(size, on.wiring) for size, count in both), "ring"


def reading_limits(load: Workload, on: Cluster) -> dict[str, float]:
    """The least seconds of a step by each limit of reading and decoding."""
    of_a_node = load.batch / on.nodes
    cores = decoding_cores(on.cores, on.gpus_per_node, load.workers)
    facts = load.store
    hot = hottest_shard_clips(load.lanes, load.lane_batch, facts.shards, facts.shard_bytes, load.block_bytes)
    return {
        DECODING: of_a_node / (cores * on.core_rate),
        NODE_STORE: read_seconds(of_a_node * load.clip_bytes, on.store),
        ALL_STORE: read_seconds(load.batch * load.clip_bytes, on.store_total),
        REQUESTS: read_seconds(load.batch * load.clip_requests, on.requests),
        SHARD: read_seconds(hot * load.clip_bytes, on.shard),
    }


def gpu_hours(result: Estimate, on: Cluster) -> float:
    """GPU-hours of the whole run, interruptions included."""
    return result.total / 3600 * on.ranks if math.isfinite(result.total) else math.inf
