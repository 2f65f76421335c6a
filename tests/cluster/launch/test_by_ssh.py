"""`reelscale launch hostfile --submit` by a real SSH server: hosts that train together, and save when it is asked."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pretrain.engine.distributed import free_port
from tests.support.commands import ROOT, checkpoints, gone, running, train_steps
from tests.support.launchers.sshd import missing, running_sshd

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]


@pytest.fixture(scope="module")
def ssh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    variables = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PATH": os.environ["PATH"]}
    with running_sshd(tmp_path_factory.mktemp("sshd"), variables) as command:
        yield command


def test_hosts_train_together_and_save_when_asked(ssh: str, store: Path, recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    hosts = ("--hosts", "127.0.0.1,localhost", "--gpus-per-node", "1", "--port", str(free_port()), "--ssh", ssh)
    training = ("launch", "hostfile", recipe, f"data.store={store}", "run=run", *hosts, "--submit")
    with running(*training, "schedule.epochs=9000", folder=tmp_path) as command:
        command.until(lambda: len(checkpoints(run)) > 1)
        ranks = [int(process.name) for process in Path("/proc").glob("[0-9]*") if works_in(process, tmp_path)]
        command.process.terminate()
        assert command.exit_code() == 75, command.said
    assert "with everything saved" in command.out and gone(ranks), command.said
    assert checkpoints(run)[-1] == train_steps(run)[-1]

    steps = checkpoints(run)[-1] + 10
    with running(*training, f"schedule.epochs={steps // 2}", folder=tmp_path) as command:
        assert command.exit_code() == 0, command.said
    assert train_steps(run) == list(range(1, 2 * (steps // 2) + 1))


def works_in(process: Path, folder: Path) -> bool:
    """Whether the folder is a process' working directory."""
    try:
        return (process / "cwd").readlink() == folder
    except OSError:
        return False
