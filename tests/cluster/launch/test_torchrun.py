"""Under torchrun, on one machine: a stop is no failure to it, and a rank ends with its agent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.commands import LONGEST, ROOT, checkpoints
from tests.support.processes import gone

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]


def _start(folder: Path, *train: str | Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--max-restarts"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (folder / "output").open("ab") as output:
        return subprocess.Popen(
            [*command, "3", "-m", "cluster.cli", "pretrain", *map(str, train)],
            cwd=folder, env=environment, stdout=output, stderr=output,
        )  # fmt: skip


def _ranks(agent: subprocess.Popen[bytes]) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text().split()]


def _until(condition: Callable[[], object], output: Path) -> None:
    deadline = time.monotonic() + LONGEST
    while not condition():
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.05)


def test_a_stop_is_no_failure_and_ranks_end_with_their_agent(store: Path, recipe: Path, tmp_path: Path) -> None:
    run, output = tmp_path / "run", tmp_path / "output"
    train = (recipe, f"data.store={store}", "schedule.epochs=1000", "run=run")

    agent = _start(tmp_path, *train)
    _until(lambda: checkpoints(run), output)
    os.kill(_ranks(agent)[1], signal.SIGTERM)
    assert agent.wait(LONGEST) == 0, output.read_text()
    text = output.read_text()
    stopped = checkpoints(run)[-1]
    assert f"stopped at step {stopped} with everything saved" in text and "going on from" not in text, text

    agent = _start(tmp_path, *train)
    _until(lambda: checkpoints(run)[-1] > stopped, output)
    ranks = _ranks(agent)
    assert len(ranks) == 2
    agent.kill()
    agent.wait()
    assert all(gone(pid, 60) for pid in ranks), output.read_text()
