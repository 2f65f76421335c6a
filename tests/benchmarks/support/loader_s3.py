"""Part of the loader's benchmark: the same samples in a directory and in an S3 store, sound and failing."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pretrain.data.device.transforms import network_input
from pretrain.data.loader import Loader
from pretrain.data.sources import DataSettings, open_sources, order_of
from pretrain.data.views.views import ClipSettings
from pretrain.data.workers.pool import LoaderSettings
from sharding.corpora.manifest import Video
from sharding.format import index, record
from sharding.format.generations import add_generation
from sharding.format.plan import ShardJob
from sharding.make.shard import ShardSettings, record_meta
from sharding.make.tar_parts import TarPartWriter
from sharding.media.clip import Clip
from sharding.storage.store import Store, open_store
from tests.benchmarks.loader import LANE_BATCH, spent
from tests.benchmarks.support import loader_ways as ways
from tests.benchmarks.support.loader_stores import segmented
from tests.support.network_faults import CUT_ANSWER, RESET_AFTER, RESET_BEFORE, SLOW_DOWN, fault_proxy
from tests.support.s3 import BUCKET, s3_server

VIDEOS = ("bikes.mp4", "cup.mp4")
FAULTS = (SLOW_DOWN, RESET_BEFORE, RESET_AFTER, CUT_ANSWER)
CPU_GOAL, BYTES_GOAL, FIRST_GOAL = 1.15, 0.25, 3.0


def s3(folder: Path, quick: bool) -> dict[str, Any]:
    """All figures of the part, printed as they come."""
    store, _ = segmented(folder, VIDEOS, 2, plain=False)
    with s3_server() as (environment, _), variables(environment):
        url = f"s3://{BUCKET}/small"
        copied(Path(store), url)
        results: dict[str, Any] = {"cpu": cpu(store, url, 8 if quick else 64, 2 if quick else 7)}
        results["bytes"] = read_of_whole(store, 64)
        results["faults"] = faults(url, environment, 8 if quick else 40)
        large = f"s3://{BUCKET}/large"
        size = enlarged(open_store(store), large, folder / "large", 10**8 if quick else 10**9)
        results["first"] = {"store_bytes": size, **first(large, size, 1 if quick else 3)}
    return results


def cpu(local: str, remote: str, steps: int, rounds: int) -> dict[str, Any]:
    """CPU seconds a clip of workers and parent, from the directory and from S3, by turns."""
    taken: dict[str, list[float]] = {local: [], remote: []}
    with ExitStack() as stack:
        loaders = {url: stack.enter_context(loader(url, steps)) for url in taken}
        begins = {url: each.state_dict() for url, each in loaders.items()}
        for round_number in range(rounds + 1):
            for url, each in loaders.items():
                each.load_state_dict(begins[url])
                before, clips = spent(), each.stats.clips
                for _ in each:
                    pass
                if round_number:  # the first one opens and connects
                    taken[url].append((spent() - before) / (each.stats.clips - clips))
    local_ms, theirs = (1e3 * statistics.median(seconds) for seconds in taken.values())
    ratio = statistics.median(far / near for near, far in zip(*taken.values(), strict=True))
    print(
        f"CPU a clip: directory {local_ms:.2f} ms, S3 {theirs:.2f} ms: {ratio:.2f} times "
        f"(goal {CPU_GOAL:g} at most) {said(ratio <= CPU_GOAL)}",
        flush=True,
    )
    return {"directory_ms": local_ms, "s3_ms": theirs, "ratio": ratio, "passed": ratio <= CPU_GOAL}


def read_of_whole(store: str, steps: int) -> dict[str, Any]:
    """Bytes that a clip's packets are read with, beside the whole sample's."""
    task = ways.task(DataSettings(store=store), steps, LANE_BATCH)
    read = ways.ours(task, False, lambda planes: None)() / len(task.clips)
    whole = statistics.mean(clip.size for clip in task.clips)
    share = read / whole
    print(
        f"read a clip: {read:,.0f} bytes of the sample's {whole:,.0f}: {share:.2f} (goal {BYTES_GOAL:g} at most) "
        f"{said(share <= BYTES_GOAL)}",
        flush=True,
    )
    return {"read": read, "whole": whole, "share": share, "passed": share <= BYTES_GOAL}


def faults(url: str, environment: dict[str, str], steps: int) -> dict[str, Any]:
    """Whether a store of which each tenth answer fails gives the same batches in the same order."""
    sound = digests(url, steps)
    with fault_proxy(environment["AWS_ENDPOINT_URL"], 0.1, kinds=FAULTS) as proxy:
        with variables({"AWS_ENDPOINT_URL": proxy.url}):
            began = time.perf_counter()
            failing = digests(url, steps)
            seconds = time.perf_counter() - began
        counts = dict(proxy.counts)
    same = failing == sound
    print(f"{steps} batches with faults {counts}, {seconds:.1f} s: the same batches in order {said(same)}", flush=True)
    return {"batches": steps, "counts": counts, "seconds": seconds, "passed": same}


def digests(url: str, steps: int) -> list[str]:
    """sha256 of what the network is fed of each batch, of its targets and of its samples' keys."""
    with loader(url, steps) as clips:
        return [
            hashlib.sha256(
                network_input(batch.planes, ClipSettings()).numpy().tobytes()
                + batch.targets.numpy().tobytes()
                + ",".join(batch.keys).encode()
            ).hexdigest()
            for step in clips
            for batch in step
        ]


