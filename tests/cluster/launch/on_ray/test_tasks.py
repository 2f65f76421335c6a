"""Tasks over Ray's nodes: which are given to another, and that each result is counted once whatever is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.launch.on_ray import tasks as ray_tasks
from cluster.launch.on_ray.cluster import ray_cluster
from cluster.launch.on_ray.nodes import Nodes, NodeWatch
from cluster.launch.on_ray.tasks import Attempt, RayTasks, lost, suspects
from cluster.launch.process_pool import TaskDone, TaskProgress, TaskRestarted, WorkerDied
from sharding.base.errors import UserError
from tests.support.commands import ROOT

BOTH = Nodes({"a": "10.0.0.1", "b": "10.0.0.2"})
NO_A = Nodes({"b": "10.0.0.2"})
A_SILENT = Nodes(BOTH.alive, frozenset("a"))


def attempt(node: str | None, heard: float = 0.0, avoided: str = "", usable: str = "ab") -> Attempt[tuple[int]]:
    return Attempt((1,), 1, frozenset(usable), frozenset(avoided), heard, 15.0, node)


@pytest.mark.parametrize(
    ("task", "nodes", "now", "reason"),
    [
        (attempt("a"), BOTH, 14.0, ""),
        (attempt("a"), BOTH, 299.0, ""),  # its node answers: it may be slow
        (attempt("a"), BOTH, 301.0, "its process on 10.0.0.1 hangs"),
        (attempt("a"), NO_A, 1.0, "its node is dead, or cannot be reached"),
        (attempt("b"), NO_A, 14.0, ""),
        (attempt("a"), A_SILENT, 16.0, "its node 10.0.0.1 does not answer"),
        (attempt("a", heard=10.0), A_SILENT, 16.0, ""),  # it beats, whatever a question met
        (attempt("b"), A_SILENT, 16.0, ""),
    ],
)
def test_a_task_that_has_begun_is_lost_with_its_node_or_process(
    task: Attempt[Any], nodes: Nodes, now: float, reason: str
) -> None:
    assert lost({7: task}, nodes, now) == ({7: reason} if reason else {})


@pytest.mark.parametrize(
    ("task", "nodes", "again"),
    [
        (attempt(None), BOTH, False),  # it waits for room, for however long
        (attempt(None), Nodes({**BOTH.alive, "c": "10.0.0.3"}), False),
        (attempt(None), NO_A, True),
        (attempt(None), A_SILENT, True),
        (attempt(None, avoided="a", usable="b"), A_SILENT, False),
        (attempt(None, avoided="a", usable="b"), BOTH, True),  # it answers again
        (attempt(None, avoided="a", usable="b"), NO_A, False),
    ],
)
def test_a_task_that_waits_is_given_anew_when_nodes_go_or_come_back(
    task: Attempt[Any], nodes: Nodes, again: bool
) -> None:
    assert lost({7: task}, nodes, 10_000.0) == ({7: None} if again else {})


def test_the_nodes_of_silent_tasks_are_asked() -> None:
    tasks = [attempt("a", heard=80.0), attempt("b", heard=90.0), attempt(None)]
    assert suspects(tasks, 100.0) == {"a"} and suspects(tasks, 95.0) == set()


class RayWithNodes:
    """What `NodeWatch` asks of Ray; `names` are the nodes that live."""

    def __init__(self, names: str) -> None:
        self.names = names
        self.get_runtime_context = lambda: SimpleNamespace(get_node_id=lambda: "here")
        self.remote = lambda **options: lambda function: function

    def nodes(self) -> list[dict[str, Any]]:
        return [{"NodeID": name, "NodeManagerAddress": name.upper(), "Alive": name in self.names} for name in "abc"]


def test_a_node_that_has_just_joined_is_not_taken_for_dead() -> None:
    ray = RayWithNodes("ab")
    watch = NodeWatch(ray)
    first = watch.look({"a"}, ())
    ray.names = "bc"
    assert watch.look({"b"}, ()) is first  # what Ray says is looked at every few seconds
    assert watch.look({"c"}, ()) == Nodes({"b": "B", "c": "C"})


@pytest.fixture()
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beats come often, and a task is silent, and a process hung, after short whiles."""
    for name, value in {"_BEAT_SECONDS": 0.5, "_HUNG_SECONDS": 5.0, "_LOOK_SECONDS": 0.2}.items():
        monkeypatch.setattr(ray_tasks, name, value)


