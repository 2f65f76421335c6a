"""Part of the loader's benchmark: the memory of one worker and of its parent, over many clips."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from cluster.jobs.process_usage import started_by, usage_of
from pretrain.data.loader import Loader
from pretrain.data.sources import DataSettings, open_sources, order_of
from pretrain.data.workers.pool import LoaderSettings
from tests.benchmarks.support.loader_stores import segmented

VIDEOS = ("bikes.mp4", "cup.mp4")  # of two sizes, so that memory is asked for in more than one
LOOKS = 20
WARM = 0.1  # share of the clips after which memory should not grow
FLAT = 8e6  # bytes: less than a hundred a clip is no leak


def leak(folder: Path, clips: int, lane_batch: int = 8) -> dict[str, Any]:
    """Resident bytes of the worker and of this process each so many clips, and how much they grew in the end."""
    store, _ = segmented(folder, VIDEOS, 1, plain=False)
    data = DataSettings(store=store, loader=LoaderSettings(workers=1))
    sources = open_sources(data)
    order = order_of(sources, data, 0, 1, lane_batch)
    rows: list[dict[str, float]] = []
    others = set(started_by(os.getpid()))
    every = clips // LOOKS
    print(f"{'clips':>9} {'worker MB':>10} {'parent MB':>10} {'clips/s':>8}")
    with Loader(sources, order, data.clip, data.loader, range(1)) as loader:
        began = time.perf_counter()
        for _ in loader:
            done = loader.stats.clips
            if done >= every * (len(rows) + 1):
                (worker,) = (usage for pid, usage in started_by(os.getpid()).items() if pid not in others)
                rows.append({"clips": done, "worker": worker.resident, "parent": usage_of(os.getpid()).resident})
                rate = done / (time.perf_counter() - began)
                print(
                    f"{done:>9,} {rows[-1]['worker'] / 1e6:>10.1f} {rows[-1]['parent'] / 1e6:>10.1f} {rate:>8,.0f}",
                    flush=True,
                )
            if len(rows) == LOOKS:
                break
    warm = next(row for row in rows if row["clips"] >= WARM * clips)
    grown = {name: rows[-1][name] - warm[name] for name in ("worker", "parent")}
    flat = all(growth < FLAT for growth in grown.values())
    print(
        f"after the first {warm['clips']:,.0f} clips: worker {grown['worker'] / 1e6:+.1f} MB, "
        f"parent {grown['parent'] / 1e6:+.1f} MB: {'flat' if flat else 'it GROWS'}",
        flush=True,
    )
    return {"rows": rows, "grown": grown, "flat": flat}
