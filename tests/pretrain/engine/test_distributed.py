"""Which world a process belongs to: what Slurm says, and whether the ranks of a machine have a GPU each."""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import pytest
import torch.distributed as dist

from pretrain.engine.distributed import (
    _agree_on_start,
    enough_gpus,
    free_port,
    leave_world,
    names_lost_ranks,
    plain_reason,
    start_world,
    world_size_from_environment,
)
from sharding.base.errors import CommandFailed, UserError

STEP = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "2", "SLURM_LOCALID": "1"}


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No launcher around the tests; what they adopt goes with them."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def test_srun_with_several_tasks_is_one_world(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**STEP, "SLURM_STEP_NUM_TASKS": "4", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert world_size_from_environment() == 4
    assert (os.environ["RANK"], os.environ["LOCAL_RANK"]) == ("2", "1")


def test_srun_without_a_meeting_place_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**STEP, "SLURM_NTASKS": "4", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=r"srun started 4 tasks.*MASTER_ADDR not set"):
        world_size_from_environment()


@pytest.mark.parametrize("tasks", [{"SLURM_NTASKS": "1"}, {"SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "8"}, {}])
def test_a_shell_inside_an_allocation_is_a_machine_like_others(
    tasks: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (STEP | tasks).items():
        monkeypatch.setenv(name, value)
    assert world_size_from_environment() is None


@pytest.mark.parametrize(("gpus", "ranks", "enough"), [(0, 1, False), (1, 1, True), (1, 2, False), (8, 2, True)])
def test_a_gpu_a_rank_or_none(gpus: int, ranks: int, enough: bool, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "reelscale"):
        assert enough_gpus(gpus, ranks) is enough
    assert ("ranks=1 uses them" in caplog.text) is (0 < gpus < ranks)


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_that_do_not_come_are_told(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    port = str(free_port())
    for name, value in {"RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(CommandFailed, match=rf"2 ranks .* did not meet at 127.0.0.1:{port} within 2 s \(rank {rank}: "):
        start_world(meet_seconds=2)


TWO_STARTS = """
import os, torch
from pretrain.engine.distributed import start_world
world = start_world(60.0, meet_seconds=60.0)
start, ones = os.environ["TORCHELASTIC_RESTART_COUNT"], torch.ones(1)
world.sum_(ones)
if start == "0" and world.rank == 1:
    os._exit(3)
world.barrier()
os.write(1, f"start {start} rank {world.rank} {ones.item()}\\n".encode())
os._exit(0)
"""


@pytest.mark.slow
def test_ranks_that_torchrun_starts_again_meet_again(tmp_path: Path) -> None:
    """By the same store, in which the addresses of the ranks before them lie."""
    (tmp_path / "ranks.py").write_text(TWO_STARTS)
    arguments = ["--nproc-per-node", "2", "--max-restarts", "1", "--master-port", str(free_port())]
    command = [sys.executable, "-m", "torch.distributed.run", *arguments, str(tmp_path / "ranks.py")]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "CUDA_VISIBLE_DEVICES": ""}
    found = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200, check=False)
    assert found.returncode == 0, found.stderr
    assert {f"start 1 rank {rank} 2.0" for rank in (0, 1)} <= set(found.stdout.splitlines())


def test_each_start_has_a_name_of_its_own_in_a_store_that_outlives_them() -> None:
    """Whoever was started anew, and whatever ranks before left: one that died after it had answered, and all words."""
    store, within = dist.HashStore(), timedelta(seconds=60)
    names: list[str] = []
    for start in range(3):
        with ThreadPoolExecutor(3) as pool:
            others = [pool.submit(_agree_on_start, store, rank, 3, within) for rank in (2, 1)]
            time.sleep(0.3)  # they read the name of the start before
            ranks = [pool.submit(_agree_on_start, store, 0, 3, within), *others]
            (name,) = {rank.result() for rank in ranks}
        assert name not in names
        names.append(name)
        store.set(f"{name} 1", f"of a rank that was started alone, {start}")
    with pytest.raises(dist.DistStoreError):
        _agree_on_start(store, 1, 3, timedelta(seconds=0.3))


def _share(rank: int, port: int, heard: SimpleQueue[tuple[int, str]]) -> None:
    os.environ.update(RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    world = start_world(timeout_seconds=2)

    def slow() -> str:
        time.sleep(5)
        return f"rank {rank}’s word"

    heard.put((rank, world.broadcast_text(slow)))
    world.barrier()
    leave_world()


@pytest.mark.slow
def test_what_rank_0_takes_long_for_is_shared() -> None:
    """Longer than the ranks wait for each other otherwise."""
    spawn = multiprocessing.get_context("spawn")
    port, heard = free_port(), spawn.SimpleQueue()
    ranks = [spawn.Process(target=_share, args=(rank, port, heard)) for rank in range(2)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    assert [process.exitcode for process in ranks] == [0, 0]
    assert sorted(heard.get() for _ in ranks) == [(0, "rank 0’s word"), (1, "rank 0’s word")]


def test_a_lost_rank_is_told_without_gloos_own_words() -> None:
    said = (
        "[/__w/pytorch/third_party/gloo/gloo/tcp/pair.cc:537] Read error [10.77.1.3]:20713: Connection reset by "
        "peer. This is typically caused by a remote worker hanging or bugs in the application. GLHF!\nException raised"
    )
    assert plain_reason(RuntimeError(said)) == "Read error [10.77.1.3]:20713: Connection reset by peer"
    with (
        pytest.raises(CommandFailed, match=r"another rank is gone \(Read error .*: Connection reset by peer\); unless"),
        names_lost_ranks(),
    ):
        raise RuntimeError(said)


def test_a_free_port_is_none_that_connections_get() -> None:
    """Between asking and listening lie seconds, in which any connection of this machine may take one of those."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    found = {free_port() for _ in range(20)}
    assert len(found) > 10 and all(port < lowest for port in found)