def named(folder: Path, number: int) -> str:
    return f"piece {number}"


def counting(folder: Path, number: int, tell: Callable[[int], object]) -> int:
    """Leaves its pid in `folder`, then waits for a file `go`, telling how often it has looked."""
    (folder / f"{number}-{os.getpid()}").touch()
    looks = 0
    while not (folder / "go").exists():
        looks += 1
        tell(looks)
        time.sleep(0.1)
    return number


def pids(folder: Path, number: int = 1) -> list[int]:
    return [int(path.name.partition("-")[2]) for path in folder.glob(f"{number}-*")]


def follow(events: Generator[Any], until: Callable[[], Any]) -> list[Any]:
    """The events until the condition holds."""
    seen, deadline = [], time.monotonic() + 200
    for event in events:
        seen += [event] if event else []
        if until():
            return seen
        assert time.monotonic() < deadline, seen
    raise AssertionError(f"ended before it: {seen}")


pytestmark = pytest.mark.timeout(600)


@contextmanager
def two_nodes(folder: Path) -> Iterator[tuple[str, Callable[[str], None]]]:
    """The address of a cluster of two nodes with a CPU each, and how to `freeze` and `thaw` the first of them."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    process = subprocess.Popen(
        [sys.executable, "-c", _CLUSTER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=folder,
        env=variables | {"PYTHONPATH": str(ROOT), "RAY_AUTH_MODE": "disabled"}, start_new_session=True,
    )  # fmt: skip
    assert process.stdin and process.stdout
    stdin, stdout = process.stdin, process.stdout

    def order(word: str) -> None:
        stdin.write(f"{word}\n")
        stdin.flush()
        assert stdout.readline() == f"{word}\n"

    try:
        yield stdout.readline().strip(), order
    finally:
        stdin.close()
        process.wait(timeout=60)


_CLUSTER = """
import signal, sys
import psutil
from ray.cluster_utils import Cluster

cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
node, _ = cluster.add_node(num_cpus=1), cluster.add_node(num_cpus=1)
print(cluster.address, flush=True)
for line in sys.stdin:
    roots = [psutil.Process(each.process.pid) for group in node.all_processes.values() for each in group]
    for process in [each for root in roots for each in (root, *root.children(recursive=True))]:
        process.send_signal(signal.SIGSTOP if line == "freeze\\n" else signal.SIGCONT)
    print(line.strip(), flush=True)
cluster.shutdown()
"""


@pytest.mark.slow
@pytest.mark.cluster
def test_a_node_that_hangs_and_goes_on(hurried: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its task is given to the other node long before Ray calls it dead; what it still does counts for nothing."""
    monkeypatch.setattr(ray_tasks, "_HUNG_SECONDS", 1000.0)
    with two_nodes(tmp_path) as (address, order):
        monkeypatch.setenv("RAY_ADDRESS", address)
        monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
        with ray_cluster() as ray:
            tasks = RayTasks[tuple[Path, int]](ray, counting, named)
            with closing(tasks.run([(tmp_path, 1), (tmp_path, 2)], lambda: 2)) as events:
                follow(events, lambda: len([each for each in tasks.running if each.node]) == 2)
                order("freeze")
                seen = follow(events, lambda: any(each.tries > 1 for each in tasks.running))
                order("thaw")
                (tmp_path / "go").touch()
                seen += [event for event in events if event]
    (again,) = [event for event in seen if isinstance(event, TaskRestarted)]
    assert "does not answer" in again.reason
    assert sorted(event.result for event in seen if isinstance(event, TaskDone)) == [1, 2]


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """This process' connection to a cluster of one node, which the tests from here on share."""
    with ray_cluster() as module:
        yield module


