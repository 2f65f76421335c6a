"""The pool of worker processes as the trainer uses it: requests go to whichever is free, batches come by ticket."""

from __future__ import annotations

import mmap
import os
import pickle
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.reduction import recv_handle
from typing import Annotated

import numpy as np
from pydantic import Field

from pretrain.data.reading.outage import NoMoreClips, OutageLog, StoreWait
from pretrain.data.sampling.order import Draw
from pretrain.data.workers.batches import Batch
from pretrain.data.workers.planes import plane_arrays
from pretrain.data.workers.worker import (
    BatchReady,
    EvaluationBatchRequest,
    NewSharedMemory,
    RequestFailed,
    TrainingBatchRequest,
    WorkerSetup,
    send_request,
)
from sharding.base import environment
from sharding.base.child_process import end_children, exit_code, signal_of, start_connected
from sharding.base.errors import CommandFailed
from sharding.base.parent_death import STOP_SIGNALS
from sharding.base.settings import Seconds, Settings, unit

_MOST_WORKERS = 16
_STOP_SECONDS = 15.0  # that a run which is to stop waits for clips
_START_SECONDS = 120.0  # that nothing may come for as they start
_ROOM_SECONDS = 0.1  # after which a job is offered again where no worker said anything
_LAST_WORDS_SECONDS = 5.0  # in which the pipe of a process that died is closed, as its socket was


class LoaderSettings(Settings):
    """How many processes make clips, how many steps they prefetch, and how much damage they may meet."""

    workers: Annotated[
        int | None,
        Field(
            json_schema_extra=unit("processes"),
            ge=1,
            le=1024,
            description="decoding processes of each rank; null: its share of the cores, at most 16",
        ),
    ] = None
    prefetch: Annotated[
        int,
        Field(
            json_schema_extra=unit("steps"),
            ge=1,
            le=1024,
            description="steps, at least, whose clips are made ahead of the current one",
        ),
    ] = 1
    damaged: Annotated[
        float,
        Field(
            json_schema_extra=unit("share"),
            ge=0,
            le=1,
            description="share from 0 to 1 of the samples that may be damaged before the run stops",
        ),
    ] = 0.001
    stall_seconds: Annotated[Seconds, Field(description="seconds without a clip from any worker that end the run")] = (
        600
    )


class DecoderDied(CommandFailed):
    """A worker process ended, and with it the batches that it was making."""


class DecodersStalled(CommandFailed):
    """No batch came for so long that none will."""


@dataclass
class _Worker:
    process: subprocess.Popen[bytes]
    pipe: Connection
    memory: dict[int, mmap.mmap]


