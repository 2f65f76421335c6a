"""Makes one shard job: its tar parts, its failure list and last its record, which makes the shard exist."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from typing import Any

import av
import pydantic

from sharding.base import environment
from sharding.base.errors import UserError
from sharding.base.scratch import scratch
from sharding.base.settings import Seconds, Settings, digest, unit
from sharding.corpora.manifest import Video
from sharding.format import record
from sharding.format.failures import Failure, failure_line, put_failures
from sharding.format.index import length_bucket
from sharding.format.plan import ShardJob
from sharding.make.tar_parts import TarPartWriter
from sharding.media.input.bad_video import BadVideo
from sharding.media.input.source import Source, require_readable
from sharding.media.isolation import Isolated
from sharding.media.transcode import SegmentFailure, TranscodeCost, VideoSettings, transcode_with_cost
from sharding.storage.store import Store, open_store


class ShardSettings(VideoSettings):
    """What a store's samples and shards are. A tar part is closed once it reaches one of its two limits."""

    videos_per_shard: int | None = pydantic.Field(
        json_schema_extra=unit("videos"),
        default=None,
        ge=1,
        description="source videos in a shard; null: by the size of the split, from 1 (up to 64 videos) to 64",
    )
    part_bytes: int = pydantic.Field(
        json_schema_extra=unit("bytes"),
        default=256 * 10**6,
        ge=1,
        description="size in bytes from which a tar part is closed",
    )
    part_samples: int | None = pydantic.Field(
        json_schema_extra=unit("samples"),
        default=None,
        ge=1,
        description="samples after which a tar part is closed; null: any number",
    )


class WorkerSettings(Settings):
    """How a worker transcodes a video; changes no sample."""

    decoder_threads: int = pydantic.Field(
        json_schema_extra=unit("threads"),
        default=1,
        ge=1,
        le=16,
        description="threads that decode a video; on Ray as many CPUs of one node",
    )
    stall_seconds: Seconds = pydantic.Field(
        default=300.0, description="seconds without a frame after which a video is given up and listed as stalled"
    )


@dataclass(frozen=True)
class ShardProgress:
    """The progress of a job: counts since it began; `failures` by kind, `frames` decoded, `bytes_in` read.

    `good_videos`: those that gave a sample. `bytes_out` and `done` are set at its end; `made_by_another`: the
    shard is that of another worker.
    """

    job: str
    split: str
    videos: int = 0
    good_videos: int = 0
    samples: int = 0
    frames: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    done: bool = False
    made_by_another: bool = False


def make_shard(
    job: ShardJob,
    root: str,
    store: Store | str,
    settings: ShardSettings,
    worker: WorkerSettings | None = None,
    on_progress: Callable[[ShardProgress], object] = lambda progress: None,
) -> ShardProgress:
    """Transcode the job's videos and put its shard; returns its progress at the end.

    Killed at any moment, it leaves no half shard. Relative uris lie below `root`. A video that cannot be used, or that
    crashes or hangs its decoder, becomes a line of the failure list and never ends the shard. `on_progress` is called
    after each video. Raises UserError if the store, the local disk or the corpus itself cannot be used.
    """
    store = open_store(store, ask=False) if isinstance(store, str) else store
    worker = worker or WorkerSettings()
    so_far = ShardProgress(job.id, job.split)
    if store.exists(record.record_path(job.split, job.id)):
        return _made_by_another(store, job)
    failures: list[Failure] = []
    with (
        scratch("shard") as folder,
        TarPartWriter(folder, job, settings.part_bytes, settings.part_samples, settings.segments is not None) as parts,
    ):
        for video in job.videos:
            made = _VideoSamples(video)
            try:
                made.add_to(parts, root, settings, worker)
            except (UserError, MemoryError):
                raise
            except Exception as error:
                require_readable(root, video.uri, error)
                made.failures.append(failure_line(video, None, _bad(error)))
            failures += made.failures
            kinds = Counter(so_far.failures) + Counter(line["kind"] for line in made.failures)
            so_far = replace(
                so_far,
                videos=so_far.videos + 1,
                good_videos=so_far.good_videos + (made.samples > 0),
                samples=so_far.samples + made.samples,
                frames=so_far.frames + made.frames,
                bytes_in=so_far.bytes_in + made.bytes_in,
                failures=dict(kinds),
            )
            on_progress(so_far)
        parts.close_part()
        rows, part_meta = parts.read_back()
        if store.exists(record.record_path(job.split, job.id)):  # another worker's shard may differ: it stays
            return _made_by_another(store, job)
        for path, part in zip(parts.paths, part_meta, strict=True):
            store.put_file(part["path"], path)
    failure_list = put_failures(store, job.split, job.id, failures)
    meta = record_meta(job, part_meta, rows, so_far.good_videos, failures, digest(settings), failure_list)
    if not record.write_record(store, job.split, job.id, rows, meta):
        return _made_by_another(store, job, {*(part["path"] for part in part_meta), failure_list} - {None})
    return replace(so_far, bytes_out=sum(part["bytes"] for part in part_meta), done=True)


