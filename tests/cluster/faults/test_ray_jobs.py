"""Sharding, evaluation and fine-tuning over Ray nodes: a node is lost in the middle, and the result is the same."""

from __future__ import annotations

import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from sharding.storage.store import open_store
from tests.cluster.conftest import SMALL
from tests.cluster.faults.conftest import copied
from tests.support.commands import evaluation_summary, reelscale, succeeded
from tests.support.nodes.hosts import Host, gateway, hosts, require_hosts
from tests.support.nodes.on_ray import HostCommand, RayHosts
from tests.support.s3 import S3Server, running_s3

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1500)]

SHARD = (*SMALL, "videos_per_shard=1", "launcher=ray")
SCORED = ("clips=300", "batch=1")  # seconds a video
HEALED = {"unplug": "plug", "freeze": "thaw"}
FAULTS = ("kill", *HEALED)


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[RayHosts, S3Server]]:
    require_hosts()
    with hosts(3) as three, running_s3(address=gateway(three[0])) as server:
        yield RayHosts(three), server


@pytest.fixture(scope="module")
def alone(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The summary of an evaluation that nothing disturbs."""
    folder = tmp_path_factory.mktemp("alone")
    run = shutil.copytree(begun, folder / "run")
    (folder / "none.yaml").write_text(f"run: {run}\nlauncher: none\n")
    return evaluation_summary(succeeded(reelscale("evaluate", "none.yaml", "--json", *SCORED, folder=folder)).stdout)


@pytest.fixture()
def lost(cluster: tuple[RayHosts, S3Server]) -> Iterator[Host]:
    """The host that a test may break: after it, it is booted anew."""
    nodes, _ = cluster
    host = nodes.hosts[2]
    yield host
    host.kill()
    host.start()
    nodes.join(host)


@pytest.fixture()
def evaluate(cluster: tuple[RayHosts, S3Server], begun: Path, tmp_path: Path) -> Callable[..., HostCommand]:
    """Starts the evaluation of `alone` over the nodes."""
    nodes, server = cluster
    run = shutil.copytree(begun, tmp_path / "run")
    (tmp_path / "ray.yaml").write_text(f"run: {run}\nlauncher: ray\n")

    def start(*more: str, on: Host | None = None) -> HostCommand:
        words = ("evaluate", tmp_path / "ray.yaml", "--json", *SCORED, *more)
        return nodes.reelscale(*words, environment=server.environment, on=on)

    return start


def scores(command: HostCommand) -> dict[str, Any]:
    """The summary of an evaluation, once it has ended well."""
    assert command.exit_code() == 0 and "Traceback" not in command.said, command.said
    return evaluation_summary(command.said[command.said.index("{") :])


def working(host: Host, word: str) -> bool:
    """Whether a worker of Ray's is at a task of that name on a host, by the processes that decode for it."""
    return bool(task(host, word))


def task(host: Host, word: str) -> str:
    """The name of a task that `working` means; "" without one."""
    for pid, words in host.processes().items():
        with suppress(OSError):  # it has ended meanwhile
            if f"ray::{word}" in words and Path(f"/proc/{pid}/task/{pid}/children").read_text():
                return words
    return ""


def lose(host: Host, fault: str, command: HostCommand, word: str) -> None:
    """Break a host while it is at a task of that name; what hangs or is cut off is healed once another has the task.

    So what its node still does of the task comes late.
    """
    heal = HEALED.get(fault)
    command.until(lambda: working(host, word))
    began = time.monotonic()
    getattr(host, fault)()
    while heal and not working(host, word):  # it had ended in between
        getattr(host, heal)()
        command.until(lambda: working(host, word))
        began = time.monotonic()
        getattr(host, fault)()
    # One that has only just begun may be lost without a word.
    command.until(lambda: "begins anew: its " in command.said or command.process.poll() is not None)
    print(f"{word} and {fault}: given to another after {time.monotonic() - began:.0f} s", end=", ")
    if heal:
        getattr(host, heal)()
    assert command.exit_code() == 0, command.said
    print(f"done after {time.monotonic() - began:.0f} s")
    assert "Traceback" not in command.said


@contextmanager
def anew(nodes: RayHosts) -> Iterator[None]:
    """After what is done to the head inside the `with`, and fails or not, there is a new cluster."""
    try:
        yield
    finally:
        nodes.start_anew()


@contextmanager
def sharding(
    cluster: tuple[RayHosts, S3Server], corpus: Path, url: str, on: Host | None = None
) -> Iterator[HostCommand]:
    """Inside the `with` a command that has made three shards of 61; it must end well, with all of them whole."""
    nodes, server = cluster
    with pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        store = open_store(url)
        command = nodes.reelscale("shard", corpus, url, *SHARD, environment=server.environment, on=on)
        command.until(lambda: len([name for name in store.list("val/") if name.endswith(".parquet")]) >= 3)
        yield command
        assert command.exit_code() == 0 and "Traceback" not in command.said, command.said
    assert "samples                61" in command.said and "failures" not in command.said
    verified = nodes.reelscale("shards", "verify", url, environment=server.environment)
    assert verified.exit_code() == 0, verified.said


@pytest.mark.parametrize("fault", FAULTS)
def test_a_node_is_lost_while_shards_are_made(
    cluster: tuple[RayHosts, S3Server], lost: Host, long_corpus: Path, fault: str
) -> None:
    with sharding(cluster, long_corpus, f"s3://bucket/made-{fault}") as command:
        lose(lost, fault, command, "shard")


@contextmanager
def out_of_reach(server: S3Server, command: HostCommand, job: str) -> Iterator[None]:
    """The store is away for 20 s before the `with`, inside which the command, which waits, is to end."""
    server.kill()
    time.sleep(20)
    assert command.process.poll() is None, command.said
    server.start()
    began = time.monotonic()
    yield
    print(f"{job}, the store out of reach for 20 s: done {time.monotonic() - began:.0f} s after its return")
    assert "begins anew" not in command.said


@contextmanager
def slow_link(host: Host, job: str) -> Iterator[None]:
    """Inside the `with` a host's link carries 8 Mbit/s."""
    host.slow("8mbit")
    began = time.monotonic()
    yield
    print(f"{job}, a slow link: {time.monotonic() - began:.0f} s")
    host.fast()


def test_a_link_is_slow_then_the_store_is_out_of_reach_while_shards_are_made(
    cluster: tuple[RayHosts, S3Server], long_corpus: Path
) -> None:
    """Its tasks take longer, then wait for 20 s, and none of them is given to another."""
    nodes, server = cluster
    with sharding(cluster, long_corpus, "s3://bucket/made-late") as command:
        command.until(lambda: working(nodes.hosts[1], "shard"))
        with slow_link(nodes.hosts[1], "shard, two tasks on"):
            for _ in range(2):
                name = task(nodes.hosts[1], "shard")
                command.until(lambda: task(nodes.hosts[1], "shard") not in ("", name))  # noqa: B023
        with out_of_reach(server, command, "shard"):
            assert command.exit_code() == 0, command.said


def test_a_link_is_slow_then_the_store_is_out_of_reach_while_videos_are_scored(
    cluster: tuple[RayHosts, S3Server], evaluate: Callable[..., HostCommand], alone: dict[str, Any], store: Path
) -> None:
    """Two evaluations of a store that is read over the links."""
    nodes, server = cluster
    url = copied(store, server)
    slow = evaluate(f"store={url}")
    slow.until(lambda: working(nodes.hosts[1], "scoring"))
    with slow_link(nodes.hosts[1], "evaluate, to its end over"):
        assert scores(slow) == alone | {"store": url}
    late = evaluate(f"store={url}")
    late.until(lambda: any(working(host, "scoring") for host in nodes.hosts))
    with out_of_reach(server, late, "evaluate"):
        assert scores(late) == alone | {"store": url}


def test_the_head_is_lost_while_shards_are_made_and_videos_are_scored(
    cluster: tuple[RayHosts, S3Server], evaluate: Callable[..., HostCommand], alone: dict[str, Any], long_corpus: Path
) -> None:
    """Each command ends with one line; given again on the new cluster, it goes on."""
    nodes, server = cluster
    other, url = nodes.hosts[1], "s3://bucket/made-twice"
    shard = ("shard", long_corpus, url, *SHARD, "workers=2")
    made = nodes.reelscale(*shard, environment=server.environment, on=other)
    scored = evaluate("workers=1", on=other)
    made.until(r"shard: [1-9]\d*/61")
    scored.until(r"evaluate: [1-5]/6")
    began = time.monotonic()
    with anew(nodes):
        nodes.head.kill()
        for name, command in (("shard", made), ("evaluate", scored)):
            assert command.exit_code() == 1, command.said
            print(f"{name}, the head lost: the command ended after {time.monotonic() - began:.0f} s")
            assert "\nreelscale: the command was ended from outside" in command.said, command.said
            assert command.said.count("reelscale: ") == 1 and "Traceback" not in command.said, command.said
    again = evaluate(on=other)
    assert scores(again) == alone and re.search(r"[1-5] of 6 videos are scored already", again.said), again.said
    with sharding(cluster, long_corpus, url, on=other) as second:
        assert second.exit_code() == 0, second.said
    assert "shards are there already" in second.said


def test_a_second_signal_ends_commands_whose_head_does_not_answer(
    cluster: tuple[RayHosts, S3Server], evaluate: Callable[..., HostCommand], long_corpus: Path, store: Path,
    recipe: Path, tmp_path: Path,
) -> None:  # fmt: skip
    """Within seconds, where Ray's library would wait for a minute and more."""
    nodes, server = cluster
    other = nodes.hosts[1]
    shard = ("shard", long_corpus, "s3://bucket/made-never", *SHARD, "workers=1")
    train = ("pretrain", recipe, f"data.store={store}", f"run={tmp_path / 'trained'}", "launcher=ray", "nodes=1")
    commands = {
        "pretrain": nodes.reelscale(*train, "schedule.epochs=100000", on=other),
        "evaluate": evaluate("workers=1", "clips=10000", on=other),
    }
    commands["pretrain"].until(r" step 5/")
    commands["evaluate"].until(lambda: any(working(host, "scoring") for host in nodes.hosts))
    commands["shard"] = nodes.reelscale(*shard, environment=server.environment, on=other)
    commands["shard"].until(r"shard: [1-9]\d*/61")  # last, as it ends soonest
    with anew(nodes):
        nodes.head.freeze()
        time.sleep(6)  # in which each has asked it something
        for command in commands.values():
            command.process.send_signal(signal.SIGTERM)
        time.sleep(3)
        began = time.monotonic()
        for command in commands.values():
            command.process.send_signal(signal.SIGINT)
        for name, command in commands.items():
            assert command.exit_code() == 75, command.said
            print(f"{name}, the head hangs: ended {time.monotonic() - began:.0f} s after the second signal")
            assert "Traceback" not in command.said and "ended from outside" not in command.said, command.said
        assert time.monotonic() - began < 30  # by Ray's library it is 60 and more


@pytest.mark.parametrize("fault", FAULTS)
def test_a_node_is_lost_while_videos_are_scored(
    evaluate: Callable[..., HostCommand], lost: Host, alone: dict[str, Any], fault: str
) -> None:
    command = evaluate()
    lose(lost, fault, command, "scoring")
    assert scores(command) == alone


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