def decoder_count(settings: LoaderSettings) -> int:
    """Processes that this rank decodes with: its share of the cores that this machine's ranks may use."""
    ranks_here = environment.local_world_size()
    return settings.workers or max(1, min(len(os.sched_getaffinity(0)) // ranks_here, _MOST_WORKERS))


class WorkerPool:
    """`count` processes that make batches; they start with the first job and end with `close`, or with this process.

    A batch's arrays are the worker's own memory: `release` gives it back. From one thread. A context manager.
    As many may be asked for before one is taken as this process may open files. `train` and `evaluate`, which wait for
    room in the socket to the workers, raise what `take` raises.
    `settings`: what its user calls `count` and `stall_seconds`, for messages.
    """

    def __init__(
        self,
        count: int,
        work: WorkerSetup,
        stall_seconds: float,
        settings: tuple[str, str] = ("data.loader.workers", "data.loader.stall_seconds"),
    ) -> None:
        self._count_setting, self._stall_setting = settings
        self.count, self._work, self._stall_seconds = count, work, stall_seconds
        self._workers: list[_Worker] = []
        self._jobs: socket.socket | None = None
        self._tickets = 0
        self._heard = False
        self.is_stopping: Callable[[], bool] = bool  # whether the run is asked to stop
        self.on_store_wait: Callable[[], object] = bool  # called now and then while a store is waited for
        self._outage = OutageLog()
        self._made: dict[int, Batch] = {}
        self._lent: dict[int, tuple[_Worker, int]] = {}

    def __enter__(self) -> WorkerPool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def train(self, seed: int, draws: Sequence[Draw]) -> int:
        """Ask for a batch of these draws; the ticket to `take` it with."""
        return self._submit(lambda ticket: TrainingBatchRequest(ticket, seed, np.array(draws, np.int64)))

    def evaluate(self, numbers: list[int], clips: int, crops: int = 1) -> int:
        """Ask for the uniform clips of samples, for so many crops of each; the ticket to `take` them with."""
        return self._submit(lambda ticket: EvaluationBatchRequest(ticket, tuple(numbers), clips, crops))

    def is_ready(self, ticket: int) -> bool:
        """Whether `take` would return at once."""
        self._hear(0.0)
        return ticket in self._made

    def take(self, ticket: int) -> Batch:
        """Wait for a batch.

        Raises what its making raised (UserError, StoreGone), NoMoreClips where the run is asked to stop meanwhile and
        it does not come soon, DecoderDied as soon as any worker is gone, and DecodersStalled if nothing comes from any
        of them for `stall_seconds`.
        """
        self._hear_until(lambda: ticket in self._made, 1.0)
        return self._made.pop(ticket)

    def release(self, ticket: int) -> None:
        """Let the worker use a batch's memory again: its arrays are not to be read any more."""
        worker, buffer = self._lent.pop(ticket)
        with suppress(OSError):  # that it died is told by the next `take`
            worker.pipe.send_bytes(pickle.dumps(buffer))

    def close(self) -> None:
        """End the processes at once."""
        workers, self._workers = self._workers, []
        if self._jobs is not None:
            self._jobs.close()
            self._jobs = None
        end_children([worker.process for worker in workers])
        for worker in workers:
            worker.pipe.close()
        self._heard = False
        self._made.clear()
        self._lent.clear()

    def _submit(self, job: Callable[[int], TrainingBatchRequest | EvaluationBatchRequest]) -> int:
        if self._jobs is None:
            self._start()
        ticket, self._tickets = self._tickets, self._tickets + 1
        request = job(ticket)
        self._hear_until(lambda: self._is_sent(request), _ROOM_SECONDS)
        return ticket

    def _is_sent(self, request: TrainingBatchRequest | EvaluationBatchRequest) -> bool:
        assert self._jobs is not None
        try:
            send_request(self._jobs, request)
        except BlockingIOError:
            return False
        except ConnectionError:
            while self._hear(_LAST_WORDS_SECONDS):  # tells who died, after all that was said before
                pass
            raise
        return True

    def _start(self) -> None:
        # One socket that all take their jobs from, each message going to one of them: who is free first, works first.
        self._jobs, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        # A worker whose pipe is full takes no job until it is heard: who waits for room in the socket has to listen.
        self._jobs.setblocking(False)
        work = pickle.dumps(self._work, pickle.HIGHEST_PROTOCOL)
        try:
            self._workers = [_started(theirs) for _ in range(self.count)]
        finally:
            theirs.close()
        for worker in self._workers:
            with suppress(ConnectionError):  # told by the first `take`
                worker.pipe.send_bytes(work)

    def _hear_until(self, is_done: Callable[[], bool], seconds: float) -> None:
        """Take in what workers say until it is done, which is asked after each word and every so many seconds.

        Raises what `take` raises.
        """
        begin = time.monotonic()
        deadline = begin + max(self._stall_seconds, 0.0 if self._heard else _START_SECONDS)
        while not is_done():
            if self._hear(min(seconds, self._stall_seconds)):
                deadline = time.monotonic() + self._stall_seconds
            elif self.is_stopping() and time.monotonic() - begin > (0.0 if self._outage.ongoing else _STOP_SECONDS):
                raise NoMoreClips("the run is asked to stop while it waits for clips")
            elif time.monotonic() > deadline and not self._outage.ongoing:
                raise DecodersStalled(
                    f"the {self.count} processes that decode video have made nothing for {self._stall_seconds:g} s; "
                    f"see {self._stall_setting}"
                )

    def _hear(self, seconds: float) -> bool:
        """Take in what workers say; whether any of them said something."""
        by_pipe = {worker.pipe: worker for worker in self._workers}
        heard = wait(list(by_pipe), seconds)
        self._heard = self._heard or bool(heard)
        for pipe in heard:
            assert isinstance(pipe, Connection)
            worker = by_pipe[pipe]
            try:
                self._take_in(worker, pickle.loads(pipe.recv_bytes()))
            except (EOFError, ConnectionError) as error:
                raise DecoderDied(_death(worker.process, self._count_setting)) from error
        return bool(heard)

    def _take_in(self, worker: _Worker, message: NewSharedMemory | BatchReady | RequestFailed | StoreWait) -> None:
        if isinstance(message, NewSharedMemory):
            handle = recv_handle(worker.pipe)
            if message.instead_of is not None:
                del worker.memory[message.instead_of]
            try:
                worker.memory[message.buffer] = mmap.mmap(handle, message.size)
            finally:
                os.close(handle)
        elif isinstance(message, StoreWait):
            self._outage.tell(message)
            self.on_store_wait()
        elif isinstance(message, RequestFailed):
            raise message.error
        else:
            memory = memoryview(worker.memory[message.buffer])
            arrays = plane_arrays(lambda size: memory[:size], message.shape, message.shown)
            planes = message.batch.planes.with_arrays(*arrays)
            self._made[message.ticket] = replace(message.batch, planes=planes)
            self._lent[message.ticket] = (worker, message.buffer)


def _started(jobs: socket.socket) -> _Worker:
    process, pipe = start_connected(
        "pretrain.data.workers.worker",
        "serve",
        [jobs.fileno()],
        ignored=STOP_SIGNALS,  # the trainer decides, and its workers end with it
        expendable=True,
        env=environment.without_rank(),
    )
    return _Worker(process, pipe, {})


def _death(process: subprocess.Popen[bytes], count_setting: str) -> str:
    code = exit_code(process)
    number = signal_of(code)
    how = f"was ended by {number}" if number else f"ended with code {code}"
    if code == -signal.SIGKILL:
        how += f": perhaps the machine is short of memory; lower {count_setting}"
    return f"a process that decodes video (pid {process.pid}) {how}"
