"""Tasks spread over processes of this machine, which end with the command however it ends."""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from cluster.launch.signals import STOPPED, die_with, undisturbed
from sharding.errors import UserError

T = TypeVar("T")

_GRACE_SECONDS = 5.0


class WorkerDied(Exception):
    """A worker process ended in the middle of a task: killed, out of memory, or crashed in a library."""


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    pipe: Connection


@dataclass(frozen=True)
class _Failure:
    error: UserError | str


def spread(task: Callable[..., T], todo: Sequence[tuple[Any, ...]], workers: int) -> Generator[T]:
    """The results of `task(*arguments)` as they come, from `workers` processes with one task each at a time.

    Close the iterator to end the workers; they clean up after the tasks they leave. A task's UserError is
    raised at once, any other error as RuntimeError; WorkerDied if a worker did.
    """
    waiting = list(reversed(todo))
    pool: list[_Worker] = []
    busy: list[_Worker] = []
    try:
        for _ in range(min(workers, len(todo))):
            pool.append(_start(task))
        for worker in pool:
            busy.append(worker)
            _give(worker, waiting.pop())
        while busy:
            ready = wait([worker.pipe for worker in busy])
            for worker in [worker for worker in busy if worker.pipe in ready]:
                result = _result(worker)
                if waiting:
                    _give(worker, waiting.pop())
                else:
                    busy.remove(worker)
                yield result
    finally:
        with undisturbed():
            _end(pool, busy)


def _start(task: Callable[..., Any]) -> _Worker:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=_work, args=(task, there, os.getpid()), daemon=True)
    # A terminal's Ctrl-C reaches the workers, too, and they are not to answer it, not even while they start:
    # a mask is inherited. The tracker would take the mask off when it starts.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    there.close()
    return _Worker(process, here)


def _work(task: Callable[..., Any], pipe: Connection, parent: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    die_with(parent)
    try:
        _serve(task, pipe)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # who leaves is not to be told so in the middle of it


def _serve(task: Callable[..., Any], pipe: Connection) -> None:
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        try:
            answer = task(*arguments)
        except UserError as error:
            answer = _Failure(error)
        except Exception:
            answer = _Failure(traceback.format_exc())
        try:
            pipe.send(answer)
        except BrokenPipeError:
            return


def _give(worker: _Worker, arguments: tuple[Any, ...]) -> None:
    try:
        worker.pipe.send(arguments)
    except OSError as error:
        raise _death(worker) from error


def _result(worker: _Worker) -> Any:
    try:
        answer = worker.pipe.recv()
    except (EOFError, OSError) as error:
        raise _death(worker) from error
    if not isinstance(answer, _Failure):
        return answer
    raise answer.error if isinstance(answer.error, UserError) else RuntimeError(answer.error)


def _death(worker: _Worker) -> WorkerDied:
    worker.process.join(_GRACE_SECONDS)
    return WorkerDied(f"worker process {worker.process.pid} died (exit {worker.process.exitcode})")


def _end(pool: list[_Worker], busy: list[_Worker]) -> None:
    for worker in pool:
        worker.pipe.close()
    for worker in busy:
        worker.process.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    for worker in pool:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
