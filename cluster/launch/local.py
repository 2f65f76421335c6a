"""Ranks as processes of this machine: started, watched, and ended together."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType

from cluster.launch.signals import NOT_BEGUN
from pretrain.engine.distributed import free_port
from sharding.base import environment
from sharding.base.exit_codes import DONE, FAILED, MISTAKE, STOPPED
from sharding.base.parent_death import stop_signals

_GRACE_SECONDS = 20.0
_NOT_BEGUN_SECONDS = 3.0
_BY_SIGNAL = (-signal.SIGTERM, -signal.SIGINT)


def run_ranks(task: str, ranks: int) -> int:
    """Run the JSON of a `RankTask` as `ranks` ranks and return their exit code.

    Signals that ask to stop are passed on as SIGTERM, so that the ranks save and stop: 75, also where they had not
    begun. When a rank dies the others are ended; when this process dies, even by kill -9, the ranks die with it.
    """
    command = [sys.executable, "-m", "cluster.launch.rank_main", str(os.getpid())]
    shared = {
        environment.WORLD_SIZE: str(ranks),
        environment.LOCAL_WORLD_SIZE: str(ranks),
        environment.MASTER_ADDR: "127.0.0.1",
        environment.MASTER_PORT: str(free_port()),
        environment.THREADS: environment.variable(environment.THREADS) or str(max(1, (os.cpu_count() or 1) // ranks)),
    }
    processes: list[subprocess.Popen[bytes]] = []
    asked = threading.Event()

    def pass_on(number: int, frame: FrameType | None) -> None:
        asked.set()
        _ask_to_stop(processes)

    before = {number: signal.signal(number, pass_on) for number in stop_signals()}
    try:
        for rank in range(ranks):
            variables = {**os.environ, **shared, environment.RANK: str(rank), environment.LOCAL_RANK: str(rank)}
            rank_process = subprocess.Popen(command, env=variables, start_new_session=True, stdin=subprocess.PIPE)
            processes.append(rank_process)
            _hand_over(rank_process, task)
        if asked.is_set():
            _ask_to_stop(processes)  # a signal meets only the ranks that are in the list by then
        codes = _exit_codes(processes, asked)
        code = exit_code(codes, asked.is_set())
        _print_failure(codes, code)
        return code
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        for number, handler in before.items():
            signal.signal(number, handler)


def _hand_over(process: subprocess.Popen[bytes], task: str) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError), process.stdin as pipe:  # a rank that has died is noticed by its exit code
        pipe.write(task.encode())


def exit_code(codes: Sequence[int | None], asked: bool) -> int:
    """The command's exit code from its ranks', None where one did not end; `asked`: they were asked to stop.

    A rank that a signal ended had not begun. The others could not train without it, so nothing is lost.
    """
    if MISTAKE in codes:
        return MISTAKE
    if asked and any(code in _BY_SIGNAL for code in codes):
        return STOPPED
    if asked and STOPPED in codes and all(code in (DONE, STOPPED, None) for code in codes):
        return STOPPED
    if any(code not in (DONE, STOPPED) for code in codes):
        return FAILED
    return STOPPED if STOPPED in codes else DONE


def _exit_codes(processes: Sequence[subprocess.Popen[bytes]], asked: threading.Event) -> list[int | None]:
    """Exit codes of all ranks; once one has failed or stopped, the others get a little time to end by themselves."""
    deadline: float | None = None
    while any(process.poll() is None for process in processes):
        codes = [process.poll() for process in processes]
        if deadline is None:
            if asked.is_set() and any(code in _BY_SIGNAL for code in codes):
                deadline = time.monotonic() + _NOT_BEGUN_SECONDS
            elif any(code not in (None, DONE, STOPPED) or (code is not None and asked.is_set()) for code in codes):
                deadline = time.monotonic() + _GRACE_SECONDS
        elif time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return [process.poll() for process in processes]


def _ask_to_stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)


def _print_failure(codes: Sequence[int | None], code: int) -> None:
    if code == STOPPED and any(rank in _BY_SIGNAL for rank in codes):
        print(NOT_BEGUN, file=sys.stderr)
    elif code == FAILED:
        dead = [f"rank {rank} (exit {code})" for rank, code in enumerate(codes) if code not in (DONE, STOPPED, None)]
        print(f"training failed: {', '.join(dead)}", file=sys.stderr)
