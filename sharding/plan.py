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


def plan(videos: Sequence[Video], videos_per_shard: int) -> list[ShardJob]:
    """Jobs of at most `videos_per_shard` videos each, numbered on from train to val.

    Inside a split the order is by a hash of the uri, so that a shard mixes classes; the order of the
    input does not matter.
    """
    jobs: list[ShardJob] = []
    for split in SPLITS:
        mine = sorted((video for video in videos if video.split == split), key=_order)
        for start in range(0, len(mine), videos_per_shard):
            chunk = tuple(mine[start : start + videos_per_shard])
            jobs.append(ShardJob(f"g0-{len(jobs):06d}", split, chunk))
    return jobs


def manifest_digest(videos: Sequence[Video], classes: Sequence[str]) -> str:
    """sha256 (hex) of the classes and of every video's uri, labels and split, in any order."""
    rows = sorted([video.uri, list(video.labels), video.split] for video in videos)
    return hashlib.sha256(json.dumps([list(classes), rows]).encode()).hexdigest()


def _order(video: Video) -> tuple[bytes, str]:
    # Salted: unsalted, the validation share would lie in one corner of the order.
    return hashlib.sha256(b"order:" + video.uri.encode("utf-8", "surrogateescape")).digest(), video.uri
