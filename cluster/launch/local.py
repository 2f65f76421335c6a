"""Ranks as processes of this machine: started, watched, and ended together."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType

from pretrain.engine.world import free_port

_PARENT = "REELSCALE_PARENT"
_PR_SET_PDEATHSIG = 1
_GRACE_SECONDS = 20.0


def run_ranks(arguments: Sequence[str], ranks: int) -> int:
    """Run `reelscale ARGUMENTS` as `ranks` ranks and return their exit code.

    SIGINT and SIGTERM are passed on, so that the ranks save and stop. When a rank dies the others are ended;
    when this process dies, even by kill -9, the ranks die with it.
    """
    command = [sys.executable, "-m", "cluster.cli", *arguments]
    shared = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks))),
        _PARENT: str(os.getpid()),
    }
    processes: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for rank in range(ranks):
            environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(subprocess.Popen(command, env=environment, start_new_session=True))
        return _watch(processes)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def started_by_run_ranks() -> bool:
    """Whether this process is a rank that `run_ranks` started."""
    return _PARENT in os.environ


def die_with_parent() -> None:
    """In a rank started by `run_ranks`: be killed when the starting process is gone."""
    parent = os.environ.get(_PARENT)
    if parent is None or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        sys.exit(1)


def _watch(processes: list[subprocess.Popen[bytes]]) -> int:
    """Wait for all ranks; once one has failed, the others get a little time to end by themselves."""
    deadline: float | None = None
    while any(process.poll() is None for process in processes):
        failed = [process for process in processes if process.poll() not in (None, 0, 75)]
        if failed and deadline is None:
            deadline = time.monotonic() + _GRACE_SECONDS
        if deadline is not None and time.monotonic() > deadline:
            break
        time.sleep(0.1)
    codes = [process.poll() for process in processes]
    if 2 in codes:
        return 2
    if any(code not in (0, 75) for code in codes):
        dead = [f"rank {rank} (exit {code})" for rank, code in enumerate(codes) if code not in (0, 75, None)]
        print(f"training failed: {', '.join(dead)}", file=sys.stderr)
        return 1
    return 75 if 75 in codes else 0