@pytest.mark.slow
@pytest.mark.cluster
def test_slow_tasks_and_tasks_that_wait_for_room_are_left_alone(ray: Any, hurried: None, tmp_path: Path) -> None:
    """More tasks than CPUs, slower than any limit; the board, which is on the command's node, dies and begins anew."""
    tasks = RayTasks[tuple[Path, int]](ray, counting, named)
    with closing(tasks.run(((tmp_path, number) for number in range(1, 6)), lambda: 5)) as events:
        seen = follow(events, lambda: pids(tmp_path))
        ray.kill(tasks._board, no_restart=False)
        end = time.monotonic() + 10  # twice what a process that hangs has
        seen += follow(events, lambda: time.monotonic() > end)
        last = follow(events, lambda: time.monotonic() > end + 2)
        assert [event for event in last if isinstance(event, TaskProgress)]
        (tmp_path / "go").touch()
        seen += [event for event in events if event]
    assert not [event for event in seen if isinstance(event, TaskRestarted)]
    assert sorted(event.result for event in seen if isinstance(event, TaskDone)) == [1, 2, 3, 4, 5]
    assert len(list(tmp_path.glob("?-*"))) == 5


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGSTOP])
def test_a_process_that_dies_or_hangs_is_replaced(ray: Any, hurried: None, tmp_path: Path, sent: int) -> None:
    tasks = RayTasks[tuple[Path, int]](ray, counting, named, cpus=0.25)
    with closing(tasks.run([(tmp_path, 1)], lambda: 1)) as events:
        follow(events, lambda: pids(tmp_path))
        (first,) = pids(tmp_path)
        follow(events, lambda: tasks.running and all(each.node for each in tasks.running))
        os.kill(first, sent)
        seen = follow(events, lambda: len(pids(tmp_path)) == 2)
        (tmp_path / "go").touch()
        seen += [event for event in events if event]
    (again,) = [event for event in seen if isinstance(event, TaskRestarted)]
    assert again.reason.startswith("its worker is gone (" if sent == signal.SIGKILL else "its process on ")
    assert [event.result for event in seen if isinstance(event, TaskDone)] == [1]


@pytest.mark.slow
@pytest.mark.cluster
def test_a_task_that_is_lost_three_times_ends_the_command(ray: Any, hurried: None, tmp_path: Path) -> None:
    def dies(folder: Path, number: int, tell: Callable[[int], object]) -> None:
        (folder / f"{number}-{os.getpid()}").touch()
        os.kill(os.getpid(), signal.SIGKILL)

    tasks = RayTasks[tuple[Path, int]](ray, dies, named, cpus=0.25)
    with pytest.raises(WorkerDied, match=r"piece 1: its worker is gone \(WorkerCrashedError\); it was lost 3 times"):
        list(tasks.run([(tmp_path, 1)], lambda: 1))
    assert len(pids(tmp_path)) == 3


@pytest.mark.slow
@pytest.mark.cluster
def test_a_mistake_is_not_tried_again_and_some_errors_are(ray: Any, tmp_path: Path) -> None:
    def fails(folder: Path, number: int, tell: Callable[[int], object]) -> None:
        (folder / f"{number}-{time.monotonic_ns()}").touch()
        raise OSError("a cable") if number == 2 else UserError("a", "b", "c")

    tasks = RayTasks[tuple[Path, int]](ray, fails, named, cpus=0.25, retried=(OSError,))
    with pytest.raises(UserError, match="a\n"):
        list(tasks.run([(tmp_path, 1)], lambda: 1))
    with pytest.raises(WorkerDied, match="a cable"):
        list(tasks.run([(tmp_path, 2)], lambda: 1))
    assert (len(pids(tmp_path, 1)), len(pids(tmp_path, 2))) == (1, 3)
