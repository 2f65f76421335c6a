"""A pretraining over Ray nodes, each with a disk of its own: nodes and processes are lost, and it ends all the same."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.cluster.faults.conftest import copied
from tests.support.commands import reelscale, succeeded
from tests.support.nodes.hosts import Host, gateway, hosts, require_hosts
from tests.support.nodes.on_ray import HostCommand, RayHosts
from tests.support.s3 import S3Server, running_s3

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(1500)]

STEPS = 240
RECIPE = f"""\
lanes: 6
lane_batch: 8
log_steps: 1
data:
  clip: {{frames: 4, resize: [16, 16], crop: 16, flip: false}}
  loader: {{workers: 1}}
model: {{depth: 10, width: 0.125}}
schedule: {{lr: 0.000001, epoch_clips: 48, epochs: {STEPS}, warmup_epochs: 1, decay: cosine}}
engine: {{precision: fp32, zero: 1}}
validation: {{every_steps: 1000}}
checkpoint: {{every_steps: 10}}
pulse: {{every_seconds: 1, lost_seconds: 15}}
"""
AGAIN = "training again, "
DISK = "/mnt"  # where each host sees its own disk, and no other's


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("recipe") / "six.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def undisturbed(recipe: Path, store: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, float]:
    """Step → loss of the run by one rank, with no fault."""
    folder = tmp_path_factory.mktemp("undisturbed")
    succeeded(reelscale("pretrain", recipe, f"data.store={store}", f"run={folder}/run", "launcher=none", folder=folder))
    return losses(folder / "run")


@pytest.fixture(scope="module")
def cluster() -> Iterator[tuple[RayHosts, S3Server]]:
    require_hosts()
    with hosts(3) as three, running_s3(address=gateway(three[0])) as server:
        for host in three:
            see_own_disk(host)
        yield RayHosts(three), server


@pytest.fixture()
def broken(cluster: tuple[RayHosts, S3Server]) -> Iterator[list[Host]]:
    """The hosts that a test breaks: after it they are booted anew, and are nodes again."""
    hosts_broken: list[Host] = []
    yield hosts_broken
    for host in hosts_broken:
        host.kill()
        host.start()
        see_own_disk(host)
        cluster[0].join(host)


def see_own_disk(host: Host) -> None:
    host.run(["mount", "--bind", str(host.disk), DISK])


def losses(run: Path) -> dict[int, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["loss"] for line in lines if line["event"] == "train"}


@pytest.fixture()
def pretrain(
    cluster: tuple[RayHosts, S3Server], recipe: Path, store: Path, request: pytest.FixtureRequest
) -> Callable[..., HostCommand]:
    """Starts a run of the test's own name; its checkpoints are in the S3 server."""
    nodes, server = cluster
    name = re.sub(r"\W", "-", request.node.name)

    def start(*more: str, on: Host | None = None) -> HostCommand:
        command = nodes.reelscale(
            "pretrain", recipe, f"data.store={store}", f"run={DISK}/{name}", "launcher=ray",
            f"checkpoint.store=s3://bucket/{name}", *more, environment=server.environment, on=on,
        )  # fmt: skip
        command.run = name
        return command

    return start


@contextmanager
def outlived(command: HostCommand, fault: str) -> Iterator[None]:
    """What is done inside the `with` costs ranks: waits until others train again, and prints what that took."""
    times, began = command.said.count(AGAIN), time.monotonic()
    yield
    command.until(lambda: command.said.count(AGAIN) > times)
    print(f"{fault}: training again after {time.monotonic() - began:.0f} s")


def ranks_on(host: Host) -> list[int]:
    """Pids of the ranks that a host has."""
    return [pid for pid, words in host.processes().items() if "RayTrainWorker" in words]


def last_step(command: HostCommand) -> int:
    """The last step that the log tells."""
    steps = re.findall(r" step (\d+)/", command.said)
    return int(steps[-1]) if steps else 0


