"""A pool of worker processes on this machine, which run tasks and end with the command however it ends."""

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar, cast

from cluster.launch.signals import signals_ignored
from sharding.base.errors import UserError
from sharding.base.exit_codes import STOPPED
from sharding.base.parent_death import die_with
from sharding.base.redact import redacted

A = TypeVar("A", bound=tuple[Any, ...])

_GRACE_SECONDS = 5.0
_TRIES = 3  # of a task whose worker dies


class WorkerDied(Exception):
    """A worker process ended in the middle of a task: killed, out of memory, or crashed in a library."""


@dataclass(frozen=True)
class TaskProgress(Generic[A]):
    """What a task reported of its progress."""

    arguments: A
    value: Any


@dataclass(frozen=True)
class TaskDone(Generic[A]):
    """What a task returned."""

    arguments: A
    result: Any


@dataclass(frozen=True)
class TaskRestarted(Generic[A]):
    """A task begins anew, because its worker died (`reason`, in words for the user): its progress before is void."""

    arguments: A
    reason: str


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    arguments: Any = None  # of the task it has
    tries: int = 0


@dataclass(frozen=True)
class _Answer:
    """What a worker sends: progress, or with `last` the result, or the error of a task that failed."""

    value: Any = None
    last: bool = False
    error: UserError | str | None = None


def run_in_processes(
    task: Callable[..., Any], todo: Iterable[A], workers: int, name: Callable[..., str] | None = None
) -> Generator[TaskProgress[A] | TaskDone[A] | TaskRestarted[A]]:
    """Progress and results of the calls `task(*arguments, tell)`, as they come, from `workers` processes at one a time.

    `tell(value)` sends a TaskProgress at once. `todo` is read as workers get free, so it may be endless. A task whose
    worker dies is given to a new one, after a TaskRestarted. Close the iterator to end the workers; they clean up after
    the tasks they leave.
    Raises WorkerDied, with the task as `name(*arguments)` calls it, once its workers have died three times; a task's
    UserError at once, any other error of it as RuntimeError.
    """
    waiting = iter(todo)
    pool: list[_Worker] = []
    try:
        for arguments in islice(waiting, workers):
            pool.append(_start(task))
            _give(pool[-1], arguments)
        busy = {worker.pipe: worker for worker in pool}
        while busy:
            for pipe in cast(list[Connection], wait(list(busy))):
                worker, arguments = busy[pipe], busy[pipe].arguments
                answer = _answer(worker)
                if answer is None:
                    reason = _death(worker)
                    if worker.tries == _TRIES:
                        raise WorkerDied(f"{(name or _name)(*arguments)}: {reason}, as did {_TRIES - 1} before it")
                    fresh = _start(task)
                    pool[pool.index(worker)] = fresh
                    del busy[pipe]
                    busy[fresh.pipe] = fresh
                    _give(fresh, arguments, worker.tries + 1)
                    yield TaskRestarted(arguments, reason)
                elif not answer.last:
                    yield TaskProgress(arguments, answer.value)
                else:
                    worker.arguments = next(waiting, None)
                    if worker.arguments is None:
                        del busy[pipe]
                    else:
                        _give(worker, worker.arguments)
                    yield TaskDone(arguments, answer.value)
    finally:
        with signals_ignored():
            _end(pool)


def _start(task: Callable[..., Any]) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(task, theirs, os.getpid()), daemon=True)
    # A terminal's Ctrl-C and its closing reach the workers, too, and they are not to answer it, not even while they
    # start: a mask is inherited. The tracker would take the mask off when it starts.
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP, signal.SIGUSR1})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    theirs.close()
    return _Worker(process, ours)


def _work(task: Callable[..., Any], pipe: Connection, parent: int) -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    die_with(parent)
    try:
        _serve(task, pipe)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a worker that is ending is not asked to end again


def _serve(task: Callable[..., Any], pipe: Connection) -> None:
    while True:
        try:
            arguments = pipe.recv()
        except (EOFError, ConnectionError):
            return
        try:
            answer = _Answer(task(*arguments, lambda value: pipe.send(_Answer(value))), last=True)
        except UserError as error:
            answer = _Answer(error=error)
        except Exception:
            answer = _Answer(error=redacted(traceback.format_exc()))
        try:
            pipe.send(answer)
        except ConnectionError:
            return


def _give(worker: _Worker, arguments: Any, tries: int = 1) -> None:
    worker.arguments, worker.tries = arguments, tries
    with suppress(ConnectionError):  # a worker that is dead is noticed when it is asked
        worker.pipe.send(arguments)


def _answer(worker: _Worker) -> _Answer | None:
    """What a worker sent; None if it died. Raises the error of a task that failed."""
    try:
        answer: _Answer = worker.pipe.recv()
    except (EOFError, OSError):
        return None
    if answer.error is not None:
        raise answer.error if isinstance(answer.error, UserError) else RuntimeError(answer.error)
    return answer


def _death(worker: _Worker) -> str:
    worker.pipe.close()
    worker.process.join(_GRACE_SECONDS)
    return f"worker process {worker.process.pid} died (exit {worker.process.exitcode})"


def _name(*arguments: Any) -> str:
    return f"the task {', '.join(map(str, arguments))[:100]}"


def _end(pool: list[_Worker]) -> None:
    for worker in pool:
        worker.pipe.close()
        if worker.arguments is not None:
            worker.process.terminate()
    deadline = time.monotonic() + _GRACE_SECONDS
    for worker in pool:
        worker.process.join(max(0.0, deadline - time.monotonic()))
        if worker.process.is_alive():
            worker.process.kill()
            worker.process.join()
