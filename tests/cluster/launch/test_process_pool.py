"""Worker processes without Ray: their progress, their deaths and their clean-up."""

from __future__ import annotations

import atexit
import itertools
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cluster.launch import process_pool
from cluster.launch.process_pool import TaskDone, TaskProgress, TaskRestarted, WorkerDied, run_in_processes
from sharding.base.errors import UserError

Tell = Callable[[Any], None]


def leave_slowly(tell: Tell) -> str:
    """A task after which the process takes its time to end."""
    atexit.register(time.sleep, 2)
    return "done"


def double(number: int, tell: Tell) -> int:
    return 2 * number


def count(number: int, tell: Tell) -> str:
    for step in range(number):
        tell(step)
    return f"counted to {number}"


def wait_for(path: Path, tell: Tell) -> str:
    tell("waiting")
    while not path.exists():
        time.sleep(0.01)
    return "seen"


def die_at_first(folder: Path, number: int, deaths: int, tell: Tell) -> str:
    tell("begun")
    for death in range(deaths):
        try:
            (folder / f"{number}-{death}").touch(exist_ok=False)
        except FileExistsError:
            continue
        os.kill(os.getpid(), signal.SIGKILL)
    return f"{number} done"


def fail(kind: str, tell: Tell) -> None:
    raise UserError("what", "where", "remedy") if kind == "user" else ValueError("a bug")


def clean_up(folder: Path, tell: Tell) -> None:
    (folder / f"{os.getpid()}").touch()
    try:
        tell(os.getpid())
        time.sleep(600)
    finally:
        (folder / f"{os.getpid()}").unlink()


def test_results_come_with_their_arguments() -> None:
    results = list(run_in_processes(double, ((number,) for number in range(50)), 2))
    assert sorted(results, key=lambda done: done.arguments) == [TaskDone((number,), 2 * number) for number in range(50)]
    assert list(run_in_processes(double, [], 2)) == []
    assert list(run_in_processes(double, [(4,)], 2)) == [TaskDone((4,), 8)]


def test_progress_comes_in_order_and_before_the_result() -> None:
    came = list(run_in_processes(count, [(5,), (0,), (3,)], 2))
    for number in (5, 0, 3):
        mine = [event for event in came if event.arguments == (number,)]
        told = [TaskProgress((number,), step) for step in range(number)]
        assert mine == [*told, TaskDone((number,), f"counted to {number}")]


def test_progress_comes_at_once(tmp_path: Path) -> None:
    with closing(run_in_processes(wait_for, [(tmp_path / "go",)], 1)) as events:
        assert next(events) == TaskProgress((tmp_path / "go",), "waiting")
        (tmp_path / "go").touch()
        assert next(events) == TaskDone((tmp_path / "go",), "seen")
        with pytest.raises(StopIteration):
            next(events)


def test_tasks_are_read_as_they_are_needed() -> None:
    read = []

    def todo() -> Iterator[tuple[int]]:
        for number in itertools.count():
            read.append(number)
            yield (number,)

    with closing(run_in_processes(double, todo(), 2)) as events:
        for _ in range(10):
            next(events)
        assert len(read) <= 12


class Held:
    """An argument whose living instances are counted."""

    now = most = 0

    def __init__(self) -> None:
        Held.now += 1
        Held.most = max(Held.most, Held.now)

    def __del__(self) -> None:
        Held.now -= 1


def nothing(held: Held, tell: Tell) -> None:
    pass


@pytest.mark.slow
def test_many_tasks_are_fast_and_none_is_kept() -> None:
    began = time.monotonic()
    assert sum(1 for _ in run_in_processes(nothing, ((Held(),) for _ in range(20_000)), 2)) == 20_000
    assert Held.most < 10
    assert time.monotonic() - began < 60  # a twentieth of that with the machine to itself


def test_a_worker_s_death_is_made_good(tmp_path: Path) -> None:
    came = list(run_in_processes(die_at_first, [(tmp_path, number, number % 3) for number in range(6)], 2))
    kinds = Counter((type(event), event.arguments[1]) for event in came)
    for number in range(6):
        assert kinds[TaskDone, number] == 1 and kinds[TaskRestarted, number] == number % 3
        assert kinds[TaskProgress, number] == 1 + number % 3
    reasons = [event.reason for event in came if isinstance(event, TaskRestarted)]
    assert len(reasons) == 6 and all("died (exit -9)" in reason for reason in reasons)
    assert all(event.result == f"{event.arguments[1]} done" for event in came if isinstance(event, TaskDone))


def test_a_task_that_kills_every_worker_is_named(tmp_path: Path) -> None:
    todo = [(tmp_path, 1, 0), (tmp_path, 2, 100)]
    with pytest.raises(WorkerDied, match=r"shard 2: worker process \d+ died \(exit -9\)"):
        list(run_in_processes(die_at_first, todo, 2, name=lambda folder, number, deaths: f"shard {number}"))
    assert len(list(tmp_path.iterdir())) == 3


def test_a_task_s_errors() -> None:
    with pytest.raises(UserError, match="remedy: remedy"):
        list(run_in_processes(fail, [("user",)], 1))
    with pytest.raises(RuntimeError, match="ValueError: a bug"):
        list(run_in_processes(fail, [("bug",)], 1))


def test_closing_ends_all_and_lets_them_clean_up(tmp_path: Path) -> None:
    events = run_in_processes(clean_up, [(tmp_path,)] * 3, 2)
    workers = [event.value for event in itertools.islice(events, 2) if isinstance(event, TaskProgress)]
    assert len(list(tmp_path.iterdir())) == 2
    events.close()
    assert list(tmp_path.iterdir()) == []
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_worker_that_leaves_is_not_broken_into(capfd: pytest.CaptureFixture[str]) -> None:
    worker = process_pool._start(leave_slowly)
    process_pool._give(worker, ())
    assert worker.pipe.recv().value == "done"
    worker.pipe.close()
    time.sleep(1)
    worker.process.terminate()
    worker.process.join(60)
    assert worker.process.exitcode == 0
    assert "Traceback" not in capfd.readouterr().err
