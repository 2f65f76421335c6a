"""One shard job → its tar parts, its failure list and its record, which makes it exist."""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import av
import pydantic

from sharding import index, metrics, record
from sharding.errors import UserError
from sharding.index import Index
from sharding.judge import BadVideo
from sharding.manifest import Manifest, Video, printable, read_manifest
from sharding.parts import Parts
from sharding.plan import ShardJob, manifest_digest, plan
from sharding.settings import Settings, differences, digest
from sharding.source import local_file, require_readable
from sharding.store import Store, open_store
from sharding.video import EncodeSettings, transcode


class ShardSettings(Settings):
    """How a corpus becomes shards. `part_bytes`: a tar part is closed once it is this long.

    `videos_per_shard`: None for `plan.shard_size` of each split: 1 up to 64 videos, 64 from 4,033 on.
    """

    videos_per_shard: int | None = pydantic.Field(default=None, ge=1)
    part_bytes: int = pydantic.Field(default=256 * 10**6, ge=1)
    validation: float = pydantic.Field(default=0.1, ge=0.0, lt=1.0)
    encode: EncodeSettings = pydantic.Field(default_factory=EncodeSettings)


@dataclass(frozen=True)
class ShardResult:
    """What a job made; `already` if another worker had finished it. `failures` counts videos."""

    job: str
    split: str
    samples: int
    failures: int
    bytes: int
    seconds: float
    already: bool = False


@dataclass(frozen=True)
class Prepared:
    """A planned corpus: all `jobs`, those still `todo`, and `notes` in words for the user."""

    jobs: list[ShardJob]
    todo: list[ShardJob]
    classes: tuple[str, ...]
    videos: int
    notes: tuple[str, ...]


def prepare(corpus: str, store: Store | str, settings: ShardSettings) -> Prepared:
    """Read and plan the corpus, claim the store for it, and see in the store's records what is left to do.

    A store in which not one video was good is made anew, for they may have been mended or replaced. Raises
    UserError if the store was made from other videos or with other settings.
    """
    store = _opened(store)
    manifest = read_manifest(corpus, settings.validation)
    head = {
        "format": record.FORMAT,
        "classes": list(manifest.classes),
        "settings": settings.model_dump(mode="json"),
        "settings_digest": digest(settings),
        "manifest_digest": manifest_digest(manifest.videos, manifest.classes),
        "videos": len(manifest.videos),
    }
    notes = manifest.notes
    if index.nothing_good(store):
        notes += ("not one video in this store was good so far: all are tried anew",)
        _clear(store)
    _claim(store, head, manifest)
    jobs = plan(manifest.videos, settings.videos_per_shard)
    done = set(record.list_records(store))
    todo = [job for job in jobs if (job.split, job.id) not in done]
    return Prepared(jobs, todo, manifest.classes, len(manifest.videos), notes)


def make_shard(job: ShardJob, corpus: str, store: Store | str, settings: ShardSettings) -> ShardResult:
    """Transcode the job's videos and put its shard; killed at any moment, it leaves no half shard.

    A video that cannot be used becomes a line of the failure list and never ends the shard. Raises
    UserError if the store, the local disk or the corpus itself cannot be used.
    """
    store = _opened(store)
    began = time.monotonic()
    failures: list[dict[str, str]] = []
    with (
        tempfile.TemporaryDirectory(prefix="reelscale-shard-") as folder,
        Parts(Path(folder), job, settings.part_bytes) as parts,
    ):
        for video in job.videos:
            try:
                with local_file(corpus, video.uri) as path:
                    clip = transcode(path, settings.encode)
            except (UserError, MemoryError):
                raise
            except Exception as error:
                require_readable(corpus, video.uri, error)
                failures.append(_failure(video, error))
            else:
                parts.add(video, clip)
                metrics.SAMPLES.inc()
        parts.close()
        rows, described = parts.verified()
        for path, part in zip(parts.paths, described, strict=True):
            store.put_file(part["path"], path)
            metrics.BYTES.inc(part["bytes"])
    path_of_failures = record.failures_path(job.split, job.id)
    if failures or store.exists(path_of_failures):
        lines = "".join(json.dumps(failure, ensure_ascii=False) + "\n" for failure in failures)
        store.put(path_of_failures, lines.encode())
    meta = _record_meta(job, described, rows, len(failures), digest(settings))
    mine = record.write_record(store, job.split, job.id, rows, meta)
    total = sum(part["bytes"] for part in described)
    seconds = time.monotonic() - began
    return ShardResult(job.id, job.split, len(rows), len(failures), total, seconds, not mine)


def finish(store: Store | str) -> Index:
    """Merge the records into the store's current index.

    Raises UserError, with the first reasons, if not one video was good.
    """
    return index.merge(_opened(store))


def _opened(store: Store | str) -> Store:
    return open_store(store) if isinstance(store, str) else store


def _clear(store: Store) -> None:
    """Take back all records and failure lists, and the claim last: without it old records would count as done."""
    for split, job in record.list_records(store):
        store.delete(record.failures_path(split, job))
        store.delete(record.record_path(split, job))
    store.delete(index.HEAD)


def _claim(store: Store, head: dict[str, Any], manifest: Manifest) -> None:
    """Write reelscale.json, or see that the one there says the same."""
    data = (json.dumps(head, indent=1, ensure_ascii=True) + "\n").encode()
    there = index.read_head(store)
    if there is None:
        try:
            store.put(index.HEAD, data, create=True)
            return
        except FileExistsError:
            there = index.read_head(store)
    assert there is not None
    if there == head:
        return
    lines = []
    for field, old, new in differences(there, head):
        if field == "manifest_digest":
            lines.append("  the videos (names, classes or split) differ")
        elif field != "settings_digest":
            lines.append(f"  {field}: there {json.dumps(old)}, here {json.dumps(new)}")
    what = "\n".join(["the store was made from other videos or with other settings:", *lines])
    remedy = f"give another STORE for {manifest.corpus}, or the settings and videos that this one was made with"
    raise UserError(what, f"{store.url}/{index.HEAD}", remedy)


def _failure(video: Video, error: Exception) -> dict[str, str]:
    if isinstance(error, FileNotFoundError):
        error = BadVideo("unreadable", "the file cannot be read", "it is no longer there")
    if not isinstance(error, BadVideo):
        error = BadVideo("unexpected", "it could not be transcoded", f"{type(error).__name__}: {error}")
    metrics.FAILURES.labels(reason=error.kind).inc()
    told = {"uri": video.uri, "reason": error.reason, "detail": error.detail}
    return {name: printable(text) for name, text in told.items()}


def _record_meta(
    job: ShardJob,
    parts: Sequence[dict[str, Any]],
    rows: Sequence[dict[str, Any]],
    failures: int,
    settings_digest: str,
) -> dict[str, Any]:
    histogram = Counter(label for row in rows for label in row["labels"])
    return {
        "format": record.FORMAT,
        "job": job.id,
        "split": job.split,
        "parts": list(parts),
        "videos": len(rows),
        "failures": failures,
        "label_histogram": {str(label): count for label, count in sorted(histogram.items())},
        "versions": {
            "av": av.__version__,
            "libavcodec": ".".join(map(str, av.library_versions["libavcodec"])),
            "webdataset": metadata.version("webdataset"),
        },
        "settings_digest": settings_digest,
    }
