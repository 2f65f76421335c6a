"""The pool of workers where more is asked of it at once than its socket to them holds."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pretrain.data.reading.outage import NoMoreClips
from pretrain.data.reading.reading_mode import ReadingSettings
from pretrain.data.reading.store_split import open_split
from pretrain.data.views.views import ClipSettings
from pretrain.data.workers import pool as pool_module
from pretrain.data.workers.pool import DecodersStalled, WorkerPool
from pretrain.data.workers.worker import WorkerSetup
from sharding.storage.store import open_store
from tests.pretrain.conftest import CLIP

JOBS = 700  # the socket holds some 280, and two workers say some 200 answers into pipes that nobody reads
HANG_SECONDS = 120


@pytest.fixture(scope="module")
def work(store: str) -> WorkerSetup:
    split = open_split(open_store(store), "val")
    return WorkerSetup(ClipSettings.model_validate(CLIP), ReadingSettings(), unseen=split)


@contextmanager
def ends_in_time() -> Iterator[None]:
    """Fail where it hangs, also in a system call."""

    def fail(*_: object) -> None:
        pytest.fail(f"asking for {JOBS} batches takes more than {HANG_SECONDS} s: both sides wait for each other")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(HANG_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def frozen(pool: WorkerPool) -> Iterator[None]:
    """Its workers, which have made something, do not get on."""
    pool.take(pool.evaluate([0], 1))
    for worker in pool._workers:
        os.kill(worker.process.pid, signal.SIGSTOP)
    with ends_in_time():
        yield


@pytest.mark.slow
def test_any_number_may_be_asked_for_before_one_is_taken(work: WorkerSetup) -> None:
    with WorkerPool(2, work, 60) as pool, ends_in_time():
        tickets = [pool.evaluate([number % 2], 1) for number in range(JOBS)]
        batches = [pool.take(ticket) for ticket in tickets]
        assert work.unseen is not None
        keys = [work.unseen.sample(number).key for number in range(2)]
        assert [batch.keys for batch in batches] == [[keys[number % 2]] for number in range(JOBS)]


def test_workers_that_take_no_jobs_are_told(work: WorkerSetup) -> None:
    with WorkerPool(2, work, 1) as pool, frozen(pool), pytest.raises(DecodersStalled, match="nothing for 1 s"):
        for _ in range(JOBS):
            pool.evaluate([0], 1)


def test_a_run_that_is_to_stop_does_not_wait_to_ask(work: WorkerSetup, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool_module, "_STOP_SECONDS", 0.2)
    stop = threading.Event()
    with WorkerPool(2, work, 600) as pool, frozen(pool), pytest.raises(NoMoreClips, match="asked to stop"):
        pool.is_stopping = stop.is_set
        threading.Timer(0.5, stop.set).start()
        for _ in range(JOBS):
            pool.evaluate([0], 1)
