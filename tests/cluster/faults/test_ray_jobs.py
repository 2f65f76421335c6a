"""Sharding, evaluation and fine-tuning over Ray nodes: a node is lost in the middle, and the result is the same."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharding.storage.store import open_store
from tests.cluster.conftest import SMALL
from tests.support.commands import evaluation_summary, reelscale, succeeded
from tests.support.nodes.hosts import Host, gateway, hosts, require_hosts
from tests.support.nodes.on_ray import RayHosts
from tests.support.s3 import S3Server, running_s3

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1500)]

SHARD = (*SMALL, "videos_per_shard=1", "launcher=ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[RayHosts, S3Server]]:
    require_hosts()
    with hosts(3) as three, running_s3(address=gateway(three[0])) as server:
        yield RayHosts(three), server


@pytest.fixture()
def lost(cluster: tuple[RayHosts, S3Server]) -> Iterator[Host]:
    """The host that a test may break: after it, it is booted anew."""
    nodes, _ = cluster
    host = nodes.hosts[2]
    yield host
    host.kill()
    host.start()
    nodes.join(host)


def working(host: Host, word: str) -> bool:
    """Whether a worker of Ray's is at a task of that name on a host."""
    return any(f"ray::{word}" in words for words in host.processes().values())


def test_a_node_is_lost_while_shards_are_made(
    cluster: tuple[RayHosts, S3Server], lost: Host, long_corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    nodes, server = cluster
    for name, value in server.environment.items():
        monkeypatch.setenv(name, value)
    url = "s3://bucket/made"
    command = nodes.reelscale("shard", long_corpus, url, *SHARD, environment=server.environment)
    store = open_store(url)
    command.until(lambda: len([name for name in store.list("val/") if name.endswith(".parquet")]) >= 3)
    command.until(lambda: working(lost, "_make_reporting"))
    began = time.monotonic()
    lost.kill()
    assert command.exit_code() == 0, command.said
    print(f"shard: done {time.monotonic() - began:.0f} s after it")
    assert "Traceback" not in command.said
    assert "samples                61" in command.said and "failures" not in command.said
    verified = nodes.reelscale("shards", "verify", url, environment=server.environment)
    assert verified.exit_code() == 0, verified.said


def test_a_node_is_lost_while_videos_are_scored(
    cluster: tuple[RayHosts, S3Server], lost: Host, begun: Path, tmp_path: Path
) -> None:
    nodes, _ = cluster
    long = ("clips=300", "batch=1")
    runs = {name: shutil.copytree(begun, tmp_path / name) for name in ("ray", "none")}
    for name, run in runs.items():
        (tmp_path / f"{name}.yaml").write_text(f"run: {run}\nlauncher: {name}\n")
    alone = succeeded(reelscale("evaluate", tmp_path / "none.yaml", "--json", *long, folder=tmp_path))
    command = nodes.reelscale("evaluate", tmp_path / "ray.yaml", "--json", *long)
    command.until(lambda: working(lost, "_task"))
    began = time.monotonic()
    lost.kill()
    assert command.exit_code() == 0, command.said
    print(f"evaluate: done {time.monotonic() - began:.0f} s after it")
    assert "another takes them" in command.said and "Traceback" not in command.said
    assert evaluation_summary(command.said[command.said.index("{") :]) == evaluation_summary(alone.stdout)


def test_a_node_is_lost_while_a_network_is_fine_tuned(
    cluster: tuple[RayHosts, S3Server], lost: Host, begun: Path, store: Path, recipe: Path, tmp_path: Path
) -> None:
    """The spare takes its place: the bits are those of a run that nothing happened to."""
    nodes, server = cluster
    long = ("schedule.epochs=100", "checkpoint.every_steps=10", "validation.every_steps=1000", "schedule.lr=0.0001")
    tune = ("finetune", recipe, f"data.store={store}", f"init.run={begun}", *long)
    alone = ("launcher=none", "ranks=2", f"run={tmp_path / 'alone'}")
    succeeded(reelscale(*tune, *alone, folder=tmp_path))
    over_nodes = ("launcher=ray", "nodes=2", f"run={tmp_path / 'run'}", "checkpoint.store=s3://bucket/tuned")
    command = nodes.reelscale(*tune, *over_nodes, environment=server.environment)
    command.until(r" step 20/")
    host = next(host for host in nodes.hosts[1:] if any("RayTrainWorker" in each for each in host.processes().values()))
    began = time.monotonic()
    host.kill()
    command.until("training again, ")
    print(f"finetune: training again after {time.monotonic() - began:.0f} s")
    assert command.exit_code() == 0, command.said
    weights = [next((tmp_path / run / "checkpoints").glob("step-00000200*")) for run in ("run", "alone")]
    assert len({(folder / "model.safetensors").read_bytes() for folder in weights}) == 1
    if host is not lost:
        host.start()
        nodes.join(host)
