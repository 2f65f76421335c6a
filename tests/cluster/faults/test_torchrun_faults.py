"""Faults of two hosts on which torchrun trains: each run ends with the bits of one that nothing disturbed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
import torch

from tests.cluster.faults.conftest import STEPS, Machines
from tests.cluster.faults.torchrun_job import Agent, TorchrunJob
from tests.support.commands import train_steps
from tests.support.processes import gone
from tests.support.training.checkpoints import load_newest

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]

Start = Callable[..., TorchrunJob]
Measure = Callable[[], AbstractContextManager[None]]


@pytest.fixture()
def measured(record_property: Callable[[str, object], None], request: pytest.FixtureRequest) -> Measure:
    """A context in which a run recovers: its seconds are a property of the test, and printed."""

    @contextmanager
    def measure() -> Iterator[None]:
        begin = time.monotonic()
        yield
        seconds = time.monotonic() - begin
        record_property("recovery_seconds", round(seconds, 1))
        print(f"\n{request.node.name}: recovered in {seconds:.1f} s")

    return measure


def begun(machines: Machines, job: TorchrunJob) -> tuple[Agent, Agent]:
    """The agents of a run that is past its first checkpoint."""
    first, second = (job.start(host) for host in machines.hosts)
    job.until(lambda: job.step() > 25)
    return first, second


def goes_on(job: TorchrunJob, times: int = 2) -> None:
    """Wait until the ranks that were started for this many times have taken a step."""
    job.until(lambda: len(re.findall(r" step \d+ is taken, ", job.said)) >= times)


def assert_undisturbed(
    machines: Machines, job: TorchrunJob, interruptions: int, codes: tuple[int, ...] = (0, 0)
) -> None:
    """The run has the undisturbed one's bits and a line a step, says what it lost, and leaves no process."""
    assert tuple(job.exit_codes()) == codes, job.said
    newest = load_newest(job.run_on(machines.hosts[0]))
    assert newest and newest.step == STEPS, job.said
    different = [name for name, value in machines.undisturbed.items() if not torch.equal(value, newest.model[name])]
    assert different == [], job.said
    assert train_steps(job.run_on(machines.hosts[0])) == list(range(1, STEPS + 1))
    assert interruptions <= newest.state["interruptions"] <= 2 * interruptions, job.said
    lost = re.findall(r"interrupted, for the \d\w\w time: (\d+) s since its checkpoint at step \d+", job.said)
    assert bool(lost) is bool(interruptions) and (newest.state["lost_seconds"] > 0) is bool(interruptions), job.said
    assert "GLHF" not in job.said and "pair.cc" not in "\n".join(re.findall("^reelscale: .*", job.said, re.M))
    assert all(gone(pid) for host in machines.hosts for pid in host.processes()), job.said


def test_a_rank_killed(machines: Machines, torchrun: Start, measured: Measure) -> None:
    job = torchrun()
    _, second = begun(machines, job)
    rank = second.rank()
    assert rank is not None
    os.kill(rank, signal.SIGKILL)
    with measured():
        goes_on(job)
    assert_undisturbed(machines, job, interruptions=1)
    messages = [line for line in job.agents[0].said.splitlines() if "is gone (" in line]
    assert len(messages) == 1, job.said


def test_an_agent_killed_and_started_anew(machines: Machines, torchrun: Start, measured: Measure) -> None:
    """Its rank ends with it, the other is told, and the new agent joins the old one."""
    job = torchrun()
    first, second = begun(machines, job)
    ranks = [first.rank(), second.rank()]
    os.kill(second.pid, signal.SIGKILL)
    with measured():
        assert all(rank and gone(rank, 60) for rank in ranks), job.said
        job.start(machines.hosts[1])
        goes_on(job)
    assert_undisturbed(machines, job, interruptions=1, codes=(0, -signal.SIGKILL, 0))


