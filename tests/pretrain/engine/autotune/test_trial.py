"""A step on trial: it leaves no trace, and a compute path that fails there is left out before training begins."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.engine.distributed import free_port
from tests.pretrain.conftest import ROOT
from tests.support.training.trial_ranks import CASES, ON_TWO, STEPS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trials(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """By world size, what came out of each case on the first rank; of "failures", on each."""
    folder = tmp_path_factory.mktemp("trial")
    ranks = [process for size in (1, 2) for process in started(size, folder)]
    try:
        codes = [process.wait(270) for process in ranks]
    finally:
        for process in ranks:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    assert not any(codes), "\n".join(path.read_text()[-3000:] for path in folder.glob("*.log"))
    results: dict[int, dict[str, Any]] = {}
    for size in (1, 2):
        each = [torch.load(folder / f"{size}-{rank}.pt", weights_only=False) for rank in range(size)]
        results[size] = each[0] | {"failures": [rank["failures"] for rank in each]}
    return results


def started(size: int, folder: Path) -> list[subprocess.Popen[bytes]]:
    """The ranks of a world of so many."""
    port, ranks = str(free_port()), []
    for rank in range(size):
        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        environment = {**os.environ, **{name: str(value) for name, value in names.items()}}
        environment |= {"MASTER_ADDR": "127.0.0.1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        environment |= {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.support.training.trial_ranks", str(folder)]
        with (folder / f"{size}-{rank}.log").open("w") as log:
            ranks.append(
                subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True)
            )
    return ranks


@pytest.mark.parametrize(("size", "case"), [*((1, name) for name in CASES), *((2, name) for name in ON_TWO)])
def test_a_trial_leaves_all_as_it_was_to_the_bit(trials: dict[int, dict[str, Any]], size: int, case: str) -> None:
    result = trials[size][case]
    assert result["outcome"] == ["FINE"] * STEPS
    lanes = 4 // size
    assert result["counts"] == [(step, step * lanes, 0) for step in range(STEPS)]
    assert math.isnan(result["verdicts"][0][1]) and result["verdicts"][1][1] > 0  # of real steps
    for kind in ("with", "after a trial"):
        for step, ((state, drawn), (plain, plainly)) in enumerate(zip(result[kind], result["without"], strict=False)):
            assert torch.equal(drawn, plainly)
            assert state["scaler"] == plain["scaler"]
            for field in ("model", "optimizer", "average"):
                assert state[field].keys() == plain[field].keys()
                for name, value in state[field].items():
                    assert torch.equal(value, plain[field][name]), f"{kind}, step {step}: {field} {name}"
    moved = [state["model"]["fc.weight"] for state, _ in result["with"]]
    assert not torch.equal(moved[0], moved[1]) and not torch.equal(moved[1], moved[2])


@pytest.mark.parametrize("size", [1, 2])
def test_what_fails_on_one_rank_is_known_on_all(trials: dict[int, dict[str, Any]], size: int) -> None:
    for rank in trials[size]["failures"]:
        assert rank["forward"] == "FAILED" and rank["afterwards"] == "FINE"
        assert "does not fit into this device's memory" in rank["memory"]
        assert rank["forward seconds"] < 40 and rank["memory seconds"] < 40
