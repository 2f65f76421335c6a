"""Benchmark: a store of Sports-1M's size, merged, opened and resumed; and a driver's memory over many jobs.

python -m tests.benchmarks.scale [--quick] [--ray] [--out FILE]

20,000 shard records of 1,710 samples each (34 million), of a plan of 1.14 million videos, are written to a local store;
then, each in a process of its own: merged into an index, opened as training opens it, and prepared for a resume. The
packet tables are short, as none of these reads them. 100,000 jobs that do nothing pass through the process pool, and
with --ray through Ray, while the driver's memory is watched.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from sharding import index, record
from sharding.generations import add_generation, generations, planned_jobs
from sharding.manifest import Video
from sharding.plan import ShardJob, job_id
from sharding.settings import digest
from sharding.shard import ShardSettings
from sharding.store import open_store

VIDEOS_A_JOB, SEGMENTS, CLASSES = 57, 30, 487


def jobs(count: int) -> Iterator[ShardJob]:
    """Jobs of videos with names as Sports-1M's."""
    for number in range(count):
        first = number * VIDEOS_A_JOB
        videos = tuple(
            Video(
                f"{(first + place) * 2654435761 % 2**64:016x}.mp4", ((first + place) % CLASSES,), "train", bytes=10**7
            )
            for place in range(VIDEOS_A_JOB)
        )
        yield ShardJob(job_id(0, number), "train", videos)


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
                "codec": "h264", "time_base": "1/90000", "flow": None, **tables,
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
    from pretrain.data.stream import open_split

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


def nothing(number: int, tell: Callable[[Any], None]) -> int:
    """A job that does nothing."""
    return number


def pool(count: int) -> str:
    """Jobs that do nothing through the process pool; the driver's memory after a tenth and at the end."""
    from cluster.launch.processes import Done, spread

    sizes, done = [], 0
    for told in spread(nothing, ((number,) for number in range(count)), os.cpu_count() or 1):
        done += isinstance(told, Done)
        if done in (count // 10, count):
            sizes.append(resident())
    return f"{done:,} jobs; driver {sizes[0]:,.0f} MB after a tenth, {sizes[-1]:,.0f} MB at the end"


def by_ray(count: int) -> str:
    """The same through Ray."""
    from cluster.launch.ray_cluster import ray_cluster

    sizes = []
    with ray_cluster() as ray:
        task = ray.remote(num_cpus=1)(nothing)
        running: list[Any] = []
        for number in range(count):
            running.append(task.remote(number, None))
            if len(running) == 2 * (os.cpu_count() or 1):
                ready, running = ray.wait(running, num_returns=1)
                ray.get(ready[0])
            if number + 1 in (count // 10, count):
                sizes.append(resident())
    return f"{count:,} jobs; driver {sizes[0]:,.0f} MB after a tenth, {sizes[-1]:,.0f} MB at the end"


def resident() -> float:
    """This process's memory now, MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 1e6


def measured(function: Callable[..., str], *arguments: Any) -> dict[str, Any]:
    """Seconds and peak memory (MB) of a function in a process of its own, and what it says."""
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_measure, args=(there, function, arguments))
    process.start()
    told: dict[str, Any] = here.recv()
    process.join()
    print(f"{function.__name__:<10} {told['seconds']:>7.1f} s {told['peak_mb']:>7,.0f} MB   {told['said']}", flush=True)
    return {"what": function.__name__, **told}


def _measure(pipe: Any, function: Callable[..., str], arguments: tuple[Any, ...]) -> None:
    began = time.perf_counter()
    said = function(*arguments)
    seconds = time.perf_counter() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    pipe.send({"seconds": seconds, "peak_mb": peak, "said": said})


def main() -> None:
    """Print a line each, and write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="a hundredth of it")
    parser.add_argument("--ray", action="store_true", help="100,000 jobs through Ray, too: minutes")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    records, tasks = (200, 1000) if given.quick else (20_000, 100_000)
    found = []
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as folder:
        store = open_store(folder)
        classes = [f"class {number}" for number in range(CLASSES)]
        settings = ShardSettings()
        head = {"format": record.FORMAT, "classes": classes, "settings": settings.model_dump(mode="json")}
        store.put(index.HEAD, json.dumps(head | {"settings_digest": digest(settings)}).encode())
        began = time.perf_counter()
        add_generation(store, 0, "corpus", "/nowhere", classes, jobs(records))
        shares = os.cpu_count() or 1
        context = multiprocessing.get_context("spawn")
        makers = [context.Process(target=make_store, args=(folder, records, share, shares)) for share in range(shares)]
        for maker in makers:
            maker.start()
        for maker in makers:
            maker.join()
        print(f"a store of {records:,} records, made in {time.perf_counter() - began:.0f} s")
        found += [measured(function, folder) for function in (merged, opened, resumed)]
    found.append(measured(pool, tasks))
    if given.ray:
        found.append(measured(by_ray, tasks))
    if given.out:
        given.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
