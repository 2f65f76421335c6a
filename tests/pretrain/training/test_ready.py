"""A run whose fastest path fails as soon as DeepSpeed has its weights: it goes on by the next one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from pretrain.engine.autotune import trial
from pretrain.engine.autotune.trial import Outcome
from pretrain.engine.distributed import free_port
from tests.pretrain.conftest import ROOT, Finished, end

pytestmark = pytest.mark.cluster

MEASURED = ("engine.compute_path=auto", "deterministic=false")


def train(finished: Finished, run: Path, fails: str, *overrides: str) -> tuple[int, str]:
    """The exit code, and all output."""
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    environment |= {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    environment |= {"MASTER_PORT": str(free_port()), "FAILS": fails}
    command = [
        sys.executable,
        "-m",
        "tests.support.training.failing_compute_path",
        "pretrain",
        str(finished.recipe),
        f"run={run}",
    ]
    log = run.with_suffix(".log")
    with log.open("w") as output:
        process = subprocess.Popen(
            [*command, *overrides], cwd=ROOT, env=environment, stdout=output, stderr=output, start_new_session=True
        )
    return end(process), log.read_text()


def weights(run: Path, step: int) -> dict[str, torch.Tensor]:
    return load_file(run / "checkpoints" / f"step-{step:08d}" / "model.safetensors")


def test_a_path_that_fails_in_training_is_left_out(finished: Finished, tmp_path: Path) -> None:
    code, output = train(finished, tmp_path / "run", "once", *MEASURED)
    assert code == 0, output
    assert "a step on trial failed: RuntimeError: weights at an odd address\n" in output
    assert "the compute path planar is left out: it fails in training; next is channels-last" in output
    assert output.index("a step on trial went well") < output.index("checkpoint")  # the first was not written before
    assert "step 1 is taken, " in output and "Traceback" not in output
    kept = json.loads((tmp_path / "run" / "compute_path.json").read_text())
    assert (kept["compute_path"], kept["failed"]) == ("channels-last", ["planar"])
    # It is the run that had this path from its beginning, to the bit.
    here, there = weights(tmp_path / "run", 30), weights(finished.folder, 30)
    assert here.keys() == there.keys() and all(torch.equal(here[name], there[name]) for name in there)


def test_a_lost_device_ends_the_run_and_the_same_command_goes_on(finished: Finished, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    code, output = train(finished, run, "lost", *MEASURED)
    assert code == 1 and "the same command goes on by another compute path" in output and "Traceback" not in output, (
        output
    )
    assert json.loads((run / "compute_path.json").read_text())["failed"] == ["planar"]
    assert not (run / "checkpoints").exists()
    (run / "stop").touch()  # asked to stop before it begins, it takes one step
    code, output = train(finished, run, "lost", *MEASURED)
    assert code == 75 and "step 1 is taken" in output and "left out" not in output, output


def test_a_path_that_was_asked_for_is_an_error(finished: Finished, tmp_path: Path) -> None:
    code, output = train(finished, tmp_path / "run", "once", "engine.compute_path=planar")
    assert (
        code == 2 and "a step of training fails by this compute path" in output and "engine.compute_path=auto" in output
    ), output
    assert "Traceback" not in output and not (tmp_path / "run" / "compute_path.json").exists()


def test_an_error_is_told_from_a_lost_device(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(words: str = "no kernel image") -> None:
        raise RuntimeError(words)

    cpu = torch.device("cpu")
    assert trial._outcome(fail, cpu) == Outcome.FAILED
    assert trial._outcome(lambda: fail("an illegal memory access was encountered"), cpu) == Outcome.DEVICE_LOST
    assert trial._outcome(lambda: None, cpu) == Outcome.FINE
    monkeypatch.setattr(trial, "_wait", lambda _: fail())
    assert trial._outcome(fail, cpu) == trial._outcome(lambda: None, cpu) == Outcome.DEVICE_LOST
