"""The nodes of a Ray cluster: which of them answer. Ray calls a node alive for a minute after its death, or longer."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T")

_PROBE_SECONDS = 20.0  # in which a node has to answer
_LOOK_SECONDS = 5.0  # between two looks at what Ray says of the nodes
_AGAIN_SECONDS = 30.0  # after which a node is asked again


class NodeProbe(Generic[T]):
    """Asks nodes, by a small task on each that calls `question()`; those that do not answer are not waited for.

    `seconds`: in which a node has to start a worker, and answer. A question that is sent by value, as a function inside
    a function is, needs nothing of ours on the node.
    """

    def __init__(self, ray: Any, question: Callable[[], T], seconds: float = _PROBE_SECONDS) -> None:
        self._ray, self._seconds = ray, seconds
        self._task = ray.remote(num_cpus=0, max_retries=0)(question)
        self._asked: dict[Any, tuple[str, float]] = {}

    def ask(self, nodes: Iterable[str]) -> None:
        """Send the question to nodes, by their ids."""
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        for node in nodes:
            on_node = NodeAffinitySchedulingStrategy(node, soft=False)
            self._asked[self._task.options(scheduling_strategy=on_node).remote()] = node, time.monotonic()

    @property
    def pending(self) -> set[str]:
        """The nodes that may still answer."""
        return {node for node, _ in self._asked.values()}

    def answers(self, timeout: float = 0.0) -> dict[str, T | None]:
        """What has come within `timeout` seconds: node → its answer; None: it did not answer in time.

        Signals are answered after at most `timeout`, as Ray's wait puts them off to its end.
        """
        references = list(self._asked)
        if not references:
            return {}
        ready, late = self._ray.wait(references, num_returns=len(references), timeout=timeout)
        answers: dict[str, T | None] = {}
        for reference in ready:
            node, _ = self._asked.pop(reference)
            try:
                answers[node] = self._ray.get(reference)
            except self._ray.exceptions.RayError:
                answers[node] = None
        for reference in late:
            node, since = self._asked[reference]
            if time.monotonic() - since > self._seconds:
                answers[node] = None
                self._drop(reference)
        return answers

    def close(self) -> None:
        """Ask no longer."""
        for reference in list(self._asked):
            self._drop(reference)

    def _drop(self, reference: Any) -> None:
        del self._asked[reference]
        self._ray.cancel(reference, force=True)


@dataclass(frozen=True)
class Nodes:
    """The nodes at a moment: of those that Ray calls alive id → address, and the ids of those that do not answer."""

    alive: Mapping[str, str]
    unresponsive: frozenset[str] = field(default_factory=frozenset)

    @cached_property
    def usable(self) -> frozenset[str]:
        """The ids of those that are alive and answer, as far as they were asked."""
        return frozenset(self.alive) - self.unresponsive


class NodeWatch:
    """Follows the nodes: what Ray says of them, and whether those that are suspected answer. Never waits."""

    def __init__(self, ray: Any) -> None:
        self._ray, self._probe = ray, NodeProbe(ray, sees("/"))
        self._here = ray.get_runtime_context().get_node_id()
        self._asked: dict[str, float] = {}  # node → when
        self._nodes = Nodes({})
        self._looked = float("-inf")

    def look(self, used: Collection[str], suspects: Collection[str]) -> Nodes:
        """The nodes now, with no delay those `used`, of which some may be new. Suspects are asked for a later look."""
        now, alive, unresponsive = time.monotonic(), self._nodes.alive, set(self._nodes.unresponsive)
        if now - self._looked > _LOOK_SECONDS or not alive.keys() >= set(used):
            self._looked = now
            alive = alive_nodes(self._ray)
        for node, answer in self._probe.answers().items():
            (unresponsive.add if answer is None else unresponsive.discard)(node)
        seen = Nodes(alive, frozenset(unresponsive & alive.keys()))
        if seen != self._nodes:  # else the same object, which many tasks hold
            self._nodes = seen
        doubtful = (seen.unresponsive | set(suspects)) & alive.keys()
        asked = [
            node
            for node in doubtful - self._probe.pending - {self._here}
            if now - self._asked.get(node, float("-inf")) > _AGAIN_SECONDS
        ]
        self._asked |= dict.fromkeys(asked, now)
        self._probe.ask(asked)
        return self._nodes

    def close(self) -> None:
        """Ask no longer."""
        self._probe.close()


def alive_nodes(ray: Any) -> dict[str, str]:
    """The nodes that Ray calls alive: id → address."""
    return {each["NodeID"]: each["NodeManagerAddress"] for each in ray.nodes() if each["Alive"]}


def sees(path: str) -> Callable[[], bool]:
    """The question to a node whether it sees a path."""

    def question() -> bool:
        return Path(path).exists()

    return question
