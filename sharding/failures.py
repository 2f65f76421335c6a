"""A shard's failure list: the videos and segments that gave no sample, and why; which of a store's still fail."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sharding.generations import Generation, planned_jobs
from sharding.manifest import Video, printable
from sharding.media.judge import BadVideo
from sharding.plan import SPLITS, ShardJob
from sharding.record import zip_ahead
from sharding.redact import redacted
from sharding.store import Store

Failure = dict[str, Any]
Unit = tuple[str, float | None, float | None, int | None]  # uri, start, end, segment (None: the whole)


def failures_path(split: str, job: str) -> str:
    """Path of a shard's failure list in the store."""
    return f"{split}/{job}.failures.jsonl"


def failure(video: Video, segment: int | None, bad: BadVideo) -> Failure:
    """A line of the failure list: uri, start, end (of the listed stretch), segment, kind, reason, detail."""
    if segment is None and video.segments:
        (segment,) = video.segments
    told = {"kind": bad.kind, "reason": redacted(printable(bad.reason)), "detail": redacted(printable(bad.detail))}
    place = {"uri": printable(video.uri), "start": video.start, "end": video.end, "segment": segment}
    return place | told


def put_failures(store: Store, split: str, job: str, failures: Sequence[Failure]) -> None:
    """Put a shard's failure list; none is put for a shard without failures, unless an earlier try left one."""
    path = failures_path(split, job)
    if failures or store.exists(path):
        store.put(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in failures).encode())


def read_failures(store: Store, shards: Iterable[tuple[str, str]], listed: Collection[str]) -> Iterator[Failure]:
    """Every failure of these shards, in their order, with the "split" and the "job" it happened in.

    `listed`: the `failure_lists` of the store.
    """
    some = (shard for shard in shards if failures_path(*shard) in listed)
    with ThreadPoolExecutor(16) as pool:
        for (split, job), lines in zip_ahead(pool, lambda shard: _lines(store, *shard), some):
            yield from (json.loads(line) | {"split": split, "job": job} for line in lines)


def failure_lists(store: Store) -> set[str]:
    """Paths of all failure lists of a store."""
    end = ".failures.jsonl"
    return {path for split in SPLITS for path, _ in store.walk(f"{split}/") if path.endswith(end)}


def current_failures(
    store: Store, plans: Sequence[Generation], done: Collection[tuple[str, str]]
) -> dict[Unit, Failure]:
    """What of the finished shards still fails: a retry that ended takes back what it tried."""
    found: dict[Unit, Failure] = {}
    listed = failure_lists(store)
    for plan in plans:
        finished = [shard for shard in plan.ids if shard in done]
        if plan.kind == "retry":
            for job in planned_jobs(store, plan):
                if (job.split, job.id) in done:
                    for unit in units(job):
                        found.pop(unit, None)
        found |= {unit_of(line): line for line in read_failures(store, finished, listed)}
    return found


def units(job: ShardJob) -> Iterator[Unit]:
    """What a job of a retry tries again."""
    for video in job.videos:
        yield printable(video.uri), video.start, video.end, video.segments[0] if video.segments else None


def unit_of(line: Failure) -> Unit:
    """What a line of a failure list is about."""
    return line["uri"], line["start"], line["end"], line["segment"]


def _lines(store: Store, split: str, job: str) -> list[str]:
    return store.get(failures_path(split, job)).decode().split("\n")[:-1]
