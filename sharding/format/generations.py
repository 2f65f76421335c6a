"""Writes and reads the plan of each generation, which lies in the store: which videos belong to which shard job.

`plan/g0.json` names the plan's file, `plan/g0-<digest>.parquet`, a row a video in the order of the jobs. Generation 0
is the corpus as it was first sharded; later ones are its new videos (`kind` corpus) or a retry of failed ones (`kind`
retry). A generation exists once its JSON does, which is put only where there is none.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from sharding.base.atomic import sha256_of
from sharding.base.errors import UserError
from sharding.base.scratch import scratch
from sharding.base.text import nfc, read_json
from sharding.corpora.manifest import Video
from sharding.format.plan import SPLITS, ShardJob, job_id
from sharding.storage.store import Store

Kind = Literal["corpus", "retry"]
_FORMAT = 1
_PLAN_NAME = re.compile(r"plan/g\d+\.json")
_BATCH = 2**14  # rows
_NEW_STORE = "restore it, or shard into a new STORE; the shards that are there can still be read"  # a remedy
_PLAN = pa.schema(
    [
        ("job", pa.int32()),
        ("split", pa.string()),
        ("uri", pa.binary()),  # a file's name need not be UTF-8
        ("labels", pa.list_(pa.int32())),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("bytes", pa.int64()),
        ("segments", pa.list_(pa.int32())),
        ("failed", pa.string()),
    ]
)


@dataclass(frozen=True)
class Generation:
    """The head of a generation's plan: `jobs` and `videos` are counts by split; relative uris lie below `root`.

    `left_out`: how many entries its corpus listed that were not planned, by kind. `digest`: sha256 of the plan's file.
    """

    number: int
    kind: Kind
    root: str
    classes: tuple[str, ...]
    jobs: dict[str, int]
    videos: dict[str, int]
    left_out: dict[str, int]
    file: str
    digest: str

    def __post_init__(self) -> None:
        # Plans of older versions may hold decomposed names, which mean the same classes.
        object.__setattr__(self, "classes", tuple(map(nfc, self.classes)))

    @property
    def shards(self) -> Iterator[tuple[str, str]]:
        """(split, job id) of each shard, in the order of the jobs."""
        first = 0
        for split in SPLITS:
            for number in range(first, first + self.jobs.get(split, 0)):
                yield split, job_id(self.number, number)
            first += self.jobs.get(split, 0)


def generations(store: Store) -> list[Generation]:
    """All generations of a store, in order. Raises UserError for one that is missing or damaged."""
    in_order = []
    for number in range(sum(_PLAN_NAME.fullmatch(path) is not None for path in store.list("plan/"))):
        path = f"plan/g{number}.json"
        try:
            data = store.get(path)
        except FileNotFoundError as error:
            raise UserError("the store's plan is missing", f"{store.url}/{path}", _NEW_STORE) from error
        in_order.append(read_json(data, Generation, "the store's plan", f"{store.url}/{path}", _NEW_STORE, _FORMAT))
    return in_order


def add_generation(
    store: Store,
    number: int,
    kind: Kind,
    root: str,
    classes: Iterable[str],
    jobs: Iterable[ShardJob],
    left_out: dict[str, int] | None = None,
    refusals: Iterable[dict[str, str]] = (),
) -> Generation | None:
    """Put the plan of a new generation, and return it; None if another command took its number meanwhile.

    `refusals`: the entries that the corpus lists and that are not planned, a line each in
    `plan/g0-<digest>.left-out.jsonl`. Jobs and refusals are streamed.
    """
    with scratch("plan") as folder:
        file = folder / "plan.parquet"
        job_count, video_count = _write_plan(file, jobs)
        digest = sha256_of(file)
        name = f"plan/g{number}-{digest[:16]}"
        made = Generation(
            number=number,
            kind=kind,
            root=root,
            classes=tuple(classes),
            jobs=dict(job_count),
            videos=dict(video_count),
            left_out=left_out or {},
            file=f"{name}.parquet",
            digest=digest,
        )
        if store.exists(f"plan/g{number}.json"):
            return None
        store.put_file(made.file, file)
        if left_out:
            refusals_file = folder / "left-out.jsonl"
            with refusals_file.open("w", encoding="utf-8") as lines:
                lines.writelines(json.dumps(refusal, ensure_ascii=False) + "\n" for refusal in refusals)
            store.put_file(f"{name}.left-out.jsonl", refusals_file)
    try:
        text = json.dumps({"format": _FORMAT, **asdict(made)}, indent=1) + "\n"
        store.put(f"plan/g{number}.json", text.encode(), create=True)
    except FileExistsError:
        return None
    return made


def planned_videos(store: Store, generation: Generation) -> Iterator[Video]:
    """Every video of a generation, in the order of its jobs; streamed."""
    for _, _, video, _ in _rows(store, generation):
        yield video


def planned_jobs(store: Store, generation: Generation, done: Collection[tuple[str, str]] = ()) -> Iterator[ShardJob]:
    """The jobs of a generation whose (split, id) is not in `done`; streamed."""
    if all(shard in done for shard in generation.shards):
        return
    for (number, split), rows in groupby(_rows(store, generation), key=itemgetter(0, 1)):
        identity = job_id(generation.number, number)
        if (split, identity) not in done:
            kept = list(rows)
            failed = tuple(kind for *_, kind in kept if kind) if generation.kind == "retry" else ()
            yield ShardJob(identity, split, tuple(video for _, _, video, _ in kept), failed)


def remaining_videos(store: Store, generation: Generation, done: Collection[tuple[str, str]]) -> int:
    """How many videos belong to the jobs of a generation that are not in `done`."""
    remaining = np.array([shard not in done for shard in generation.shards], np.bool_)
    if remaining.all() or not remaining.any():
        return sum(generation.videos.values()) if remaining.any() else 0
    with _downloaded(store, generation) as file:
        return sum(
            int(remaining[batch.column(0).to_numpy()].sum())
            for batch in file.iter_batches(_BATCH, columns=["job"], use_threads=False)
        )


def _write_plan(file: Path, jobs: Iterable[ShardJob]) -> tuple[Counter[str], Counter[str]]:
    job_count: Counter[str] = Counter()
    video_count: Counter[str] = Counter()

    def rows() -> Iterator[dict[str, Any]]:
        for number, job in enumerate(jobs):
            job_count[job.split] += 1
            video_count[job.split] += len(job.videos)
            kinds = job.failed or (None,) * len(job.videos)
            for video, failed in zip(job.videos, kinds, strict=True):
                fields = {name: getattr(video, name) for name in ("labels", "start", "end", "bytes", "segments")}
                yield {"job": number, "split": job.split, "uri": os.fsencode(video.uri), "failed": failed} | fields

    stream = rows()
    with pq.ParquetWriter(file, _PLAN, compression="zstd", write_page_checksum=True) as writer:
        while batch := list(islice(stream, _BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=_PLAN))
    return job_count, video_count


@contextlib.contextmanager
def _downloaded(store: Store, generation: Generation) -> Iterator[pq.ParquetFile]:
    """The plan's file, downloaded and verified by its digest, until the `with` ends."""
    where = f"{store.url}/{generation.file}"
    with scratch("plan") as folder:
        path = folder / "plan.parquet"
        try:
            store.get_file(generation.file, path)
        except FileNotFoundError as error:
            raise UserError("the store's plan is missing", where, _NEW_STORE) from error
        if sha256_of(path) != generation.digest:
            raise UserError("the store's plan is damaged: its content is not what its digest says", where, _NEW_STORE)
        with pq.ParquetFile(path) as file:
            yield file


def _rows(store: Store, generation: Generation) -> Iterator[tuple[int, str, Video, str | None]]:
    with _downloaded(store, generation) as file:
        for batch in file.iter_batches(_BATCH, use_threads=False):
            columns = [batch.column(name).to_pylist() for name in _PLAN.names]
            for job, split, uri, labels, start, end, size, segments, failed in zip(*columns, strict=True):
                video = Video(os.fsdecode(uri), tuple(labels), split, start, end, size, tuple(segments))
                yield job, split, video, failed
