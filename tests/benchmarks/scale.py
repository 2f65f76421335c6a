"""Benchmark: a store of Sports-1M's size, merged, opened and resumed; and a driver's memory over many jobs.

python -m tests.benchmarks.scale [--quick] [--ray] [--out FILE]

20,000 shard records of 1,710 samples each (34 million), of a plan of 1.14 million videos, are written to a local store;
then, each in a process of its own: merged into an index, opened as training opens it, and prepared for a resume. The
packet tables are short, as none of these reads them. 100,000 jobs that find their shard made pass through the process
pool as `reelscale shard` drives it, and with --ray through its Ray tasks, while the driver's memory is watched.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import resource
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sharding.base.settings import digest
from sharding.corpora.manifest import Video
from sharding.format import index, record
from sharding.format.generations import add_generation, generations, planned_jobs
from sharding.format.plan import ShardJob, job_id
from sharding.make.prepare import Prepared
from sharding.make.shard import ShardSettings, WorkerSettings
from sharding.storage.store import open_store

VIDEOS_A_JOB, SEGMENTS, CLASSES = 57, 30, 487


def jobs(count: int, videos_a_job: int = VIDEOS_A_JOB) -> Iterator[ShardJob]:
    """Jobs of videos with names as Sports-1M's."""
    for number in range(count):
        first = number * videos_a_job
        videos = tuple(
            Video(
                f"{(first + place) * 2654435761 % 2**64:016x}.mp4", ((first + place) % CLASSES,), "train", bytes=10**7
            )
            for place in range(videos_a_job)
        )
        yield ShardJob(job_id(0, number), "train", videos)


def planned(url: str, jobs: Iterator[ShardJob]) -> None:
    """A store's head and plan."""
    store, settings = open_store(url), ShardSettings()
    classes = [f"class {number}" for number in range(CLASSES)]
    head = {"format": record.FORMAT, "classes": classes, "settings": settings.model_dump(mode="json")}
    store.put(index.HEAD, json.dumps(head | {"settings_digest": digest(settings)}).encode())
    assert add_generation(store, 0, "corpus", "/nowhere", classes, jobs)


def make_store(url: str, count: int, share: int, shares: int) -> None:
    """Write each `shares`-th record."""
    store = open_store(url)
    samples = VIDEOS_A_JOB * SEGMENTS
    table = rows(samples)
    for number in range(share, count, shares):
        job = job_id(0, number)
        histogram = {str((number * VIDEOS_A_JOB + place) % CLASSES): SEGMENTS for place in range(VIDEOS_A_JOB)}
        part = {
            "path": f"train/{job}-00.tar", "samples": samples, "bytes": 250_000_000, "sha256": f"{number:064x}",
            "label_histogram": histogram,
        }  # fmt: skip
        meta = {
            "format": record.FORMAT, "job": job, "split": "train", "parts": [part], "videos": VIDEOS_A_JOB,
            "samples": samples, "frames": 300 * samples, "seconds": 10.0 * samples, "lengths": {"10": samples},
            "failures": {"missing": 1}, "retried": {}, "versions": {"av": "0"}, "settings_digest": "0",
        }  # fmt: skip
        path = Path(url) / record.record_path("train", job)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(record.to_parquet(record.with_meta(table, meta)))
    assert store.url


def rows(samples: int) -> pa.Table:
    """A record's rows, with packet tables of two packets."""
    rng = np.random.default_rng(0)
    keys = [f"{number:020x}" for number in rng.integers(0, 2**62, samples)]
    tables = {
        "extradata": b"\1" * 40, "packet_offset": [48, 900], "packet_size": [800, 20], "packet_pts": [0, 3000],
        "packet_key": [True, False], "group_crc32": [1],
    }  # fmt: skip
    return pa.Table.from_pylist(
        [
            {
                "key": key, "part": 0, "offset": 512 * place, "size": 140_000, "sha256": key * 3,
                "labels": [place % CLASSES],
                "uri": f"{key}.mp4", "segment": place % SEGMENTS, "start": 10.0 * place, "end": 10.0 * place + 10,
                "fps": 30.0, "frames": 300, "width": 228, "height": 128, "matrix": "bt601", "range": "tv",
                "codec": "h264", "time_base": "1/90000", "flow": None, "concealed": 0, **tables,
            }
            for place, key in enumerate(keys)
        ],
        schema=record.RECORD,
    )  # fmt: skip


