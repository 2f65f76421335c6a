"""Divides the videos of a corpus into shard jobs; pure, so the same on every machine."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from sharding.corpora.manifest import Video

SPLITS = ("train", "val")


@dataclass(frozen=True, slots=True)
class ShardJob:
    """The videos that one worker makes into one shard; `id` is unique over all splits.

    `failed`: in a retry, the kind of failure that each of the videos had; else ().
    """

    id: str
    split: str
    videos: tuple[Video, ...]
    failed: tuple[str, ...] = ()


def job_id(generation: int, number: int) -> str:
    """The name of a job, unique in its store: `g0-000000` is the first of generation 0."""
    return f"g{generation}-{number:06d}"


def default_shard_size(videos: int) -> int:
    """The number of videos a shard where none is set: as few as give 64 shards, so that many can be made side by side.

    At most 64, so that a large corpus has shards worth streaming.
    """
    return min(max(-(-videos // 64), 1), 64)


def plan(
    videos: Iterable[Video], counts: Mapping[str, int], videos_per_shard: int | None, generation: int = 0
) -> Iterator[ShardJob]:
    """The jobs of at most `videos_per_shard` videos each (None: `default_shard_size` of the split), train before val.

    `videos` come in a manifest's order, split by split, and are streamed; `counts` says how many a split has.
    Jobs are numbered through both splits.
    """
    number = itertools.count()
    order = iter(SPLITS)
    for split, of_split in itertools.groupby(videos, key=lambda video: video.split):
        assert split in order, "videos must come training first, then validation"
        size = videos_per_shard or default_shard_size(counts[split])
        while chunk := tuple(itertools.islice(of_split, size)):
            yield ShardJob(job_id(generation, next(number)), split, chunk)
