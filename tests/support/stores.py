"""Stores made for tests: small, and all by the code that users run."""

from __future__ import annotations

import pickle
from pathlib import Path

from sharding.corpora.manifest import CorpusSettings
from sharding.format import index
from sharding.format.record import read_meta
from sharding.make.prepare import Prepared, prepare, prepare_retry
from sharding.make.shard import ShardProgress, ShardSettings, make_shard
from sharding.storage.store import Store

SETTINGS = ShardSettings.model_validate({"videos_per_shard": 4, "encode": {"short_edge": 32, "preset": "ultrafast"}})
READING = CorpusSettings.model_validate({"validation": 0.3})


def shard(
    corpus: Path | str, store: Store, settings: ShardSettings = SETTINGS, reading: CorpusSettings = READING
) -> Prepared:
    """All of `reelscale shard` but the spreading over workers."""
    prepared = prepare(str(corpus), store, settings, reading)
    make(prepared, settings)
    return prepared


def retry(store: Store, settings: ShardSettings = SETTINGS, root: str | None = None) -> Prepared:
    """All of `reelscale shards retry` but the spreading over workers."""
    prepared = prepare_retry(store, settings, root)
    make(prepared, settings)
    return prepared


def make(prepared: Prepared, settings: ShardSettings = SETTINGS) -> list[ShardProgress]:
    """Make the shards that are left to make, and the index."""
    made = [
        make_shard(pickle.loads(pickle.dumps(job)), root, prepared.store, settings)
        for job, root in prepared.remaining_jobs()
    ]
    index.merge(prepared.store)
    return made


def part_of(store: Store, shard: tuple[str, str], number: int = 0) -> str:
    """Path of a shard's tar part, as its record names it."""
    return str(read_meta(store, *shard)["parts"][number]["path"])


def content(store: Store) -> dict[str, bytes]:
    """Every object of a store."""
    return {path: store.get(path) for path in store.list("")}
