"""Being asked to stop: at once before training begins, whatever the process is in; afterwards only marked."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pretrain.engine.distributed import free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
HEAD = """
import signal, sys, time
from pathlib import Path
import torch
from pretrain.resilience.stop_signal import Stop
torch.set_num_threads(1)
folder = Path(sys.argv[1])
def ready():
    (folder / "ready").touch()
"""
MEETING = """
from pretrain.engine.distributed import start_world
with Stop(folder):
    ready()
    start_world(meet_seconds=600)
"""
COMPUTING = """
layers = [torch.nn.Conv3d(64, 64, 3, padding=1) for _ in range(60)]
video = torch.zeros(2, 64, 16, 112, 112)
with Stop(folder):
    ready()
    with torch.no_grad():
        torch.jit.trace(torch.nn.Sequential(*layers), video, check_trace=False)(video)
"""
BEGUN = """
with Stop(folder) as stop:
    stop.begin(looks=True)
    ready()
    assert (folder / "begun").exists()
    while not stop.wanted:
        time.sleep(0.01)
    assert stop.asked
    stop.clear()
sys.exit(3)
"""


def run(program: str, folder: Path, number: int, environment: dict[str, str] | None = None) -> tuple[int, str, float]:
    """(exit code, standard error, seconds from the signal to the end) of a program that is sent one when ready."""
    mine = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "", **(environment or {})}
    process = subprocess.Popen(
        [sys.executable, "-c", HEAD + program, str(folder)], env=mine, stderr=subprocess.PIPE, text=True
    )
    try:
        deadline = time.monotonic() + 120
        while not (folder / "ready").exists():
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(1)
        begin = time.monotonic()
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
        return process.returncode, said, time.monotonic() - begin
    finally:
        process.kill()
        process.wait()


@pytest.mark.usefixtures("hangups_heard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_a_rank_that_waits_for_others_to_come(tmp_path: Path, number: int) -> None:
    ranks = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    code, said, seconds = run(MEETING, tmp_path, number, ranks)
    assert code == 75 and "stopped before training began" in said and seconds < 10


def test_a_rank_that_computes_for_minutes(tmp_path: Path) -> None:
    code, said, seconds = run(COMPUTING, tmp_path, signal.SIGTERM)
    assert code == 75 and "stopped before training began" in said and seconds < 10


@pytest.mark.usefixtures("hangups_heard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_one_that_has_begun_only_marks(tmp_path: Path, number: int) -> None:
    assert run(BEGUN, tmp_path, number, {"REELSCALE_FOLLOWED": "1"})[:2] == (3, "")


def test_what_is_ignored_stays_ignored(tmp_path: Path) -> None:
    """As SIGHUP is under nohup."""
    program = "signal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + BEGUN.replace("while not stop.wanted", "for _ in 'ab'")
    program = program.replace("time.sleep(0.01)", "time.sleep(2)").replace("assert stop.asked", "assert not stop.asked")
    assert run(program, tmp_path, signal.SIGHUP, {"REELSCALE_FOLLOWED": "1"})[:2] == (3, "")
