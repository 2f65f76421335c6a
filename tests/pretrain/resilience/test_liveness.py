"""A rank that was killed ends the others, though none of them is in a collective; those that leave in order do not."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pretrain.engine.distributed import RankLost, World, free_port
from pretrain.resilience.liveness import LivenessMonitor, LivenessSettings
from sharding.base.errors import UserError
from sharding.base.settings import validate

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
LOST = 2.0
RANK = """
import atexit, logging, sys, time
import torch.distributed as dist
from pretrain.engine.distributed import leave_world, start_world
from pretrain.resilience.liveness import LivenessMonitor, LivenessSettings
logging.basicConfig()
world = start_world()
if {reported!r} and world.rank == 0:
    dist.PrefixStore("pulse", dist.distributed_c10d._get_default_store()).set("lost", {reported!r})
world.barrier()
atexit.register(time.sleep, {lingers})
with LivenessMonitor(world, LivenessSettings(every_seconds=0.1, lost_seconds={lost})):
    world.barrier()
    print("in", flush=True)
    time.sleep({seconds} if world.rank else {first})
    if world.rank == {fails}:
        raise OSError("its own disk")
    world.barrier()
print("out", flush=True)
if world.rank:
    time.sleep(4)
leave_world()
"""


@pytest.mark.parametrize(
    ("every", "lost", "fits"), [(5.0, 35.0, True), (17.5, 35.0, True), (35.0, 35.0, False), (18.0, 35.0, False)]
)
def test_ranks_have_time_to_show_that_they_live(every: float, lost: float, fits: bool) -> None:
    tree = {"every_seconds": every, "lost_seconds": lost}
    if fits:
        assert validate(LivenessSettings, tree, "pulse").lost_seconds == lost
        return
    with pytest.raises(UserError) as refused:
        validate(LivenessSettings, tree, "pulse")
    assert f"lost_seconds={lost:g}" in refused.value.what and f"every_seconds={every:g}" in refused.value.what


def ranks(
    size: int, seconds: float, first: float, folder: Path, fails: int = -1, lingers: float = 0, reported: str = ""
) -> list[subprocess.Popen[bytes]]:
    shared = {"WORLD_SIZE": str(size), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = []
    for rank in range(size):
        environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "CUDA_VISIBLE_DEVICES": ""}
        with (folder / f"{rank}.log").open("wb") as log:
            program = RANK.format(
                seconds=seconds, first=first, fails=fails, lingers=lingers, lost=LOST, reported=reported
            )
            command = [sys.executable, "-c", program]
            started.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
    return started


def until_in(folder: Path, processes: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + 120
    while not all("in" in (folder / f"{rank}.log").read_text().split() for rank in range(len(processes))):
        assert time.monotonic() < deadline and all(process.poll() is None for process in processes)
        time.sleep(0.05)


@pytest.mark.parametrize(("size", "victim"), [(3, 0), (3, 1), (3, 2), (5, 2), (5, 4)])
def test_the_others_of_a_killed_rank_end(tmp_path: Path, size: int, victim: int) -> None:
    """All of them at about the same time, however far it is from one to the next, and all name the same rank.

    What the ranks of an older start have reported in the same store is not about these.
    """
    processes = ranks(size, 300, 300, tmp_path, reported="1 7 an older start's" if size == 5 else "")
    try:
        until_in(tmp_path, processes)
        os.kill(processes[victim].pid, signal.SIGKILL)
        killed = time.monotonic()
        codes = [process.wait(60) for process in processes]
        took = time.monotonic() - killed
    finally:
        for process in processes:
            process.kill()
    assert codes == [-signal.SIGKILL if rank == victim else 1 for rank in range(size)]
    logs = [(tmp_path / f"{rank}.log").read_text() for rank in range(size) if rank != victim]
    named = [re.findall(r"rank (\d+) is gone .*goes on from the last checkpoint", text) for text in logs]
    assert named == [[str(victim)]] * (size - 1), logs
    assert took < 2 * LOST + 1


def test_a_rank_that_an_error_ends_is_missed(tmp_path: Path) -> None:
    """Though its process, and with it its connections, stays for a while."""
    processes = ranks(3, 0.5, 300, tmp_path, fails=1, lingers=60)
    try:
        until_in(tmp_path, processes)
        assert processes[0].wait(50) == 1
        assert processes[1].poll() is None
    finally:
        for process in processes:
            process.kill()
    assert "rank 1 is gone (no sign of life for 2 s)" in (tmp_path / "0.log").read_text()


@pytest.mark.parametrize(
    ("reported", "error", "tells"),
    [
        (True, RankLost("a collective failed, too"), False),
        (True, OSError("its own disk"), True),
        (False, RankLost("nobody said so"), True),
        (False, None, False),
    ],
)
def test_a_lost_rank_is_told_once(reported: bool, error: Exception | None, tells: bool) -> None:
    """By the log or by the error that the main thread ends with; one that is not about it is told as well."""
    monitor = LivenessMonitor(World(0, 1, torch.device("cpu")), LivenessSettings())
    monitor._reported = reported
    monitor.__exit__(type(error) if error else None, error, None)
    assert monitor._failed is tells


def test_ranks_that_leave_in_order_are_not_missed(tmp_path: Path) -> None:
    """One is done seconds before the other, and rank 0 ends seconds before it, too."""
    processes = ranks(2, 5, 0.1, tmp_path)
    try:
        assert [process.wait(60) for process in processes] == [0, 0], (tmp_path / "1.log").read_text()
    finally:
        for process in processes:
            process.kill()