def further(command: HostCommand, steps: int = 20) -> None:
    """Wait until so many more steps are taken."""
    now = last_step(command)
    command.until(lambda: last_step(command) >= now + steps)


def assert_whole(command: HostCommand, disk: Path, undisturbed: dict[int, float]) -> None:
    """The run has ended by itself, a line for each step, and its samples were those of one that nothing happened to.

    The loss of other samples differs by some hundredths; on other numbers of ranks rounding moves it by far less, as
    lanes of eight clips are normalised well and the rate is low.
    """
    assert command.exit_code() == 0, command.said
    assert "Traceback" not in command.said and "(raylet)" not in command.said
    own = losses(disk / command.run)
    assert sorted(own) == sorted(undisturbed) == list(range(1, STEPS + 1))
    assert max(abs(own[step] - undisturbed[step]) for step in own) < 1e-3


def test_a_rank_and_a_node_are_killed_and_the_node_comes_back(
    cluster: tuple[RayHosts, S3Server], pretrain: Callable[..., HostCommand], undisturbed: dict[int, float],
    broken: list[Host],
) -> None:  # fmt: skip
    """3 nodes, 2, and 3 again in one run."""
    nodes, _ = cluster
    lost, other = nodes.hosts[1:]
    broken.append(lost)
    command = pretrain("nodes=3", "min_ranks=1", "resize_seconds=3")
    further(command)
    with outlived(command, "a rank killed"):
        os.kill(ranks_on(other)[0], signal.SIGKILL)
    assert re.search(rf"rank \d of 3 on {other.address} is lost: its process died; going on from", command.said)

    further(command)
    with outlived(command, "a node killed"):
        lost.kill()
        command.until(r"2 ranks on [\d., ]+ of 3: the most that have room and divide 6 lanes")
    assert re.search(rf"on {lost.address} (is lost|cannot be reached)", command.said), command.said

    lost.start()
    see_own_disk(lost)
    nodes.join(lost)
    grown = command.until(r"room for 3 ranks instead of 2")
    command.until(lambda: "3 ranks on " in command.said[grown.end() :])
    assert_whole(command, nodes.head.disk, undisturbed)


def test_a_node_hangs_then_a_link_is_cut(
    cluster: tuple[RayHosts, S3Server], pretrain: Callable[..., HostCommand], undisturbed: dict[int, float],
    broken: list[Host],
) -> None:  # fmt: skip
    """Two ranks on three nodes: the spare takes the place of the one that hangs; then one goes on alone."""
    nodes, _ = cluster
    broken += nodes.hosts[1:]
    command = pretrain("nodes=2", "min_ranks=1", "resize_seconds=1000")
    further(command)
    hung = next(
        each for each in nodes.hosts[1:] if any("RayTrainWorker" in words for words in each.processes().values())
    )
    spare = next(each for each in nodes.hosts[1:] if each is not hung)
    with outlived(command, "a node hangs"):
        hung.freeze()
        command.until(rf"2 ranks on [\d., ]*{spare.address}")
    further(command)
    with outlived(command, "a link cut"):
        spare.unplug()
    spare.plug()
    assert_whole(command, nodes.head.disk, undisturbed)


def test_the_store_is_out_of_reach_then_a_link_is_slow(
    cluster: tuple[RayHosts, S3Server], pretrain: Callable[..., HostCommand], undisturbed: dict[int, float], store: Path
) -> None:
    """Data and checkpoints for 20 s: the run waits, or goes on with what it has read. No rank counts as lost."""
    nodes, server = cluster
    command = pretrain("nodes=2", f"data.store={copied(store, server)}", "data.patience_seconds=200")
    further(command)
    server.kill()
    time.sleep(20)
    server.start()
    began = time.monotonic()
    further(command, 1)
    print(f"the store out of reach for 20 s: a step {time.monotonic() - began:.0f} s after its return")
    nodes.hosts[1].slow("8mbit")
    began = time.monotonic()
    further(command, 2)
    print(f"a slow link: two steps in {time.monotonic() - began:.0f} s")
    nodes.hosts[1].fast()
    assert_whole(command, nodes.head.disk, undisturbed)
    assert AGAIN not in command.said


