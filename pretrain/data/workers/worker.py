"""A worker process that makes batches: requests in, planes out through memory shared with the trainer's process."""

from __future__ import annotations

import gc
import mmap
import os
import pickle
import socket
import threading
import traceback
from contextlib import suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.reduction import send_handle

import numpy as np
from numpy.typing import NDArray

from pretrain.data.reading.outage import PatientStore, StoreGone
from pretrain.data.reading.part_cache import PartCache
from pretrain.data.reading.part_reader import CachedPartReader
from pretrain.data.reading.prefetch import PrefetchingReader
from pretrain.data.reading.reading_mode import ReadingSettings, uses_whole_parts
from pretrain.data.reading.store_split import Split
from pretrain.data.sampling.order import Draw
from pretrain.data.views.views import ClipSettings, Input
from pretrain.data.workers.batches import Batch, BatchMaker
from sharding.base.errors import UserError
from sharding.base.redact import redacted

_SPEAKING = threading.RLock()  # a handle follows its message at once, whichever thread reads meanwhile
_LAST = 19  # of what the system's scheduler knows as niceness


@dataclass(frozen=True)
class WorkerSetup:
    """What a worker is given as it starts: the splits of which it makes batches, for both uses, and how it reads.

    `yields_cpu`: the network computes on the same cores. Its threads wait for each other, so that a worker that takes a
    core from one of them stops all; it has them while the network leaves them free, or waits for clips.
    """

    clip: ClipSettings
    reading: ReadingSettings
    splits: tuple[Split, ...] = ()
    unseen: Split | None = None
    yields_cpu: bool = False


@dataclass(frozen=True)
class TrainingBatchRequest:
    """Clips of these draws, a row of integers each (see `Draw`), with the randomness of this seed."""

    ticket: int
    seed: int
    draws: NDArray[np.int64]


@dataclass(frozen=True)
class EvaluationBatchRequest:
    """The uniform clips of each of these samples, for so many crops of each clip."""

    ticket: int
    numbers: tuple[int, ...]
    clips: int
    crops: int


@dataclass(frozen=True)
class BatchReady:
    """The answer: a batch without the arrays, that lie in memory `buffer`, laid out by `shape` and what is `shown`."""

    ticket: int
    buffer: int
    shape: tuple[int, int, int, int]
    shown: Input
    batch: Batch


@dataclass(frozen=True)
class NewSharedMemory:
    """A stretch of memory, whose handle follows; `instead_of` one that was too small and is not used any more."""

    buffer: int
    size: int
    instead_of: int | None


@dataclass(frozen=True)
class RequestFailed:
    """A request that could not be done, and why."""

    error: Exception


class SharedMemory:
    """Stretches of anonymous memory that the trainer's process reads, used again once it says so.

    They have no name: nothing is left of them when both processes are gone, however these end.
    """

    def __init__(self, pipe: Connection) -> None:
        self._pipe = pipe
        self._all: dict[int, mmap.mmap] = {}
        self._free: set[int] = set()
        self._next = 0
        self._taken: int | None = None

    def take(self, size: int) -> memoryview:
        """At least `size` bytes. Taken again without a `hand_out`, it may be the same memory."""
        while self._pipe.poll():
            self._free.add(pickle.loads(self._pipe.recv_bytes()))
        if self._taken is not None:
            self._free.add(self._taken)
        fitting = [number for number in self._free if len(self._all[number]) >= size]
        if fitting:
            self._taken = min(fitting, key=lambda number: len(self._all[number]))
            self._free.remove(self._taken)
        else:
            self._taken = self._new(size, self._free.pop() if self._free else None)
        return memoryview(self._all[self._taken])[:size]

    def hand_out(self) -> int:
        """The number of the memory that was taken last, which is the trainer's now."""
        taken, self._taken = self._taken, None
        assert taken is not None
        return taken

    def _new(self, size: int, instead_of: int | None) -> int:
        number, self._next = self._next, self._next + 1
        if instead_of is not None:
            del self._all[instead_of]
        handle = os.memfd_create("reelscale-batch", os.MFD_CLOEXEC)
        try:
            size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
            os.ftruncate(handle, size)
            self._all[number] = mmap.mmap(handle, size)
            with _SPEAKING:
                _say(self._pipe, NewSharedMemory(number, size, instead_of))
                send_handle(self._pipe, handle, None)
        finally:
            os.close(handle)
        return number


