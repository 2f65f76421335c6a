"""Ranks that torchrun or the deepspeed launcher starts: as many train as the lanes fit, and the world may grow."""

from __future__ import annotations

import os
import signal
from contextlib import ExitStack
from pathlib import Path

import pytest

from pretrain.engine.distributed import free_port
from tests.support.commands import checkpoints, gone, running, train_steps

TORCHRUN, DEEPSPEED = "torch.distributed.run", "deepspeed.launcher.runner"
PRETRAIN = ("cluster.cli", "pretrain")

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]


def test_a_rank_too_many_under_torchrun_waits_for_the_end(store: Path, recipe: Path, tmp_path: Path) -> None:
    arguments = ("--nproc-per-node", "3", "-m", *PRETRAIN, recipe, f"data.store={store}", "run=run")
    with running(*arguments, folder=tmp_path, module=TORCHRUN) as command:
        assert command.exit_code() == 0, command.said
        assert gone(list(command.descendants()))
    run = tmp_path / "run"
    assert train_steps(run) == list(range(1, 7))
    words = "2 lanes do not spread over 3 ranks: 2 train, and 1 stay idle until the run ends"
    assert (run / "train.log").read_text().count(words) == 1


def test_the_deepspeed_launcher_on_the_hosts_of_a_hostfile(store: Path, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "hostfile").write_text("localhost slots=1\n127.0.0.1 slots=2\n")
    port = str(free_port())
    with ExitStack() as nodes:
        commands = []
        for rank in ("0", "1"):
            where = ("--hostfile", "hostfile", "--no_ssh", "--node_rank", rank, "--master_addr", "127.0.0.1")
            what = ("--module", "--no_local_rank", *PRETRAIN, recipe, f"data.store={store}", "run=run")
            node = running(*where, "--master_port", port, *what, folder=tmp_path, module=DEEPSPEED)
            commands.append(nodes.enter_context(node))
        for command in commands:
            assert command.exit_code() == 0, command.said
    run = tmp_path / "run"
    assert train_steps(run) == list(range(1, 7)) and "2 train, and 1 stay idle" in (run / "train.log").read_text()


def test_a_stop_of_a_launch_by_deepspeed_saves_on_the_one_host(store: Path, recipe: Path, tmp_path: Path) -> None:
    """Its runner, which has a host of its own run no pdsh, leaves the ranks to themselves at a signal."""
    ssh = tmp_path / "bin" / "ssh"
    ssh.parent.mkdir()
    ssh.write_text("#!/bin/sh\nexit 0\n")  # the runner asks whether it reaches the first host
    ssh.chmod(0o755)
    hosts = "# ours\nlocalhost slots=2  # the only one\n"
    (tmp_path / "hostfile").write_text(hosts)
    path = {"PATH": f"{ssh.parent}:{os.environ['PATH']}"}
    where = ("--hostfile", "hostfile", "--launcher", "deepspeed", "--port", str(free_port()), "--submit")
    training = ("launch", "hostfile", recipe, f"data.store={store}", "run=run", "schedule.epochs=9000", *where)
    run = tmp_path / "run"
    with running(*training, folder=tmp_path, environment=path) as command:
        command.until(lambda: checkpoints(run))
        command.process.terminate()
        assert command.exit_code() == 75, command.said
        assert not command.descendants(), "it has waited for all that it started"
    assert "with everything saved" in (run / "train.log").read_text(), command.said
    assert checkpoints(run)[-1] == train_steps(run)[-1]
    assert (tmp_path / "hostfile").read_text() == hosts, "it is the user's"


def test_a_node_that_joins_torchrun_shares_the_same_run(store: Path, recipe: Path, tmp_path: Path) -> None:
    """Without a store of its own for each meeting, torchrun 2.13's agent that joins waits for an address in vain."""
    meeting = ("--nnodes", "1:2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{free_port()}")
    task = (*PRETRAIN, recipe, f"data.store={store}", "run=run", "schedule.epochs=9000")
    arguments = (*meeting, "--rdzv-id", "grows", "--nproc-per-node", "1", "-m", *task)
    run, own = tmp_path / "run", {"TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with running(*arguments, folder=tmp_path, environment=own, module=TORCHRUN) as first:
        first.until(lambda: checkpoints(run))
        with running(*arguments, folder=tmp_path, environment=own, module=TORCHRUN) as second:
            second.until(lambda: "going on from the checkpoint" in (run / "train.log").read_text())
            reached = train_steps(run)[-1]
            second.until(lambda: train_steps(run)[-1] > reached + 5)
            for agent in (first, second):
                agent.process.send_signal(signal.SIGTERM)
            for agent in (first, second):
                assert agent.exit_code() != 0 and gone(list(agent.descendants()))
    steps = train_steps(run)
    assert steps == list(range(1, steps[-1] + 1)), "no step is lost, or taken twice"
    assert checkpoints(run)[-1] == steps[-1]