def _made_by_another(store: Store, job: ShardJob, put: Collection[str] = ()) -> ShardProgress:
    """The progress of the worker whose record exists; deletes the objects `put` here that the record does not name."""
    meta = record.read_meta(store, job.split, job.id)
    theirs = {part["path"] for part in meta["parts"]} | {record.failure_list(job.split, job.id, meta)}
    for path in sorted(set(put) - theirs):
        store.delete(path)
    return ShardProgress(
        job=job.id,
        split=job.split,
        videos=len(job.videos),
        samples=meta["samples"],
        frames=meta["frames"],
        bytes_out=sum(part["bytes"] for part in meta["parts"]),
        failures=meta["failures"],
        done=True,
        made_by_another=True,
    )


def decoding_child(stall_seconds: float) -> Isolated:
    """The child process in which this process decodes videos; a new one where the AWS credentials have changed."""
    return _child(stall_seconds, os.getpid(), environment.aws_variables())


@functools.lru_cache(maxsize=1)
def _child(stall_seconds: float, process: int, access: tuple[tuple[str, str], ...]) -> Isolated:
    return Isolated(stall_seconds)


def record_meta(
    job: ShardJob,
    parts: Sequence[dict[str, Any]],
    rows: Sequence[dict[str, Any]],
    videos: int,
    failures: Sequence[Failure],
    settings_digest: str,
    failure_list: str | None = None,
) -> dict[str, Any]:
    """A record's metadata, which the index merges without reading the rows.

    `videos`: how many gave at least one sample. `failure_list`: the path of the list of these failures, if any.
    """
    lengths = Counter(length_bucket(row["end"] - row["start"]) for row in rows)
    return {
        "format": record.FORMAT,
        "job": job.id,
        "split": job.split,
        "parts": list(parts),
        "videos": videos,
        "samples": len(rows),
        "frames": sum(row["frames"] for row in rows),
        "concealed": {
            "frames": sum(row["concealed"] for row in rows),
            "samples": sum(row["concealed"] > 0 for row in rows),
        },
        "seconds": round(sum(row["end"] - row["start"] for row in rows), 6),
        "lengths": dict(lengths),
        "failures": dict(Counter(line["kind"] for line in failures)),
        "failure_list": failure_list,
        "retried": dict(Counter(job.failed)),
        "versions": {
            "av": av.__version__,
            "libavcodec": ".".join(map(str, av.library_versions["libavcodec"])),
            "webdataset": metadata.version("webdataset"),
        },
        "settings_digest": settings_digest,
    }


class _VideoSamples:
    """The numbers of samples, frames and bytes that one video gave, and its failures."""

    def __init__(self, video: Video) -> None:
        self.video = video
        self.samples = self.frames = self.bytes_in = 0
        self.failures: list[Failure] = []

    def add_to(self, parts: TarPartWriter, root: str, settings: ShardSettings, worker: WorkerSettings) -> None:
        """Transcode the video in the child process, then append all its samples to the tar parts."""
        child, threads = decoding_child(worker.stall_seconds), worker.decoder_threads
        source = Source(root, self.video.uri)
        # Of the plain class: a ShardSettings would have the child import this module, and pyarrow by it.
        recipe = VideoSettings(encode=settings.encode, segments=settings.segments, flow=settings.flow)
        try:
            items = child.all_of(transcode_with_cost, source, self.video, recipe, threads, folder=parts.folder)
        except MemoryError as error:  # the child's, over this video
            raise BadVideo("crashed", "it needs more memory than there is", str(error)) from error
        for made in items:
            if isinstance(made, TranscodeCost):
                self.frames, self.bytes_in = made.frames, made.bytes_read
            elif isinstance(made, SegmentFailure):
                bad = BadVideo(made.kind, made.reason, made.detail)
                self.failures.append(failure_line(self.video, made.segment, bad))
            else:
                parts.add_sample(self.video, made)
                self.samples += 1


def _bad(error: Exception) -> BadVideo:
    """The BadVideo by which a video that raised this error is listed."""
    if isinstance(error, BadVideo):
        return error
    if isinstance(error, FileNotFoundError):
        return BadVideo("missing", "the file cannot be read", "it is no longer there")
    return BadVideo("unexpected", "it could not be transcoded", f"{type(error).__name__}: {error}")
