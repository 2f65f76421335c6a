"""The loader's worker processes: what they are, how they end, and what is told of those that die or hang."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from pretrain.data.reading.outage import NoMoreClips
from pretrain.data.sampling.order import Draw
from pretrain.data.sources import Sources, open_sources
from pretrain.data.workers.pool import DecoderDied, DecodersStalled
from sharding.base.parent_death import STOP_SIGNALS
from tests.pretrain.data.test_loader import data, loader


@pytest.fixture(scope="module")
def sources(store: str) -> Sources:
    return open_sources(data(store))


def children() -> set[int]:
    """This process' own that have not ended."""
    result = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, parent = path.read_text().rpartition(")")[2].split()[:2]
            if int(parent) == os.getpid() and state != "Z":
                result.add(int(path.parent.name))
    return result


def names(folder: str) -> set[str]:
    return {path.name for path in Path(folder).iterdir()}


def test_a_worker_is_no_rank(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who looks for a run's ranks by their environment finds these alone."""
    monkeypatch.setenv("RANK", "0")
    before = children()
    with loader(sources, 1) as made:
        steps = iter(made)
        next(steps)
        (worker,) = children() - before
        environment = Path(f"/proc/{worker}/environ").read_bytes().split(b"\0")
        assert b"PATH=" + os.environ["PATH"].encode() in environment
        assert not [entry for entry in environment if entry.startswith(b"RANK=")]


@pytest.mark.parametrize("number", STOP_SIGNALS)
def test_a_signal_to_all_of_a_job_ends_no_worker(sources: Sources, number: int) -> None:
    """The trainer decides: it may still validate and save."""
    before = children()
    with loader(sources, 1, last=4) as made:
        steps = iter(made)
        next(steps)
        (worker,) = children() - before
        os.kill(worker, number)
        assert len(list(steps)) == 3 and children() - before == {worker}


def test_workers_give_way_to_a_network_on_their_cores(sources: Sources) -> None:
    before = children()
    with loader(sources, workers=2, last=2) as made:
        steps = iter(made)
        next(steps)
        own = os.getpriority(os.PRIO_PROCESS, 0)
        found = [os.getpriority(os.PRIO_PROCESS, pid) for pid in children() - before]
        assert len(found) == 2 and max(found) == 19 and min(found) >= own
    assert os.getpriority(os.PRIO_PROCESS, 0) == own


@pytest.mark.slow
def test_a_worker_that_is_killed_is_told(sources: Sources) -> None:
    before = children()
    with loader(sources, 2) as made:
        steps = iter(made)
        next(steps)
        victim = max(children() - before)
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(DecoderDied, match=f"pid {victim}.*SIGKILL.*memory"):
            for _ in range(100):
                next(steps)
    assert children() <= before


def test_workers_that_hang_are_told(sources: Sources) -> None:
    before = children()
    with loader(sources, 1, prefetch=1, stall_seconds=1) as made:
        steps = iter(made)
        next(steps)
        (worker,) = children() - before
        os.kill(worker, signal.SIGSTOP)
        with pytest.raises(DecodersStalled, match=r"nothing for 1 s; see data\.loader\.stall_seconds"):
            for _ in range(100):
                next(steps)
    assert children() <= before


def test_nothing_is_left_of_a_step_that_is_asked_for_in_part(sources: Sources, monkeypatch: pytest.MonkeyPatch) -> None:
    """What one iteration asked for and did not take would come in the way of another."""
    before, tickets = children(), list[int]()
    with loader(sources, 1) as made:
        ask = made._pool.train

        def train(seed: int, draws: Sequence[Draw]) -> int:
            if tickets:
                raise NoMoreClips("the run is asked to stop")
            tickets.append(ask(seed, draws))
            return tickets[-1]

        monkeypatch.setattr(made._pool, "train", train)
        with pytest.raises(NoMoreClips):
            next(iter(made))
        assert children() == before


def test_nothing_is_left_of_it(sources: Sources) -> None:
    """No process, no named memory, no open handle."""
    before = children(), names("/dev/shm"), len(names("/proc/self/fd"))
    steps = iter(made := loader(sources, 2))
    next(steps)
    assert names("/dev/shm") == before[1]
    made.close()
    del steps
    assert (children(), names("/dev/shm")) == before[:2]
    assert len(names("/proc/self/fd")) <= before[2] + 1