def first(url: str, size: int, rounds: int) -> dict[str, Any]:
    """Seconds from a process' start to its first batch, at the beginning of a pass and in its middle; medians."""
    results: dict[str, Any] = {}
    program = (
        "import sys; from tests.benchmarks.support.loader_first import first_batch; first_batch(*eval(sys.argv[1]))"
    )
    for name, share in (("beginning", 0.0), ("middle", 0.5)):
        reports = []
        for _ in range(rounds):
            given = repr((url, share, time.time()))
            done = subprocess.run([sys.executable, "-c", program, given], capture_output=True, text=True, check=True)
            reports.append(json.loads(done.stdout))
        results[name] = {key: statistics.median(each[key] for each in reports) for key in reports[0]}
        seconds = results[name]["first_batch"]
        results[name]["passed"] = seconds < FIRST_GOAL
        print(
            f"first batch at the {name} of a pass, a shard of {size / 1e9:.2f} GB: {seconds:.2f} s (imports "
            f"{results[name]['imported']:.2f} s, store open at {results[name]['opened']:.2f} s; goal {FIRST_GOAL:g}) "
            f"{said(seconds < FIRST_GOAL)}",
            flush=True,
        )
    return results


def loader(url: str, steps: int) -> Loader:
    """A loader of two workers that ends after so many steps."""
    data = DataSettings(store=url, loader=LoaderSettings(workers=2))
    sources = open_sources(data)
    order = order_of(sources, data, 0, 1, LANE_BATCH)
    return Loader(sources, order, data.clip, data.loader, range(1), last=steps)


def copied(local: Path, url: str) -> None:
    """Every file of a store, into another."""
    store = open_store(url)
    for path in sorted(local.rglob("*")):
        if path.is_file():
            store.put_file(path.relative_to(local).as_posix(), path)


def enlarged(small: Store, url: str, folder: Path, size: int) -> int:
    """A store of one shard of so many bytes, the samples of a small one again and again under other names."""
    folder.mkdir()
    large, settings = open_store(url), ShardSettings()
    clips = itertools.cycle(list(samples(small)))
    videos: list[Video] = []
    labels = len(json.loads(small.get(index.HEAD))["classes"])
    job = ShardJob("g0-000000", "train", ())
    with TarPartWriter(folder, job, settings.part_bytes, None, cut=False) as parts:
        written = 0
        while written < size:
            videos.append(Video(f"again/{len(videos):06d}.mp4", (len(videos) % labels,), "train"))
            clip = next(clips)
            parts.add_sample(videos[-1], clip)
            written += len(clip.data)
        parts.close_part()
        rows, described = parts.read_back()
        for path, part in zip(parts.paths, described, strict=True):
            large.put_file(part["path"], path)
            path.unlink()
    head = small.get(index.HEAD)
    large.put(index.HEAD, head)
    meta = record_meta(job, described, rows, len(videos), [], json.loads(head)["settings_digest"])
    record.write_record(large, "train", job.id, rows, meta)
    classes = json.loads(head)["classes"]
    add_generation(large, 0, "corpus", "/nowhere", classes, [replace(job, videos=tuple(videos))])
    index.merge(large)
    return written


def samples(store: Store) -> Iterator[Clip]:
    """A store's training samples, as they were before they were stored."""
    fields = set(Clip.__dataclass_fields__) - {"data", "flow"}
    for split, job in record.list_records(store):
        if split == "train":
            tars = [part["path"] for part in record.read_meta(store, split, job)["parts"]]
            for row in record.read_record(store, split, job).to_pylist():
                data = store.get_range(tars[row["part"]], row["offset"], row["offset"] + row["size"])
                yield Clip(data=data, **{name: value for name, value in row.items() if name in fields})


@contextmanager
def variables(values: dict[str, str]) -> Iterator[None]:
    """These environment variables inside the `with`, the former ones after it."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def said(passed: bool) -> str:
    """Whether a goal is met."""
    return "pass" if passed else "MISS"