def merged(url: str) -> str:
    """All records into an index."""
    found = index.merge(open_store(url))
    assert found is not None
    return f"{sum(split.samples for split in found.splits.values()):,} samples in {len(found.parts):,} parts"


def opened(url: str) -> str:
    """As a training run opens a store."""
    from pretrain.data.reading.store_split import open_split

    split = open_split(open_store(url), "train")
    return f"{len(split):,} samples; sample {len(split) - 1:,} is {split.sample(len(split) - 1).key}"


def resumed(url: str) -> str:
    """The plan compared with the records: what is left to do."""
    store = open_store(url)
    done = frozenset(record.list_records(store))
    dropped = sorted(done)[len(done) // 2]
    todo = [job.id for plan in generations(store) for job in planned_jobs(store, plan, done - {dropped})]
    assert todo == [dropped[1]], todo
    return f"{len(done):,} shards are there, 1 is to be made"


def by_processes(url: str) -> str:
    """All jobs of a store through the process pool."""
    from cluster.jobs.sharding import _by_processes

    return driven(url, _by_processes)


def by_ray(url: str) -> str:
    """All jobs of a store through Ray."""
    from cluster.jobs.sharding import _by_ray

    return driven(url, _by_ray)


def driven(url: str, runner: Callable[..., Generator[Any]]) -> str:
    """Every job of a store given out, though its record is there; the driver's memory after a tenth and at the end."""
    from cluster.jobs.stats import ShardingStats

    store = open_store(url)
    plans = generations(store)
    videos = sum(sum(plan.videos.values()) for plan in plans)
    prepared = Prepared(store, plans, frozenset(), videos, ())
    stats, sizes = ShardingStats(videos), []
    with closing(runner(prepared, ShardSettings(), WorkerSettings(), os.cpu_count() or 1, stats)) as results:
        for told in results:
            if told is not None:
                stats.add(told)
                stats.line()
                if stats.jobs in (prepared.planned_count // 10, prepared.planned_count):
                    sizes.append(resident())
    assert stats.jobs == prepared.planned_count and stats.total == 0
    return f"{stats.jobs:,} jobs; driver {sizes[0]:,.0f} MB after a tenth, {sizes[-1]:,.0f} MB at the end"


def resident() -> float:
    """This process's memory now, MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def measured(function: Callable[..., str], *arguments: Any) -> dict[str, Any]:
    """Seconds and peak memory (MB) of a function in a process of its own, and what it says."""
    context = multiprocessing.get_context("spawn")
    here, far_end = context.Pipe()
    process = context.Process(target=_measure, args=(far_end, function, arguments))
    process.start()
    row: dict[str, Any] = here.recv()
    process.join()
    print(f"{function.__name__:<12} {row['seconds']:>7.1f} s {row['peak_mb']:>7,.0f} MB   {row['said']}", flush=True)
    return {"what": function.__name__, **row}


def _measure(pipe: Any, function: Callable[..., str], arguments: tuple[Any, ...]) -> None:
    began = time.perf_counter()
    said = function(*arguments)
    seconds = time.perf_counter() - began
    # Not getrusage's maximum, which a process has from the one that started it.
    (peak,) = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())
    pipe.send({"seconds": seconds, "peak_mb": int(peak) * 1024 / 1e6, "said": said})


def main() -> None:
    """Print a line each, and write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a hundredth of it")
    parser.add_argument("--ray", action="store_true", help="the jobs through Ray, too: minutes")
    parser.add_argument("--jobs", type=int, help="jobs that find their shard made, instead of 100,000")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    records, tasks = (200, 1000) if args.quick else (20_000, 100_000)
    tasks = args.jobs or tasks
    rows = []
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as folder:
        shards, done = f"{folder}/shards", f"{folder}/done"
        began = time.perf_counter()
        planned(shards, jobs(records))
        shares = os.cpu_count() or 1
        context = multiprocessing.get_context("spawn")
        makers = [context.Process(target=make_store, args=(shards, records, share, shares)) for share in range(shares)]
        for maker in makers:
            maker.start()
        for maker in makers:
            maker.join()
        print(f"a store of {records:,} records, made in {time.perf_counter() - began:.0f} s")
        rows += [measured(function, shards) for function in (merged, opened, resumed)]
        planned(done, jobs(tasks, 1))
        (Path(done) / "train").mkdir()
        for number in range(tasks):
            (Path(done) / record.record_path("train", job_id(0, number))).touch()
        rows.append(measured(by_processes, done))
        if args.ray:
            rows.append(measured(by_ray, done))
    if args.out:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
