"""Writes and reads failure lists: the videos and segments that gave no sample, why, and which fail after retries."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sharding.base.errors import DamagedStore
from sharding.base.redact import redacted
from sharding.corpora.manifest import Video, printable
from sharding.format.generations import Generation, planned_jobs
from sharding.format.plan import SPLITS, ShardJob
from sharding.format.record import (
    failure_list,
    failures_path,
    map_prefetched,
    raised_as_damage,
    read_meta,
    record_path,
    shard_of,
)
from sharding.media.input.bad_video import BadVideo
from sharding.storage.store import Store

Failure = dict[str, Any]
_FIELDS = {"uri", "start", "end", "segment", "kind", "reason"}
FailedUnit = tuple[str, float | None, float | None, int | None]  # uri, start, end, segment (None: the whole)


def failure_line(video: Video, segment: int | None, bad: BadVideo) -> Failure:
    """A line of the failure list: uri, start and end (of the listed stretch), segment, kind, reason, detail."""
    if segment is None and video.segments:
        (segment,) = video.segments
    place = {"uri": printable(video.uri), "start": video.start, "end": video.end, "segment": segment}
    reason, detail = redacted(printable(bad.reason)), redacted(printable(bad.detail))
    return place | {"kind": bad.kind, "reason": reason, "detail": detail}


def put_failures(store: Store, split: str, job: str, failures: Sequence[Failure]) -> str | None:
    """Put a shard's failure list; returns its path, for the record, or None where nothing failed."""
    if not failures:
        return None
    content = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in failures).encode()
    path = failures_path(split, job, content)
    store.put(path, content)
    return path


def read_failures(
    store: Store, shards: Iterable[tuple[str, str]], listed: Collection[tuple[str, str]]
) -> Iterator[Failure]:
    """Every failure of these shards, in their order, with the "split" and the "job" in which it happened.

    `listed`: the store's `shards_with_failures`. Raises UserError for a list that is damaged or missing.
    """
    some = (shard for shard in shards if shard in listed)
    with ThreadPoolExecutor(16) as pool:
        for (split, job), lines in map_prefetched(pool, lambda shard: _lines(store, *shard), some):
            yield from (line | {"split": split, "job": job} for line in lines)


def shards_with_failures(store: Store) -> set[tuple[str, str]]:
    """(split, job) of each shard with a failure list in the store, whether its record names the list or not."""
    end = ".failures.jsonl"
    paths = (path for split in SPLITS for path, _ in store.walk(f"{split}/") if path.endswith(end))
    return {shard for shard in map(shard_of, paths) if shard}


def current_failures(
    store: Store, plans: Sequence[Generation], done: Collection[tuple[str, str]]
) -> dict[FailedUnit, Failure]:
    """The failures of the finished shards, without those that a finished retry has tried again."""
    failing: dict[FailedUnit, Failure] = {}
    listed = shards_with_failures(store)
    for plan in plans:
        finished = [shard for shard in plan.shards if shard in done]
        if plan.kind == "retry":
            for job in planned_jobs(store, plan):
                if (job.split, job.id) in done:
                    for unit in retried_units(job):
                        failing.pop(unit, None)
        failing |= {unit_of(line): line for line in read_failures(store, finished, listed)}
    return failing


def retried_units(job: ShardJob) -> Iterator[FailedUnit]:
    """The videos and segments that a job of a retry tries again."""
    for video in job.videos:
        yield printable(video.uri), video.start, video.end, video.segments[0] if video.segments else None


def unit_of(line: Failure) -> FailedUnit:
    """The video or segment that a line of a failure list is about."""
    return line["uri"], line["start"], line["end"], line["segment"]


def _lines(store: Store, split: str, job: str) -> list[Failure]:
    with raised_as_damage(store, record_path(split, job)):
        meta = read_meta(store, split, job)
        path, count = failure_list(split, job, meta), sum(meta["failures"].values())
    if path is None:
        return []
    try:
        lines = [json.loads(line) for line in store.get(path).decode().split("\n")[:-1]]
    except FileNotFoundError:
        wrong: str | None = "missing"
    except ValueError as error:
        wrong = f"damaged: {error}"
    else:
        right = len(lines) == count and all(isinstance(line, dict) and line.keys() >= _FIELDS for line in lines)
        wrong = None if right else f"damaged: its lines are not the {count} failures of its record"
    if wrong:
        remedy = f"delete {record_path(split, job)} and shard the corpus again"
        raise DamagedStore(f"a shard's failure list is {wrong}", f"{store.url}/{path}", remedy)
    return lines
