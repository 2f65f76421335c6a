"""What binds a run, and what to buy first: the plan worked out anew with twice of each thing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from pretrain.planning.estimate import (
    ALL_STORE,
    DECODING,
    GPU,
    NODE_STORE,
    REQUESTS,
    SHARD,
    WRITING,
    Cluster,
    Estimate,
    estimate,
    gpu_hours,
)
from pretrain.planning.reading import PART_RANGE, S3_READS
from pretrain.planning.workload import Workload

FASTER_GPUS = "faster GPUs, twice the clips/s"
_WORTH = 0.02  # of the time, that twice of a thing must save


@dataclass(frozen=True)
class Purchase:
    """Twice of something: what the run then takes. Nodes take more GPUs, and so another price."""

    what: str
    seconds: float
    saved: float  # share of the time
    gpu_hours: float
    cost: float


def purchases(load: Workload, on: Cluster, now: Estimate) -> list[Purchase]:
    """Twice of each thing, that which saves the most time first; nodes last: they cost with every hour."""
    bought: dict[str, Callable[[], tuple[Workload, Cluster]]] = {
        FASTER_GPUS: lambda: (load, replace(on, clip_rate=2 * on.clip_rate)),
        "network between nodes": lambda: (load, replace(on, network=2 * on.network)),
        "CPU cores a node": lambda: (_more_workers(load), replace(on, cores=2 * on.cores)),
        "a node's reading from the store": lambda: (load, replace(on, store=2 * on.store)),
        "the store's reading in all": lambda: (load, replace(on, store_total=2 * (on.store_total or 0))),
        "the store's requests": lambda: (load, replace(on, requests=2 * (on.requests or 0))),
        "reading of one shard": lambda: (load, replace(on, shard=2 * (on.shard or 0))),
        "writing of checkpoints": lambda: (load, replace(on, write=2 * on.write)),
    }
    absent = {
        "the store's reading in all": on.store_total,
        "the store's requests": on.requests,
        "reading of one shard": on.shard,
        "network between nodes": on.nodes > 1 or None,
    }
    rows = [
        _purchase(what, *make(), now) for what, make in bought.items() if what not in absent or absent[what] is not None
    ]
    rows.sort(key=lambda row: -row.saved)
    return [*rows, _purchase("nodes", *_twice_the_nodes(load, on), now)]


def _purchase(what: str, load: Workload, on: Cluster, now: Estimate) -> Purchase:
    result = estimate(load, on)
    hours = gpu_hours(result, on)
    saved = 1 - result.total / now.total if math.isfinite(now.total) else float(math.isfinite(result.total))
    return Purchase(what, result.total, saved, hours, hours * on.price)


def _more_workers(load: Workload) -> Workload:
    """With as many decoding processes as there are cores: by themselves they are at most 16 a rank."""
    return replace(load, workers=2**16)


def _twice_the_nodes(load: Workload, on: Cluster) -> tuple[Workload, Cluster]:
    """The same batch where its lanes go round; else twice the lanes, and half the steps."""
    more = replace(on, nodes=2 * on.nodes)
    if load.lanes % more.ranks == 0:
        return load, more
    return replace(load, lanes=2 * load.lanes, steps=max(1, -(-load.steps // 2))), more


def advice(load: Workload, on: Cluster, now: Estimate, rows: list[Purchase]) -> str:
    """What to buy first, in a sentence or two; before it the interval of checkpoints, where it saves more than that.

    What is bought saves time beside GPUs, and is what the binding limit asks for.
    """
    if not math.isfinite(now.total):
        interval = f"{now.best:,.0f} s of work, about {now.best_steps:,} steps"
        return f"nothing: interruptions undo all that is done; save every {interval} (checkpoint.every_steps)"
    what = _purchase_first(load, on, now, rows)
    saved = 1 - now.at_best / now.total
    if saved <= max(_WORTH, *(row.saved for row in _beside_gpus(rows))):
        return what
    interval = f"save every {now.best_steps:,} steps instead of {load.checkpoint_every:,} (checkpoint.every_steps)"
    return f"nothing before this: {interval} saves {100 * saved:.3g} % of the time; then {what}"


def _beside_gpus(rows: list[Purchase]) -> list[Purchase]:
    return [row for row in rows if row.what not in ("nodes", FASTER_GPUS)]


def _purchase_first(load: Workload, on: Cluster, now: Estimate, rows: list[Purchase]) -> str:
    """What the binding limit asks for, or what saves time beside GPUs, or that nothing does."""
    remedy = {
        DECODING: "CPU cores: nodes with more; where a node has over 16 a GPU, set data.loader.workers",
        NODE_STORE: "a faster way from a node to the store, or a local disk with data.reading.folder",
        ALL_STORE: "a store that gives more bytes a second, or local disks with data.reading.folder",
        REQUESTS: _fewer_requests(load, on, now),
        SHARD: "nothing: cut smaller shards (videos_per_shard, part_bytes), at least as many as there are lanes",
        WRITING: "a faster disk for checkpoints, or save more seldom (checkpoint.every_steps)",
    }
    if now.binds in remedy:
        return remedy[now.binds]
    best = next(iter(_beside_gpus(rows)), None)
    if best is not None and best.saved > _WORTH:
        return f"{best.what}: twice as much saves {100 * best.saved:.3g} % of the time"
    nodes = rows[-1]
    spare = min(now.limits[GPU] / seconds for name, seconds in now.limits.items() if name != GPU and seconds)
    return (
        f"nothing but GPUs: everything else could serve {spare:.3g} times as many; twice the nodes take "
        f"{100 * nodes.seconds / now.total:.3g} % of the time at {100 * nodes.cost / _cost(now, on):.4g} % of the price"
        if _cost(now, on)
        else f"nothing but GPUs: everything else could serve {spare:.3g} times as many"
    )


def _fewer_requests(load: Workload, on: Cluster, now: Estimate) -> str:
    """What helps against the limit of a store's requests: more of them, or whole parts where their bytes cost less."""
    others = max(seconds for name, seconds in now.limits.items() if name != REQUESTS)
    wanted = load.batch * load.clip_requests / others
    more = estimate(load, replace(on, requests=None))
    words = (
        f"a store that answers {wanted:,.0f} requests a second, {more.total / 86400:.3g} days (S3: "
        f"{wanted / S3_READS:.2g} partitions, which it makes as load lasts; plan.store_requests_per_second says so)"
    )
    sample = load.store.frames * load.store.bytes_per_frame
    parts = estimate(replace(load, clip_bytes=sample, clip_requests=sample / PART_RANGE, whole_parts=True), on)
    if parts.total < (1 - _WORTH) * now.total:
        folder = "data.reading.mode=parts, data.reading.folder"
        words += f"; or local disks, by whole parts instead of ranges ({folder}), {parts.total / 86400:.3g} days"
    return words


def _cost(now: Estimate, on: Cluster) -> float:
    return gpu_hours(now, on) * on.price
