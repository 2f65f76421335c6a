"""Paths measured in a child process: one that crashes or hangs there is left out, and nothing is left behind."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.engine.autotune.choose import SECONDS_ON_GPU, candidate_names, choose_compute_path, device_name
from pretrain.engine.autotune.conv_form import planar_layers
from pretrain.engine.autotune.isolated import NetworkSpec, autotune_in_child
from pretrain.engine.autotune.process import PRESTARTED, CannotStart
from pretrain.engine.autotune.record import AutotuneResult, library_versions, write_result
from pretrain.engine.deepspeed_config import EngineSettings
from pretrain.engine.distributed import World
from pretrain.engine.precision import MicroStep
from pretrain.models.compute.compute_path import ON_CPU
from pretrain.models.zoo import ModelSettings, build_model
from pretrain.settings import TrainSettings
from pretrain.training.initial_network import prestart_autotune
from sharding.base.errors import UserError
from tests.pretrain.conftest import ROOT
from tests.support.gpu import needs_gpu
from tests.support.training.autotune_child_standin import PIDS, PLAN

CPU = torch.device("cpu")
STANDIN = "tests.support.training.autotune_child_standin"
TRAINING = MicroStep((3, 4, 16, 16), 2, "fp32")
SPEC = NetworkSpec(
    model=ModelSettings(depth=10, width=0.125), classes=3, rates={}, engine=EngineSettings(precision="fp32"), ranks=1
)
MEASURED = AutotuneResult(
    compute_path="planar", planar=[], recomputed=0, device="cpu", batch=TRAINING.batch, precision=TRAINING.precision,
    clips_per_second={"planar": 1.0}, made_by=library_versions(),
)  # fmt: skip


@pytest.fixture
def pids(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the children write who they are."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv(PIDS, str(tmp_path / "pids"))
    return tmp_path / "pids"


def children(pids: Path) -> list[int]:
    """All that have begun, of which none is left."""
    found = [int(line) for line in pids.read_text().split()]
    assert not any(Path(f"/proc/{pid}").exists() for pid in found)
    return found


def measured(plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch, **more: Any) -> AutotuneResult:
    monkeypatch.setenv(PLAN, json.dumps(plan))
    names = more.pop("names", ON_CPU)
    return autotune_in_child(SPEC, TRAINING, CPU, names, module=STANDIN, **more)


@pytest.mark.slow
def test_paths_that_crash_are_left_out(
    pids: Path, monkeypatch: pytest.MonkeyPatch, run_log: pytest.LogCaptureFixture
) -> None:
    run_log.set_level(logging.INFO, "reelscale")
    plan = {"planar": "dies by a signal", "channels-last": "exits in the engine", "plain": "exits in the engine"}
    with pytest.raises(RuntimeError, match="no compute path"):
        measured(plan, monkeypatch, names=["planar"])
    assert "the compute path planar is left out: measuring planar, its process ended with SIGKILL" in run_log.text
    run_log.clear()
    result = measured(plan | {"plain": "well"}, monkeypatch)
    assert result.compute_path == "plain" and result.failed[0] == "planar" and "plain" in result.clips_per_second
    # channels-last was tried in training if it measured faster than plain.
    faster = "channels-last" in result.failed
    assert ("training by channels-last, its process ended with exit code 3" in run_log.text) is faster
    assert len(children(pids)) == 1 + 2 + faster
    assert "path plain: " in run_log.text  # the child's own line


@pytest.mark.slow
def test_a_path_that_hangs_is_left_out(
    pids: Path, monkeypatch: pytest.MonkeyPatch, run_log: pytest.LogCaptureFixture
) -> None:
    plan = {"plain": "hangs", "layers": "dies by a signal", "planar": "loses the device", "engine": False}
    result = measured(plan, monkeypatch, limit=15.0)
    assert result.failed == ["plain", "planar"] and set(result.clips_per_second) == {"channels-last"}
    assert "the compute path planar is left out: measuring planar, its process ended with exit code 1" in run_log.text
    assert result.planar == [] and result.compute_path in result.clips_per_second
    assert "the compute path plain is left out: measuring plain, its process says nothing for 15 s" in run_log.text
    assert len(children(pids)) == 4


@pytest.mark.slow
def test_memory_that_is_short_is_told_apart(pids: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = {**dict.fromkeys(ON_CPU, "needs two groups recomputed"), "engine": False}
    found = measured(plan, monkeypatch)
    assert found.recomputed == 2 and found.failed == [] and set(found.clips_per_second) == set(ON_CPU)
    with pytest.raises(UserError, match=r"(?s)2 clips of 4 frames of 16² .* not fit.*engine.recomputed=5"):
        measured(plan, monkeypatch, recomputed=1)
    assert len(children(pids)) == 2


def test_a_child_that_does_not_start() -> None:
    with pytest.raises(CannotStart, match="ModuleNotFoundError"):
        autotune_in_child(SPEC, TRAINING, CPU, ON_CPU, module="tests.pretrain.there_is_none")


@pytest.mark.slow
def test_a_child_that_dies_for_another_reason_than_a_path(pids: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one does that the kernel ends for want of memory: the caller may measure by itself."""
    with pytest.raises(CannotStart, match=r"ended with SIGKILL.*, at building, twice"):
        measured({"build": "dies by a signal"}, monkeypatch)
    assert len(children(pids)) == 2


