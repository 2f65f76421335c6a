"""A workload and a cluster of round numbers, by which arithmetic is checked by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from pretrain.planning.estimate import Cluster
from pretrain.planning.workload import StoreFacts, Workload

STORE = StoreFacts(samples=1_000_000, classes=400, frames=300, bytes_per_frame=600, shards=700, shard_bytes=256e6)
LOAD = Workload(
    steps=10_000, lanes=64, lane_batch=32, macs=150e9, parameters=64_000_000, gradient_bytes=256_000_000,
    checkpoint_bytes=512_000_000, zero=1, half=True, span=32, clip_bytes=28_800, clip_requests=1, whole_parts=False,
    checkpoint_every=1000, validation_every=5000, validation_clips=5000, workers=None, lost_seconds=35,
    block_bytes=256 * 2**20, store=STORE,
)  # fmt: skip
ON = Cluster(
    nodes=8, gpus_per_node=8, clip_rate=300, e2e=1.0, jitter=0.0, network=50e9, latency=0.0, link=450e9,
    exchange="auto", overlap=0.0, cores=112, core_rate=150, store=12.5e9, store_total=None, requests=None, shard=None,
    pause=0.05, write=1e9, per_gpu_day=0.0, per_node_day=0.0, reschedule=60, start=70, price=4.0,
)  # fmt: skip


def load_of(**changes: Any) -> Workload:
    return replace(LOAD, **changes)


def on_a(**changes: Any) -> Cluster:
    return replace(ON, **changes)


@pytest.fixture(autouse=True, scope="session")
def numbers_are_those_of_the_tests() -> None:
    assert ON.ranks == LOAD.lanes