def serve(jobs_handle: int, pipe_handle: int) -> None:
    """Do, in a worker, the jobs that come until there are no more to come."""
    jobs, pipe = socket.socket(fileno=jobs_handle), Connection(pipe_handle)
    with suppress(EOFError, ConnectionError):
        work: WorkerSetup = pickle.loads(pipe.recv_bytes())
        if work.yields_cpu:
            os.nice(_LAST)
        memory = SharedMemory(pipe)
        for split in (*work.splits, *([work.unseen] if work.unseen else [])):
            if isinstance(split.store, PatientStore):
                split.store.tell = lambda waiting: _say(pipe, waiting)
        _choose_sources(work)
        # What is there now stays, and frames and packets make no circles: looking for some would cost a few per cent.
        gc.freeze()
        gc.set_threshold(100_000, 50, 50)
        maker = BatchMaker(work.splits, work.unseen, work.clip, memory.take)
        while job := _next(jobs):
            _say(pipe, _done(maker, memory, job))


def send_request(jobs: socket.socket, job: TrainingBatchRequest | EvaluationBatchRequest) -> None:
    """Send a job to whichever worker takes it first. ConnectionError if none is left.

    BlockingIOError, with nothing sent, if a socket that does not block has no room.
    The job lies in memory whose handle is sent: a message goes to one worker whole, and is of limited size.
    """
    handle = os.memfd_create("reelscale-job", os.MFD_CLOEXEC)
    with os.fdopen(handle, "wb") as file:
        pickle.dump(job, file, pickle.HIGHEST_PROTOCOL)
        file.flush()
        socket.send_fds(jobs, [b"job"], [handle])


def _next(jobs: socket.socket) -> TrainingBatchRequest | EvaluationBatchRequest | None:
    """The next job; None once there are no more to come."""
    message, handles, _, _ = socket.recv_fds(jobs, 3, 1)
    if not message:
        return None
    with os.fdopen(handles[0], "rb") as file:
        file.seek(0)  # the place in it is shared with the sender
        job: TrainingBatchRequest | EvaluationBatchRequest = pickle.load(file)
    return job


def _choose_sources(work: WorkerSetup) -> None:
    """Have remote splits prefetch ranges, and read from cached whole parts where that is cheaper."""
    for split in (*work.splits, *([work.unseen] if work.unseen else [])):
        if split.store.remote:
            split.source = PrefetchingReader(split.store)
    for split in work.splits:
        if uses_whole_parts(work.reading, split, work.clip):
            assert work.reading.folder is not None
            split.source = CachedPartReader(
                split.source, split.parts, PartCache(work.reading.folder, work.reading.bytes)
            )


def _done(
    maker: BatchMaker, memory: SharedMemory, job: TrainingBatchRequest | EvaluationBatchRequest
) -> BatchReady | RequestFailed:
    try:
        if isinstance(job, TrainingBatchRequest):
            batch = maker.training(job.seed, [Draw(*draw) for draw in job.draws.tolist()])
        else:
            batch = maker.evaluation(job.numbers, job.clips, job.crops)
    except (UserError, StoreGone) as error:
        return RequestFailed(error)
    except Exception as error:
        return RequestFailed(RuntimeError(redacted("".join(traceback.format_exception(error)))))
    shape, without = batch.planes.shape, batch.planes.with_arrays(None, None, None)
    return BatchReady(job.ticket, memory.hand_out(), shape, maker.clip.input, replace(batch, planes=without))


def _say(pipe: Connection, message: object) -> None:
    with _SPEAKING:
        pipe.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
