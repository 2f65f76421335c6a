"""Videos → shard jobs: pure, deterministic, the same on every machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

from sharding.manifest import Video

SPLITS = ("train", "val")


@dataclass(frozen=True, slots=True)
class ShardJob:
    """The videos that one worker turns into one shard; `id` is unique over all splits."""

    id: str
    split: str
    videos: tuple[Video, ...]


def shard_size(videos: int) -> int:
    """Videos a shard of a split, where none is set: as few as make 64 shards, so that they can be made side by side.

    At most 64, so that a large corpus has shards worth streaming.
    """
    return min(max(-(-videos // 64), 1), 64)


def plan(videos: Sequence[Video], videos_per_shard: int | None) -> list[ShardJob]:
    """Jobs of at most `videos_per_shard` videos each (None: `shard_size` of the split), from train on to val.

    Inside a split the order is by a hash of the uri, so that a shard mixes classes; the order of the
    input does not matter.
    """
    jobs: list[ShardJob] = []
    for split in SPLITS:
        mine = sorted((video for video in videos if video.split == split), key=_order)
        size = videos_per_shard or shard_size(len(mine))
        for start in range(0, len(mine), size):
            chunk = tuple(mine[start : start + size])
            jobs.append(ShardJob(f"g0-{len(jobs):06d}", split, chunk))
    return jobs


def manifest_digest(videos: Sequence[Video], classes: Sequence[str]) -> str:
    """sha256 (hex) of the classes and of every video's uri, labels and split, in any order."""
    rows = sorted([video.uri, list(video.labels), video.split] for video in videos)
    return hashlib.sha256(json.dumps([list(classes), rows]).encode()).hexdigest()


def _order(video: Video) -> tuple[bytes, str]:
    # Salted: unsalted, the validation share would lie in one corner of the order.
    return hashlib.sha256(b"order:" + video.uri.encode("utf-8", "surrogateescape")).digest(), video.uri