def test_the_head_is_lost_and_started_again(
    cluster: tuple[RayHosts, S3Server], pretrain: Callable[..., HostCommand], undisturbed: dict[int, float]
) -> None:
    """A cluster ends with its head. The command says so and ends; given again on the new cluster, it goes on."""
    nodes, _ = cluster
    other = nodes.hosts[1]
    first = pretrain("nodes=2", on=other)
    further(first)
    began = time.monotonic()
    try:
        nodes.head.kill()
        code = first.exit_code()
        print(f"the head lost: the command ended after {time.monotonic() - began:.0f} s, exit {code}")
        assert code == 1 and first.said.count("\nreelscale: ") == 1 and "Traceback" not in first.said, first.said
    finally:  # the next test needs it, too
        nodes.start_anew()
        for host in nodes.hosts:
            see_own_disk(host)
    began = time.monotonic()
    second = pretrain("nodes=2", on=other)
    further(second, 1)
    print(f"a new head: training again after {time.monotonic() - began:.0f} s")
    assert re.search(r"going on from the checkpoint at step \d+ of", second.said)
    assert_whole(second, other.disk, undisturbed)


def test_nodes_that_share_no_disk(
    cluster: tuple[RayHosts, S3Server], pretrain: Callable[..., HostCommand], undisturbed: dict[int, float]
) -> None:
    """Stopped from one node, where it was started; gone on from another, whose disk is empty."""
    nodes, _ = cluster
    refused = pretrain("nodes=2", "checkpoint.store=null")
    assert refused.exit_code() == 2, refused.said
    assert "the nodes do not share the run's folder" in refused.said and "checkpoint.store=s3://" in refused.said

    first = pretrain("nodes=2")
    further(first)
    first.process.send_signal(signal.SIGTERM)
    assert first.exit_code() == 75, first.said
    assert re.search(r"stopped at step \d+ with everything saved", first.said)
    second = pretrain("nodes=2", on=nodes.hosts[1])
    second.until(r"going on from the checkpoint at step \d+ of")
    assert_whole(second, nodes.hosts[1].disk, undisturbed)


def test_no_room_is_said_and_waited_for_no_longer_than_wanted(pretrain: Callable[..., HostCommand]) -> None:
    waits = pretrain("nodes=6", "placement_timeout_seconds=6")
    assert waits.exit_code() == 1, waits.said
    assert "waiting for room: 6 nodes with 1 ranks each wanted; the cluster has 3 nodes" in waits.said
    assert "no room for the ranks after" in waits.said and "Traceback" not in waits.said

    stopped = pretrain("nodes=6")
    stopped.until("waiting for room")
    stopped.process.send_signal(signal.SIGTERM)
    assert stopped.exit_code() == 75, stopped.said


def test_without_the_token_nobody_submits(cluster: tuple[RayHosts, S3Server], recipe: Path, store: Path) -> None:
    nodes, _ = cluster
    stranger = nodes.hosts[1]
    words = ("pretrain", recipe, f"data.store={store}", f"run={DISK}/stranger", "launcher=ray")
    none = nodes.reelscale(*words, environment={"HOME": "/mnt/nobody"}, on=stranger)
    assert none.exit_code() == 2, none.said
    assert "no token for this Ray cluster" in none.said and "ray get-auth-token --generate" in none.said
    for wrong in ({"RAY_AUTH_TOKEN": "cd" * 32}, {"HOME": "/mnt/nobody", "RAY_AUTH_MODE": "disabled"}):
        other = nodes.reelscale(*words, environment=wrong, on=stranger)
        assert other.exit_code() == 2, other.said
        assert "does not take this token" in other.said and len(other.said.splitlines()) < 40, other.said
