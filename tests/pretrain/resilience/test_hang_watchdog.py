"""A hung process tells where and ends, in whatever call it hangs; one that gets on is left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pretrain.resilience.hang_watchdog import WatchdogSettings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]

HEAD = """
import ctypes, logging, sys, time
from pathlib import Path
from pretrain.resilience import hang_watchdog as watchdog
from pretrain.resilience.hang_watchdog import Watchdog
logging.basicConfig(stream=sys.stderr)
folder, rank = Path(sys.argv[1]), int(sys.argv[2])
"""

COLLECTIVE = """
import torch, torch.distributed as dist
dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)

def waits_for_the_other():
    dist.all_reduce(torch.ones(1))

def gets_on():
    while True:
        dog.beat()
        time.sleep(0.05)

with Watchdog(folder, rank, attempt=2, stall_seconds=1.0 if rank == 0 else 600.0) as dog:
    waits_for_the_other() if rank == 0 else gets_on()
"""

KEEPS_THE_LOCK = """
def keeps_pythons_lock():
    ctypes.PyDLL(None).sleep(600)

with Watchdog(folder, rank, attempt=1, stall_seconds=0.5):
    time.sleep(0.5)
    keeps_pythons_lock()
"""

LOGS_FOR_EVER = """
watchdog._TELLING = 1.0

def logs_for_ever():
    logging.getLogger().handlers[0].acquire()
    time.sleep(600)

with Watchdog(folder, rank, attempt=1, stall_seconds=0.5):
    logs_for_ever()
"""

SLEEPS = """
def sleeps():
    time.sleep(600)

with Watchdog(folder, rank, attempt=1, stall_seconds=0.5):
    sleeps()
"""

GETS_ON = """
with Watchdog(folder, rank, attempt=2, stall_seconds=2.0) as dog:
    for _ in range(60):
        time.sleep(0.05)
        dog.beat()
    with dog.patience(600.0):
        time.sleep(3.0)
time.sleep(3.0)
print("done")
"""


def start(program: str, folder: Path, rank: int = 0) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", HEAD + program, str(folder), str(rank)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """(exit code, standard error)."""
    try:
        return process.wait(120), process.communicate()[1]
    finally:
        process.kill()


def test_a_hung_collective_ends_all_ranks_with_their_stacks(tmp_path: Path) -> None:
    ranks = [start(COLLECTIVE, tmp_path, rank) for rank in (0, 1)]
    for rank, process in enumerate(ranks):
        code, said = ended(process)
        stacks = tmp_path / "stacks" / f"rank-{rank:04d}.txt"
        assert code == 75, said
        assert f"rank {rank} on " in said and str(stacks) in said and "the same command goes on" in said
        text = stacks.read_text()
        assert "attempt 2" in text and ("in waits_for_the_other", "in gets_on")[rank] in text
        assert ("has taken no step for" if rank == 0 else "another rank hangs") in said
    assert "rank 0 on " in (tmp_path / "stacks" / "hung-000002").read_text()


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[int, str, Path]]:
    """What the programs that need no other came to, run at the same time: exit code, standard error, folder."""
    root = tmp_path_factory.mktemp("together")
    folders = {name: root / name for name in ("lock", "logs", "sleeps", "full", "on")}
    for name in ("lock", "logs", "sleeps", "on"):
        folders[name].mkdir()
    folders["full"].write_text("a file where a folder must be")
    (folders["on"] / "stacks").mkdir()
    (folders["on"] / "stacks" / "hung-000001").write_text("an older attempt's")
    programs = {"lock": KEEPS_THE_LOCK, "logs": LOGS_FOR_EVER, "sleeps": SLEEPS, "full": SLEEPS, "on": GETS_ON}
    started = {name: start(program, folders[name]) for name, program in programs.items()}
    return {name: (*ended(process), folders[name]) for name, process in started.items()}


def stacks(folder: Path) -> str:
    return (folder / "stacks" / "rank-0000.txt").read_text()


def test_a_call_that_keeps_pythons_lock_ends_too(together: dict[str, tuple[int, str, Path]]) -> None:
    code, said, _ = together["lock"]
    assert code == 1 and "in keeps_pythons_lock" in said


def test_a_hung_log_does_not_keep_it(together: dict[str, tuple[int, str, Path]]) -> None:
    code, _, folder = together["logs"]
    assert code == 75 and "in logs_for_ever" in stacks(folder)


def test_without_a_folder_the_stacks_go_to_standard_error(together: dict[str, tuple[int, str, Path]]) -> None:
    code, said, _ = together["full"]
    assert code == 75 and "in sleeps" in said and "standard error" in said


def test_a_second_hang_leaves_the_stacks_of_the_first(together: dict[str, tuple[int, str, Path]]) -> None:
    code, _, folder = together["sleeps"]
    assert code == 75 and stacks(folder).count("in sleeps") == 1
    assert ended(start(SLEEPS.replace("attempt=1", "attempt=2"), folder))[0] == 75
    assert stacks(folder).count("in sleeps") == 2
    assert "attempt 1" in stacks(folder) and "attempt 2" in stacks(folder)


def test_who_gets_on_or_has_patience_is_left_alone(together: dict[str, tuple[int, str, Path]]) -> None:
    code, said, folder = together["on"]
    assert code == 0, said
    assert [path.name for path in (folder / "stacks").iterdir()] == ["hung-000001"]


def test_half_an_hour_is_the_default() -> None:
    assert WatchdogSettings().stall_seconds == 1800
