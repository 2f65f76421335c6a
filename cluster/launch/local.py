"""Ranks as processes of this machine: started, watched, and ended together."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

from cluster.launch.signals import FORCED, NOT_BEGUN, StopRequests
from cluster.terminal.training_bar import TrainingBar, training_bar
from pretrain.engine.distributed import free_port
from sharding.base import environment
from sharding.base.exit_codes import DONE, FAILED, MISTAKE, STOPPED

_GRACE_SECONDS = 20.0
_NOT_BEGUN_SECONDS = 3.0
_FORCED_SECONDS = 3.0
_BY_SIGNAL = (-signal.SIGTERM, -signal.SIGINT)


def run_ranks(task: str, ranks: int) -> int:
    """Run the JSON of a `RankTask` as `ranks` ranks and return their exit code. Their lines are printed.

    Signals that ask to stop are passed on as SIGTERM, so that the ranks save and stop: 75, also where they had not
    begun; at a second signal they are ended. When a rank dies the others are ended; when this process dies, even by
    kill -9, the ranks die with it.
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
    with training_bar() as bar, StopRequests(lambda: _ask_to_stop(processes)) as requests:
        bar.print(f"{time.strftime('%H:%M:%S')} starting {ranks} {'rank' if ranks == 1 else 'ranks'}\n")
        try:
            return _run_ranks(command, shared, task, ranks, processes, requests, bar)
        finally:
            for process in processes:
                if process.poll() is None:
                    process.kill()
                    process.wait()


def _run_ranks(
    command: Sequence[str],
    shared: Mapping[str, str],
    task: str,
    ranks: int,
    processes: list[subprocess.Popen[bytes]],
    requests: StopRequests,
    bar: TrainingBar,
) -> int:
    for rank in range(ranks):
        variables = {**os.environ, **shared, environment.RANK: str(rank), environment.LOCAL_RANK: str(rank)}
        rank_process = subprocess.Popen(
            command, env=variables, start_new_session=True, stdin=subprocess.PIPE, **bar.of_process
        )
        processes.append(rank_process)
        bar.follow(rank_process)
        _hand_over(rank_process, task)
    if requests.asked:
        _ask_to_stop(processes)  # a signal meets only the ranks that are in the list by then
    codes = _exit_codes(processes, requests)
    if requests.forced and None in codes:
        print(FORCED, file=sys.stderr)
        return STOPPED
    code = exit_code(codes, requests.asked)
    _print_failure(codes, code)
    return code


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


def _exit_codes(processes: Sequence[subprocess.Popen[bytes]], requests: StopRequests) -> list[int | None]:
    """Exit codes of all ranks; once one has failed or stopped, the others get a little time to end by themselves."""
    deadline = float("inf")
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        codes = [process.poll() for process in processes]
        deadline = min(deadline, time.monotonic() + _patience(codes, requests))
        time.sleep(0.1)
    return [process.poll() for process in processes]


def _patience(codes: Sequence[int | None], requests: StopRequests) -> float:
    """Seconds that ranks may take from now on to end by themselves."""
    if requests.forced:
        return _FORCED_SECONDS
    if requests.asked and any(code in _BY_SIGNAL for code in codes):
        return _NOT_BEGUN_SECONDS
    if any(code not in (None, DONE, STOPPED) or (code is not None and requests.asked) for code in codes):
        return _GRACE_SECONDS
    return float("inf")


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
