"""Tasks over a Ray cluster's nodes; one whose process or node is lost is given to another.

Ray says so itself of a process or node that is killed. Of a node that hangs or is cut off it tells the task nothing for
minutes, so each task says every few seconds that it lives, and on which node; a node whose tasks are silent is asked.
What comes of a task that was given up, when its node goes on, is left unread.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any, Generic, TypeVar

from cluster.launch.on_ray.cluster import actor_here, is_gone, result_of
from cluster.launch.on_ray.credentials import StoreCredentials
from cluster.launch.on_ray.nodes import Nodes, NodeWatch
from cluster.launch.process_pool import TaskDone, TaskProgress, TaskRestarted, WorkerDied
from cluster.launch.signals import raise_if_interrupted

A = TypeVar("A", bound=tuple[Any, ...])
K = TypeVar("K", bound=Hashable)

_TRIES = 3  # of a task whose process or node is lost
_LOOK_SECONDS = 1.0
_ROOM_SECONDS = 10.0  # between two looks at how many tasks have room: a cluster may grow
_BOARD_SECONDS = 5.0
_BEAT_SECONDS = 5.0  # between two beats of a task; longer where there are more tasks than
_BEATS_A_SECOND = 100
_SILENT_BEATS = 3  # in whose time no beat came: the task's node is asked
_HUNG_SECONDS = 300.0  # without a beat, though the node answers


@dataclass
class Attempt(Generic[A]):
    """A task that Ray has, as the command sees it; `node`: where it has begun, None while it has not.

    `usable`, `avoided`: the nodes that it could be given to when Ray got it, and those that it may not be given to.
    `heard`: when it was last heard of (monotonic seconds); it is `silent_after` more.
    """

    arguments: A
    tries: int
    usable: frozenset[str]
    avoided: frozenset[str]
    heard: float
    silent_after: float
    node: str | None = None


def suspects(attempts: Iterable[Attempt[Any]], now: float) -> set[str]:
    """The nodes of tasks that have begun and are silent."""
    return {each.node for each in attempts if each.node and now - each.heard > each.silent_after}


def lost(attempts: Mapping[K, Attempt[Any]], nodes: Nodes, now: float) -> dict[K, str | None]:
    """The tasks to be given to Ray anew, each with the reason in words; None for one that had not begun.

    A task that waits for room is given anew where a node that it may have been promised has gone, and where a node
    that it may not be given to answers again. A silent one on a node that answers has 300 s: it may only be slow.
    """
    reasons = {key: _loss(attempt, nodes, now) for key, attempt in attempts.items() if attempt.node}
    waiting = {key: attempt for key, attempt in attempts.items() if not attempt.node}
    unsure = (key for key, each in waiting.items() if each.usable - nodes.usable or each.avoided & nodes.usable)
    return {key: reason for key, reason in reasons.items() if reason} | dict.fromkeys(unsure)


def _loss(attempt: Attempt[Any], nodes: Nodes, now: float) -> str | None:
    assert attempt.node
    silence = now - attempt.heard
    address = nodes.alive.get(attempt.node)
    if address is None:
        return "its node is dead, or cannot be reached"
    if attempt.node in nodes.unresponsive and silence > attempt.silent_after:
        return f"its node {address} does not answer"
    if silence > max(_HUNG_SECONDS, attempt.silent_after):
        return f"its process on {address} hangs"
    return None


class RayTasks(Generic[A]):
    """Calls `function(*arguments, tell)` as Ray tasks; `name(*arguments)` names one, also in `ps`.

    `retried`: errors of the function itself after which it is tried again, as after a loss.
    """

    def __init__(
        self,
        ray: Any,
        function: Callable[..., Any],
        name: Callable[..., str],
        cpus: float = 1,
        gpus: float = 0,
        retried: tuple[type[Exception], ...] = (),
    ) -> None:
        self._ray, self._name, self._retried = ray, name, retried
        # As bytes, for what it imports may take a worker longer than anything else: it beats meanwhile.
        self._function: bytes = ray.cloudpickle.dumps(function)
        # Processes are kept, also those with a GPU, for what they hold serves their next task.
        self._task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, max_calls=0)(_run)
        self._board, self._credentials = actor_here(ray, Board), StoreCredentials.of_this_process()
        self._watch = NodeWatch(ray)
        self._numbers = count()
        self._running: dict[int, Attempt[A]] = {}
        self._references: dict[Any, int] = {}
        self._again: deque[tuple[A, int]] = deque()

    @property
    def running(self) -> list[Attempt[A]]:
        """The tasks that Ray has now."""
        return list(self._running.values())

    def run(
        self, todo: Iterable[A], room: Callable[[], int]
    ) -> Generator[TaskProgress[A] | TaskDone[A] | TaskRestarted[A] | None]:
        """Progress and results as they come, at most `room()` tasks at a time; None now and then while all are silent.

        `tell(value)` sends a TaskProgress at once. `todo` is read as there is room. A task that is lost begins anew
        after a TaskRestarted; raises WorkerDied once it was lost three times, and a task's own error as it was raised.
        """
        waiting, nodes, places = iter(todo), Nodes({}), 0
        looked = counted = float("-inf")
        try:
            while True:
                raise_if_interrupted()
                if time.monotonic() - looked > _LOOK_SECONDS:
                    looked = time.monotonic()
                    yield from self._progress()
                    used = {each.node for each in self.running if each.node}
                    nodes = self._watch.look(used, suspects(self.running, time.monotonic()))
                    yield from self._give_up(nodes)
                if time.monotonic() - counted > _ROOM_SECONDS:
                    places, counted = room(), time.monotonic()
                while len(self._running) < places and (following := self._next(waiting)):
                    self._submit(*following, nodes, places)
                if not self._running:
                    return
                ready, _ = self._ray.wait(list(self._references), num_returns=1, timeout=_LOOK_SECONDS)
                for reference in ready:
                    yield self._ended(reference)
                yield None
        finally:
            self._watch.close()

    def _next(self, waiting: Iterator[A]) -> tuple[A, int] | None:
        if self._again:
            return self._again.popleft()
        arguments = next(waiting, None)
        return None if arguments is None else (arguments, 1)

    def _submit(self, arguments: A, tries: int, nodes: Nodes, places: int) -> None:
        every = max(_BEAT_SECONDS, places / _BEATS_A_SECOND)
        options: dict[str, Any] = {"name": self._name(*arguments)}
        if nodes.unresponsive:
            options["label_selector"] = {"ray.io/node-id": f"!in({', '.join(sorted(nodes.unresponsive))})"}
        number = next(self._numbers)
        sent = (self._credentials, self._board, number, every, self._function, arguments)
        self._references[self._task.options(**options).remote(*sent)] = number
        now = time.monotonic()
        silent_after = _SILENT_BEATS * every
        self._running[number] = Attempt(arguments, tries, nodes.usable, nodes.unresponsive, now, silent_after)

    def _give_up(self, nodes: Nodes) -> Generator[TaskRestarted[A]]:
        """Take back what is lost, to be given to Ray anew."""
        losses = lost(self._running, nodes, time.monotonic())
        for reference in [each for each, number in self._references.items() if number in losses]:
            number = self._references.pop(reference)
            attempt, reason = self._running.pop(number), losses[number]
            self._ray.cancel(reference, force=True)
            if reason is None:
                self._again.append((attempt.arguments, attempt.tries))
            else:
                yield self._retry(attempt, reason)

    def _retry(self, attempt: Attempt[A], reason: str) -> TaskRestarted[A]:
        if attempt.tries == _TRIES:
            raise WorkerDied(f"{self._name(*attempt.arguments)}: {reason}; it was lost {_TRIES} times")
        self._again.append((attempt.arguments, attempt.tries + 1))
        return TaskRestarted(attempt.arguments, reason)

    def _progress(self) -> Generator[TaskProgress[A]]:
        """What running tasks have told since the last call; nothing while the board is away."""
        try:
            nodes, values = self._ray.get(self._board.take.remote(), timeout=_BOARD_SECONDS)
        except self._ray.exceptions.RayError:
            for attempt in self.running:  # nobody can say that they are silent
                attempt.heard = time.monotonic()
            return
        for number in nodes.keys() & self._running.keys():  # others were given up, or have ended
            self._running[number].heard, self._running[number].node = time.monotonic(), nodes[number]
        for number in values.keys() & self._running.keys():
            yield TaskProgress(self._running[number].arguments, values[number])

    def _ended(self, reference: Any) -> TaskDone[A] | TaskRestarted[A]:
        attempt = self._running.pop(self._references.pop(reference))
        try:
            return TaskDone(attempt.arguments, result_of(self._ray, reference))
        except Exception as error:
            if isinstance(error, self._retried):
                return self._retry(attempt, f"its worker is gone ({error})")
            if not is_gone(self._ray, error):
                raise
            return self._retry(attempt, f"its worker is gone ({type(error).__name__})")


class Board:
    """An actor on the command's node that keeps the last word of each task until the command takes it."""

    def __init__(self) -> None:
        self._nodes: dict[int, str] = {}
        self._values: dict[int, Any] = {}

    def beat(self, task: int, node: str) -> None:
        """Keep that a task lives, and on which node."""
        self._nodes[task] = node

    def tell(self, task: int, value: Any) -> None:
        """Keep a task's progress."""
        self._values[task] = value

    def take(self) -> tuple[dict[int, str], dict[int, Any]]:
        """The node of each task that has beaten since the last call, and the progress of each that has told some."""
        taken = self._nodes, self._values
        self._nodes, self._values = {}, {}
        return taken


def _run(
    credentials: StoreCredentials,
    board: Any,
    number: int,
    every: float,
    function: bytes,
    arguments: tuple[Any, ...],
) -> Any:
    """The call of a task, in a worker process."""
    import ray

    credentials.adopt()
    node = ray.get_runtime_context().get_node_id()
    with _beating(lambda: board.beat.remote(number, node), every):
        call = ray.cloudpickle.loads(function)
        return call(*arguments, partial(board.tell.remote, number))


@contextmanager
def _beating(beat: Callable[[], object], every: float) -> Iterator[None]:
    """Inside the `with` a thread calls `beat`, at once and every so many seconds."""
    over = threading.Event()

    def carry() -> None:
        beat()
        while not over.wait(every):
            beat()

    thread = threading.Thread(target=carry, name="beats", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
