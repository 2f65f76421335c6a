"""What all tests of faults share: hosts with disks of their own, an S3 server, and a run that nothing disturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from sharding.storage.store import open_store
from tests.cluster.faults.torchrun_job import TorchrunJob
from tests.support.commands import reelscale, succeeded
from tests.support.nodes.hosts import Host, gateway, hosts, require_hosts
from tests.support.s3 import S3Server, running_s3
from tests.support.training.checkpoints import load_newest

STEPS = 200
SETTINGS = (f"schedule.epochs={STEPS // 2}", "validation.every_steps=100", "checkpoint.every_steps=20")
QUICK = ("pulse.every_seconds=0.5", "pulse.lost_seconds=3")  # lost ranks are noticed in seconds
# An agent that was started anew hears from the others where they meet: they say it in each round of the rendezvous.
VARIABLES = {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}


@dataclass
class Machines:
    """Two hosts, the bucket that they share, and the weights of a run on two ranks that nothing disturbed."""

    hosts: list[Host]
    s3: S3Server
    recipe: Path
    store: str
    undisturbed: dict[str, torch.Tensor]


def copied(store: Path, server: S3Server) -> str:
    """The URL of a store's copy in the server's bucket."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        remote = open_store(f"s3://{server.bucket}/store")
        for path in store.rglob("*"):
            if path.is_file():
                remote.put_file(str(path.relative_to(store)), path)
        return remote.url


@pytest.fixture(scope="package")
def shared(store: Path, recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    require_hosts()
    folder = tmp_path_factory.mktemp("undisturbed")
    with hosts(2, "debian") as both, running_s3(address=gateway(both[0])) as s3:
        url = copied(store, s3)
        train = ("pretrain", recipe, f"data.store={url}", *SETTINGS, "run=run", "launcher=none", "ranks=2")
        succeeded(reelscale(*train, folder=folder, environment=s3.environment))
        newest = load_newest(folder / "run")
        assert newest and newest.step == STEPS
        yield Machines(both, s3, recipe, url, newest.model)


@pytest.fixture()
def machines(shared: Machines) -> Iterator[Machines]:
    """All that is shared, with hosts on which nothing runs."""
    for host in shared.hosts:
        host.kill()
        host.start()
    yield shared
    for host in shared.hosts:
        host.kill()


@pytest.fixture()
def torchrun(machines: Machines, request: pytest.FixtureRequest) -> Callable[..., TorchrunJob]:
    """The function that makes a run of the test's name by torchrun, with these settings."""
    name = request.node.name.removeprefix("test_")

    def job(*settings: str) -> TorchrunJob:
        # By name: a host does not know itself by its address where its name resolves to 127.0.1.1.
        meet = ("--rdzv-backend", "c10d", "--rdzv-endpoint", f"{machines.hosts[0].name}:29400", "--rdzv-id", name)
        agent = ("--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "5", *meet)
        train = ("-m", "cluster.cli", "pretrain", machines.recipe, f"data.store={machines.store}", "run=run")
        kept = (*SETTINGS, *QUICK, f"checkpoint.store=s3://{machines.s3.bucket}/{name}")
        return TorchrunJob(name, [*agent, *train, *kept, *settings], {**machines.s3.environment, **VARIABLES})

    return job