@pytest.mark.slow
def test_a_child_on_another_device(pids: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLAN, "{}")
    with pytest.raises(CannotStart, match="it is to compute on cuda:7, and finds cpu"):
        autotune_in_child(SPEC, TRAINING, torch.device("cuda", 7), ON_CPU, module=STANDIN)


@needs_gpu("the tests above, of the child")
def test_on_a_gpu_the_paths_are_measured_in_time() -> None:
    device = torch.device("cuda", 0)
    training, begin = MicroStep((3, 8, 112, 112), 8, "bf16"), time.monotonic()
    recipe = SPEC.model_copy(update={"model": ModelSettings(depth=18), "engine": EngineSettings()})
    found = autotune_in_child(recipe, training, device, candidate_names(device))
    assert found.compute_path in found.clips_per_second and found.failed == [] and found.device == device_name(device)
    assert time.monotonic() - begin < 45  # of which measuring is 10, the rest is to load and to start
    model = build_model(ModelSettings(depth=18), 3, 8).to(device)
    begin = time.monotonic()
    planar_layers(model, torch.randn(8, 3, 8, 112, 112, device=device), "bf16", 8, SECONDS_ON_GPU / 3)
    assert time.monotonic() - begin < SECONDS_ON_GPU


@pytest.mark.slow
def test_the_child_dies_with_its_parent(pids: Path) -> None:
    program = (
        "from tests.pretrain.engine.autotune.test_isolated import *\n"
        "autotune_in_child(SPEC, TRAINING, CPU, ON_CPU, module='tests.support.training.autotune_child_standin')\n"
    )
    environment = {**os.environ, PLAN: json.dumps({"layers": "hangs"})}
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env=environment, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while not pids.exists() or not pids.read_text().strip():
            assert parent.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()
    deadline = time.monotonic() + 20
    while Path(f"/proc/{pids.read_text().strip()}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
def test_a_child_that_began_before_its_task_is_taken_once(pids: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLAN, json.dumps({"engine": False}))
    PRESTARTED.start(STANDIN)
    PRESTARTED.start(STANDIN)
    began = wait_for_a_child(pids)
    assert measured({"engine": False}, monkeypatch, names=["plain"]).compute_path == "plain"
    assert children(pids) == [began]
    assert measured({"engine": False}, monkeypatch, names=["plain"]).compute_path == "plain"
    assert len(children(pids)) == 2


@pytest.mark.slow
def test_a_child_that_died_before_its_task_is_told_of(pids: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PLAN, "{}")
    PRESTARTED.start(STANDIN)
    os.kill(wait_for_a_child(pids), signal.SIGKILL)
    with pytest.raises(CannotStart, match="SIGKILL"):
        measured({}, monkeypatch)


@pytest.mark.slow
def test_a_run_ends_the_child_that_it_does_not_need(
    pids: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(PLAN, "{}")
    PRESTARTED.start(STANDIN)
    wait_for_a_child(pids)
    write_result(tmp_path, MEASURED)
    model = build_model(ModelSettings(depth=10, width=0.125), 3, 4)
    assert choose_compute_path(tmp_path, model, TRAINING, World(0, 1, CPU)) == MEASURED.by_name("planar")
    assert len(children(pids)) == 1


@pytest.mark.parametrize(
    ("change", "begins"), [({}, 1), ({"rank": "1"}, 0), ({"kept": True}, 0), ({"compute_path": "rows"}, 0)]
)
def test_the_child_begins_early_where_a_run_will_need_it(
    change: dict[str, Any], begins: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    begun: list[int] = []
    monkeypatch.setattr(PRESTARTED, "start", lambda: begun.append(1))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("RANK", change.get("rank", "0"))
    settings = TrainSettings.model_validate(
        {"data": {"store": "s"}, "engine": {"compute_path": change.get("compute_path", "auto")}}
    )
    if change.get("kept"):
        write_result(tmp_path, MEASURED)
    prestart_autotune(settings, tmp_path)
    assert len(begun) == begins


def wait_for_a_child(pids: Path) -> int:
    deadline = time.monotonic() + 120
    while not pids.exists() or not pids.read_text().strip():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return int(pids.read_text().split()[0])