def test_a_host_lost_in_silence_and_back(machines: Machines, torchrun: Start, measured: Measure) -> None:
    """No connection is closed, as of a machine without current: the heartbeats that stay out say so."""
    job = torchrun()
    first, _ = begun(machines, job)
    rank = first.rank()
    machines.hosts[1].unplug()
    machines.hosts[1].kill()
    with measured():
        assert rank and gone(rank, 60), job.said
        assert "rank 1 is gone (no sign of life for 3 s)" in first.said, job.said
        machines.hosts[1].start()
        job.start(machines.hosts[1])
        goes_on(job)
    assert_undisturbed(machines, job, interruptions=1, codes=(0, -signal.SIGKILL, 0))


def test_the_host_of_the_rendezvous_lost(machines: Machines, torchrun: Start, measured: Measure) -> None:
    """All agents end with it, and the same command on all goes on."""
    job = torchrun()
    _, second = begun(machines, job)
    machines.hosts[0].kill()
    with measured():
        job.until(lambda: second.process.poll() is not None)
        assert second.process.returncode == 1 and machines.hosts[1].processes() == {}, job.said
        machines.hosts[0].start()
        for host in machines.hosts:
            job.start(host)
        goes_on(job)
    assert_undisturbed(machines, job, interruptions=1, codes=(-signal.SIGKILL, 1, 0, 0))


def test_a_link_cut_for_30_seconds(machines: Machines, torchrun: Start, measured: Measure) -> None:
    job = torchrun()
    begun(machines, job)
    machines.hosts[1].unplug()
    with measured():
        time.sleep(30)
        machines.hosts[1].plug()
        goes_on(job)
    assert_undisturbed(machines, job, interruptions=1)


def test_a_host_that_hangs(machines: Machines, torchrun: Start, measured: Measure) -> None:
    """Frozen for 10 s: the others have long given up on its rank when it goes on, and it joins them."""
    job = torchrun()
    first, second = begun(machines, job)
    rank = first.rank()
    machines.hosts[1].freeze()
    with measured():
        assert rank and gone(rank, 60), job.said
        time.sleep(5)
        machines.hosts[1].thaw()
        goes_on(job)
    assert_undisturbed(machines, job, interruptions=1)
    messages = [line for line in second.said.splitlines() if "go on without it" in line or " is gone (" in line]
    assert len(messages) == 1, job.said


def test_a_slow_link(machines: Machines, torchrun: Start, measured: Measure) -> None:
    """Steps take as long as their gradients on it, and nobody counts as lost."""
    job = torchrun()
    begun(machines, job)
    machines.hosts[1].slow("8mbit")
    with measured():
        reached = job.step()
        job.until(lambda: job.step() > reached + 2)
    machines.hosts[1].fast()
    assert_undisturbed(machines, job, interruptions=0)


def test_the_store_out_of_reach(machines: Machines, torchrun: Start, measured: Measure) -> None:
    """For 10 s, data and checkpoints: the run waits, or goes on with what it has read, and loses nothing."""
    job = torchrun("data.patience_seconds=200")
    begun(machines, job)
    machines.s3.kill()
    time.sleep(10)
    with measured():
        machines.s3.start()
        reached = job.step()
        job.until(lambda: job.step() > reached or job.step() == STEPS)
    assert_undisturbed(machines, job, interruptions=0)


def test_stopped_from_one_host_and_resumed_on_empty_disks(
    machines: Machines, torchrun: Start, measured: Measure
) -> None:
    """Nothing is shared but the bucket: the checkpoint of the stop is there, and so is the run's history."""
    job = torchrun()
    _, second = begun(machines, job)
    rank = second.rank()
    assert rank is not None
    os.kill(rank, signal.SIGTERM)
    assert job.exit_codes() == [0, 0], job.said
    stopped = re.search(r"stopped at step (\d+) with everything saved", job.agents[0].said)
    assert stopped and f"/run, step {stopped[1]}\n" in job.agents[0].said, job.said
    for host in machines.hosts:
        shutil.rmtree(job.run_on(host), ignore_errors=True)
    again = torchrun()
    with measured():
        for host in machines.hosts:
            again.start(host)
        goes_on(again, 1)
    assert f"going on from the checkpoint at step {stopped[1]} of {STEPS}" in again.said
    assert_undisturbed(machines, again, interruptions=0)
