"""Benchmark: the order of a pass over 34 million samples in 20,000 shards, as one rank of 1,024 plans it.

python -m tests.benchmarks.order [--quick] [--out FILE]

The shards are uneven, as are 487 classes (the most frequent has 487 times the samples of the rarest), nearly all of
which are in every shard. Each row is a process of its own on one core, with the most memory that it ever held: what
each of a rank's 8 workers would take, were each to plan for itself. A resume is another process that begins in the
middle of the fourth pass. Planning must stay under 10 s and 1 GB.
"""

from __future__ import annotations

import argparse
import json
import os
import pickle
import resource
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from pretrain.data.sampling.balance import Balance
from pretrain.data.sampling.order import Order, ShardSizes

SHARDS, SAMPLES, CLASSES = 20_000, 34_000_000, 487
LANES, LANE_BATCH, STEPS = 1024, 32, 100
LIMIT_SECONDS, LIMIT_BYTES = 10, 10**9


def shard_sizes(shards: int) -> ShardSizes:
    """Shards of 1,700 samples on average, from a tenth of that to ten times it, of 60 kB a sample or so."""
    draw = np.random.default_rng(0)
    weights = np.clip(draw.lognormal(0, 0.5, shards), 0.1, 10)
    ends = np.floor(np.cumsum(weights) / weights.sum() * (SAMPLES // SHARDS * shards) + 1e-6)
    samples = np.diff(ends, prepend=0).astype(np.int64)
    return ShardSizes(samples, samples * draw.integers(50_000, 70_000, shards))


def histograms(sizes: ShardSizes) -> Iterator[dict[int, int]]:
    """Labels of each shard's samples: class k has k + 1 of every 118,828."""
    weights = np.arange(1.0, CLASSES + 1)
    draw = np.random.default_rng(1)
    for samples in sizes.samples.tolist():
        counts = draw.multinomial(samples, weights / weights.sum())
        yield {label: count for label, count in enumerate(counts.tolist()) if count}


def measure(shards: int, first: int, lanes: int, balanced: bool) -> dict[str, Any]:
    """Plan steps first..first+100 of so many lanes, in this process."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    sizes = shard_sizes(shards)
    made_up = 0.0
    if balanced:
        clock = time.perf_counter()
        entries = sum(map(len, histograms(sizes)))
        made_up = time.perf_counter() - clock
        assert entries > 300 * shards
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    clock = time.perf_counter()
    order = Order(Balance(sizes, histograms(sizes), 1.0) if balanced else sizes, 7, LANES, LANE_BATCH)
    made = time.perf_counter()
    step = int(first * 3.4 * sizes.total / (LANES * LANE_BATCH))
    for lane in range(lanes):
        assert len(order.lane(step, lane)) == LANE_BATCH
    begun = time.perf_counter()
    assert order.pass_of(step) == 3 * first
    for after, lane in product(range(1, STEPS + 1), range(lanes)):
        order.lane(step + after, lane)
    return {
        "order made": made - clock - made_up,
        "first step": begun - made,
        f"next {STEPS} steps": time.perf_counter() - begun,
        "bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "bytes before": before,
        "pickled": len(pickle.dumps(order)),
        "shards at once": len(order.open_shards(step, 0)),
    }


def run(shards: int) -> list[dict[str, Any]]:
    """Every case in a child process."""
    rows = []
    for balanced, lanes, first in product((0, 1), (1, LANES), (0, 1)):
        case = [str(value) for value in (shards, first, lanes, balanced)]
        command = [sys.executable, "-m", "tests.benchmarks.order", "--child", *case]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        name = f"{'balanced, ' if balanced else ''}{lanes:,} lane{'s' * (lanes > 1)}, {'resumed' * first or 'begun'}"
        rows.append({"name": name, **json.loads(done.stdout)})
    return rows


def met(row: dict[str, Any]) -> bool:
    """Is planning (making the order and its first step) under the limits?"""
    return row["order made"] + row["first step"] < LIMIT_SECONDS and row["bytes"] < LIMIT_BYTES


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as text."""
    times = ["order made", "first step", f"next {STEPS} steps"]
    lines = [
        f"{'seconds, one core':<32}" + "".join(f"{name:>16}" for name in [*times, "MB held", "MB before", "limits"])
    ]
    for row in rows:
        values = [*(f"{row[name]:.3f}" for name in times), *(f"{row[n] / 1e6:.0f}" for n in ("bytes", "bytes before"))]
        lines.append(f"{row['name']:<32}" + "".join(f"{v:>16}" for v in [*values, "met" if met(row) else "NOT MET"]))
    return "\n".join(lines)


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the shards")
    parser.add_argument("--out", type=Path, help="also write the figures as JSON")
    parser.add_argument("--child", type=int, nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child is not None:
        print(json.dumps(measure(*arguments.child)))
        return
    rows = run(SHARDS // 10 if arguments.quick else SHARDS)
    print(table(rows))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
