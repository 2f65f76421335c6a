"""Verifies a whole store by reading it again: head, index, plans, every shard; names what is damaged or orphaned."""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sharding.base.errors import UserError
from sharding.base.settings import digest
from sharding.format import index
from sharding.format.index import Index, Part, current_index, has_index, read_head
from sharding.format.plan import SPLITS
from sharding.format.record import list_records, read_record, record_meta, record_path, shard_of
from sharding.inspect.check_shard import check_shard, key_prefix, require_usable
from sharding.inspect.sequential_reader import SequentialReader
from sharding.inspect.shard_report import Damage, Decode, Expectations, ShardReport
from sharding.storage.store import Store


@dataclass(frozen=True, slots=True)
class VerifyProgress:
    """The progress of verifying: checked shards of `total`, with their samples, bytes and damages."""

    shards: int
    total: int
    samples: int
    bytes: int
    damages: int


@dataclass
class Verification:
    """The result of verifying a store. `decoded`: how many samples were decoded, each of their frames.

    Not damages: `orphans` (paths that no record names, e.g. of a killed worker), `unfinished` (planned shards without
    a record), `not_indexed` (shards finished since the index was made).
    """

    store: str
    index: str | None = None
    shards: int = 0
    parts: int = 0
    samples: int = 0
    decoded: int = 0
    bytes: int = 0
    damages: list[Damage] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    unfinished: int = 0
    not_indexed: int = 0

    @property
    def intact(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damages

    def add(
        self,
        what: str,
        split: str = "",
        job: str = "",
        part: int | None = None,
        key: str | None = None,
        path: str = "",
    ) -> None:
        """Add a damage."""
        self.damages.append(Damage(split, job, part, key, what, path))


def verify(
    store: Store,
    decode: Decode = "sample",
    workers: int | None = None,
    on_progress: Callable[[VerifyProgress], object] = lambda progress: None,
) -> Verification:
    """Read everything in a store again, and name every damaged shard and sample, in the order of the shards.

    `decode`: all frames of "all" samples, of a "sample" (about 1 in 50, the same each time, at least 1 a shard), or of
    "none". `workers`: threads, each of which holds a record, a block and a sample (None: one a core, at least 4).
    Memory grows with the samples by 8 bytes each, for finding keys that are there twice.

    `on_progress` is called before the first shard and after each. Raises UserError if there are no shards, or the store
    cannot be used.
    """
    result = Verification(store.url)
    head = _check_head(store, result)
    expected = Expectations(len(head["classes"]) if head else None, head["settings_digest"] if head else None, decode)
    current = _check_index(store, result)  # before the records: those of a shard that is made meanwhile are more
    records = list_records(store)
    if head and current:  # generations add classes; either may have been read before the other was written
        expected = Expectations(max(len(head["classes"]), len(current.classes)), expected.settings_digest, decode)
    if not head and not records and not current:
        raise UserError("there are no shards here", store.url, index.NO_SHARDS)
    if head and current and current.classes[: len(head["classes"])] != head["classes"][: len(current.classes)]:
        result.add(f"the class names of {index.HEAD} and of the index differ")
    _check_plans(store, records, result)
    listed = _by_shard(current)
    keys = bytearray()
    named: set[str] = set()  # the paths that records name
    unsure: set[tuple[str, str]] = set()  # shards of whose objects no record says which are named
    on_progress(VerifyProgress(0, len(records), 0, 0, 0))
    for report in _reports(store, records, expected, workers or max(4, os.cpu_count() or 1)):
        result.shards += 1
        result.parts += len(report.parts)
        result.samples += report.samples
        result.decoded += report.decoded
        result.bytes += report.bytes
        result.damages += report.damages
        keys += report.key_prefixes
        shard = (report.split, report.job)
        named |= {record_path(*shard), *map(report.path, range(len(report.parts)))}
        named.add(report.failure_list or "")
        _check_index_entry(report, listed.pop(shard, []), current, result)
        on_progress(VerifyProgress(result.shards, len(records), result.samples, result.bytes, len(result.damages)))
        if not report.names_only_its_parts:
            unsure.add(shard)
    for (split, job), parts in listed.items():
        result.add("the index has this shard, but its record is missing", split, job)
        named |= {part.path for part in parts}
    _check_unique_keys(store, records, keys, result)
    result.orphans = list(_orphans(store, named, unsure))
    result.damages.sort(key=lambda d: (d.split, d.job, -1 if d.part is None else d.part, d.key or "", d.what))
    return result


def _check_head(store: Store, result: Verification) -> dict[str, Any] | None:
    try:
        head = read_head(store)
    except UserError as error:
        require_usable(store)
        result.add(f"{index.HEAD}: {error.what}")
        return None
    if head is None:
        if store.list("index/"):
            result.add(f"{index.HEAD} is missing")
            return None
        raise UserError("there are no shards here", store.url, index.NO_SHARDS)
    if digest(head["settings"]) != head["settings_digest"]:
        result.add(f"{index.HEAD} is damaged: its settings are not what their digest says")
    return head


def _check_index(store: Store, result: Verification) -> Index | None:
    if not has_index(store):
        return None
    try:
        current = current_index(store)
    except UserError as error:
        require_usable(store)
        if not any(damage.what.startswith(index.HEAD) for damage in result.damages):
            result.add(error.what)
        return None
    result.index = current.version
    for name, split in current.splits.items():
        parts = [part for part in current.parts if part.split == name]
        sums = (sum(part.samples for part in parts), sum(part.bytes for part in parts), len(parts))
        if sums != (split.samples, split.bytes, split.shards):
            result.add(f"the index' totals of {name} are not those of its parts")
    return current


def _check_plans(store: Store, records: list[tuple[str, str]], result: Verification) -> None:
    """Check that the plan of each generation exists and is undamaged; count the planned shards without a record."""
    stored = store.list("plan/")
    generations = {f"plan/{job.partition('-')[0]}.json" for _, job in records}
    planned = 0
    for path in sorted(generations.union(path for path in stored if path.endswith(".json"))):
        try:
            tree = json.loads(store.get(path))
            planned += sum(tree["jobs"].values())
            file, sha256 = tree["file"], tree["digest"]
        except FileNotFoundError:
            result.add(f"{path}, a plan, is missing")
            continue
        except (ValueError, TypeError, KeyError, AttributeError):
            result.add(f"{path}, a plan, is damaged")
            continue
        if file not in stored:
            result.add(f"{file}, a plan, is missing")
        elif SequentialReader(store, file).digest() != sha256:
            result.add(f"{file}, a plan, is damaged: its content is not what its digest says")
    result.unfinished = max(planned - len(records), 0)


def _reports(
    store: Store, records: list[tuple[str, str]], expected: Expectations, workers: int
) -> Iterator[ShardReport]:
    """The report of every shard, in order; a few are checked ahead, so that memory stays flat."""
    waiting: deque[Future[ShardReport]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for split, job in records:
                waiting.append(pool.submit(check_shard, store, split, job, expected))
                if len(waiting) > 2 * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _by_shard(current: Index | None) -> dict[tuple[str, str], list[Part]]:
    parts: dict[tuple[str, str], list[Part]] = {}
    for part in current.parts if current else ():
        parts.setdefault((part.split, part.job), []).append(part)
    return parts


def _check_index_entry(report: ShardReport, listed: list[Part], current: Index | None, result: Verification) -> None:
    """Check that the index describes a shard's parts as its record does."""
    if current is None or report.unreadable:
        return
    if report.parts and not listed:
        result.not_indexed += 1
        return
    shard = (report.split, report.job)
    if len(listed) != len(report.parts):
        result.add(f"the index has {len(listed)} parts of it, its record {len(report.parts)}", *shard)
        return
    for part in listed:
        recorded = report.parts[part.part]
        wrong = [name for name in ("path", "samples", "bytes", "sha256") if getattr(part, name) != recorded.get(name)]
        if wrong:
            what = f"the index says otherwise than the record: {', '.join(wrong)}"
            result.add(what, *shard, part.part, path=report.path(part.part))


def _check_unique_keys(store: Store, records: list[tuple[str, str]], keys: bytearray, result: Verification) -> None:
    """Check that no two samples have the same key.

    By the first 8 bytes of each, sorted in place; only if some are equal are the records read again for whole keys.
    """
    prefixes = np.frombuffer(keys, np.uint64)
    prefixes.sort()
    twice = {number.tobytes() for number in prefixes[1:][prefixes[1:] == prefixes[:-1]]}
    if not twice:
        return
    owners: dict[str, list[tuple[str, str, int, str]]] = {}
    for split, job in records:
        try:
            table = read_record(store, split, job)
            paths = [str(part["path"]) for part in record_meta(table.schema)["parts"]]
        except (UserError, ValueError, KeyError, TypeError):
            continue  # reported before
        for key, part in zip(table["key"].to_pylist(), table["part"].to_pylist(), strict=True):
            if key_prefix(key) in twice:
                path = paths[part] if 0 <= part < len(paths) else record_path(split, job)
                owners.setdefault(key, []).append((split, job, part, path))
    for key, places in owners.items():
        for place in places if len(places) > 1 else ():
            others = ", ".join(other[3] for other in places if other != place) or "the same part"
            result.add(f"another sample has this key, too, in {others}", *place[:3], key, place[3])


def _orphans(store: Store, named: set[str], unsure: set[tuple[str, str]]) -> Iterator[str]:
    """The paths in the splits' folders that no record names, but for shards whose record is damaged."""
    for split in SPLITS:
        for path in store.list(f"{split}/"):
            if path not in named and shard_of(path) not in unsure:
                yield path
