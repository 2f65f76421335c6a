"""Room for ranks on a Ray cluster: what its nodes have free, waiting for it, and giving it back."""

from __future__ import annotations

import importlib
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.launch.launch_settings import LaunchSettings
from cluster.launch.on_ray.nodes import NodeProbe, sees
from cluster.launch.on_ray.placement import Node, Placement, explain_capacity, place
from cluster.launch.signals import StopRequests
from sharding.base.errors import CommandFailed, UserError

_LOOK_SECONDS = 1.0
_FIRST_SAY_SECONDS, _SAY_SECONDS = 3.0, 30.0
_UNRESPONSIVE_SECONDS = 30.0  # for which a node that did not answer is not asked again
_FREED_SECONDS = 10.0


class Capacity:
    """The nodes of a cluster, as far as they have room for a run's ranks."""

    def __init__(self, ray: Any, launch: LaunchSettings, lanes: int, requests: StopRequests) -> None:
        self._ray, self._launch, self._lanes, self._requests = ray, launch, lanes, requests
        self._here = ray.get_runtime_context().get_node_id()
        self._unresponsive: dict[str, float] = {}  # nodes that did not answer, and when
        self._since = time.monotonic()  # when ranks last trained, or the run began to look for room

    @contextmanager
    def asked_for(self) -> Iterator[None]:
        """Inside the `with`, a cluster that grows by itself is asked for all ranks; others take no notice.

        Ray keeps such a request until another takes its place, also after the command.
        """
        from ray.autoscaler.sdk import request_resources

        each = {"GPU": 1} if self._launch.gpus_per_node else {"CPU": 1}
        request_resources(bundles=[each] * self._launch.world_size)
        try:
            yield
        finally:
            request_resources(bundles=[])

    def look(self, own: Placement | None = None) -> Placement | None:
        """Where ranks would find room now, with what those of `own` have; None without room."""
        return place(self._nodes(own), self._launch, self._lanes)

    def wait(self) -> Placement | None:
        """Where the ranks find room, once they do; None where a signal came first. It says what it waits for.

        Raises CommandFailed after `placement_timeout_seconds`.
        """
        began = said = time.monotonic()
        while not self._requests.asked:
            if (placement := self.look()) and not self.unresponsive_nodes(placement):
                return None if self._requests.asked else placement
            waited = time.monotonic() - self._since
            if waited > self._launch.placement_timeout_seconds:
                what = explain_capacity(self._nodes(), self._launch)
                raise CommandFailed(
                    f"no room for the ranks after {waited:.0f} s: {what}; placement_timeout_seconds waits longer"
                )
            if time.monotonic() - said > (_SAY_SECONDS if said > began else _FIRST_SAY_SECONDS):
                said = time.monotonic()
                left = self._launch.placement_timeout_seconds - waited
                print(
                    f"waiting for room: {explain_capacity(self._nodes(), self._launch)}; {left:.0f} s left", flush=True
                )
            time.sleep(_LOOK_SECONDS)
        return None

    def unresponsive_nodes(self, placement: Placement) -> list[Node]:
        """Those that do not answer, and are left out for a while: Ray calls a node alive for long after its death.

        None where a signal comes meanwhile.
        """
        others = [node for node in dict.fromkeys(placement.nodes) if node.id != self._here]
        unresponsive = [node for node, sees in self._probe(others, "/") if sees is None] if others else []
        if self._requests.asked:
            return []
        self._unresponsive |= {node.id: time.monotonic() for node in unresponsive}
        return unresponsive

    def describe(self, placement: Placement) -> str:
        """The ranks that are to start, in one line; with the reason, where they are fewer than all."""
        hosts = list(dict.fromkeys(node.address for node in placement.nodes))
        named = ", ".join(hosts[:8]) + (f" and {len(hosts) - 8} more" if len(hosts) > 8 else "")
        line = f"{placement.ranks} ranks on {named}"
        if placement.ranks < self._launch.world_size:
            line += f" of {self._launch.world_size}: the most that have room and divide {self._lanes} lanes"
        return line

    def groups(self) -> set[str]:
        """The ids of the cluster's placement groups, by which ranks hold what they have."""
        table = self._ray.util.placement_group_table()
        return {group for group, its in table.items() if its["state"] != "REMOVED"}

    def wait_until_freed(self, others: set[str]) -> None:
        """Wait until no placement groups but `others` are left, at most for seconds.

        An attempt gives back what it had when its controller has ended, and so before the next one counts what is free.
        """
        end = time.monotonic() + _FREED_SECONDS
        while self.groups() - others and time.monotonic() < end:
            time.sleep(0.2)

    def restart_timeout(self) -> None:
        """Say that ranks have trained: from now on they may wait for room again."""
        self._since = time.monotonic()

    def require_common_folder(self, placement: Placement, folder: Path, store: str | None) -> None:
        """Raises UserError where the nodes see different disks at the run's folder, and no store has checkpoints."""
        others = [node for node in dict.fromkeys(placement.nodes) if node.id != self._here]
        if store or not others:
            return
        mark = folder / f".seen-{uuid.uuid4().hex}"
        mark.touch()
        try:
            blind = [node.address for node, sees in self._probe(others, str(mark)) if sees is False]
        finally:
            mark.unlink(missing_ok=True)
        if blind:
            raise UserError(
                f"the nodes do not share the run's folder ({', '.join(blind[:4])} do not see it), so that no other "
                "could go on from a checkpoint",
                f"run={folder}",
                "set checkpoint.store=s3://BUCKET/PREFIX, or run= to a folder on a disk that all nodes share",
            )

    def _nodes(self, own: Placement | None = None) -> list[Node]:
        """The live nodes with what they have free, the command's own first, for its disk has the run's folder."""
        state: Any = importlib.import_module("ray._private.state")  # a DeveloperAPI of Ray 2.59 and 2.60
        free = state.available_resources_per_node()
        unresponsive = {
            node for node, when in self._unresponsive.items() if time.monotonic() - when < _UNRESPONSIVE_SECONDS
        }
        nodes = [
            _node(each, free.get(each["NodeID"], {}), own)
            for each in self._ray.nodes()
            if each["Alive"] and each["NodeID"] not in unresponsive
        ]
        return sorted(nodes, key=lambda node: (node.id != self._here, node.address))

    def _probe(self, nodes: Sequence[Node], path: str) -> list[tuple[Node, bool | None]]:
        """For each node whether it sees a path; None where it does not answer in time, or before a signal."""
        probe, answers = NodeProbe(self._ray, sees(path)), dict[str, bool | None]()
        probe.ask(node.id for node in nodes)
        while probe.pending and not self._requests.asked:
            answers |= probe.answers(_LOOK_SECONDS)
        probe.close()
        return [(node, answers.get(node.id)) for node in nodes]


def _node(each: dict[str, Any], free: dict[str, float], own: Placement | None) -> Node:
    ours = sum(node.id == each["NodeID"] for node in own.nodes) if own else 0
    cpus = free.get("CPU", 0.0) + (ours * own.cpus if own else 0.0)
    gpus = free.get("GPU", 0.0) + (ours * own.gpus if own else 0.0)
    return Node(each["NodeID"], each["NodeManagerAddress"], cpus, gpus)
