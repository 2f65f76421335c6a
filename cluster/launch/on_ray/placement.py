"""Which node each rank runs on: a pure function of what the nodes have free."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.launch.launch_settings import LaunchSettings


@dataclass(frozen=True)
class Node:
    """A live node of the cluster, and what it has free for ranks."""

    id: str
    address: str
    cpus: float
    gpus: float = 0.0


@dataclass(frozen=True)
class Placement:
    """The node of each rank, in the order of ranks, and the CPUs and GPUs that each of them gets."""

    nodes: tuple[Node, ...]
    cpus: float
    gpus: int

    @property
    def ranks(self) -> int:
        """The world size."""
        return len(self.nodes)


def place(nodes: Sequence[Node], launch: LaunchSettings, lanes: int) -> Placement | None:
    """The most ranks that find room and divide the lanes, from all down to the fewest; None where there is no room.

    Earlier nodes are taken first.
    """
    with_gpus = _with_gpus(nodes, launch)
    for ranks in range(launch.world_size, launch.fewest - 1, -1):
        if lanes % ranks == 0 and (placement := _place_all(nodes, launch, ranks, with_gpus)):
            return placement
    return None


def explain_capacity(nodes: Sequence[Node], launch: LaunchSettings) -> str:
    """What is asked for, and what the nodes have free, in one line."""
    each = f" with {launch.world_size // launch.nodes} ranks each" if launch.nodes else ""
    kind = "GPUs" if _with_gpus(nodes, launch) else "CPUs"
    wanted = f"{launch.nodes} nodes{each}" if launch.nodes else f"room for {launch.world_size} ranks"
    if launch.is_elastic:
        wanted += f" (at least {launch.fewest} in all)"
    free = ", ".join(
        f"{node.address} ({node.gpus if kind == 'GPUs' else node.cpus:g} {kind} free)" for node in nodes[:8]
    )
    more = f" and {len(nodes) - 8} more" if len(nodes) > 8 else ""
    return f"{wanted} wanted; the cluster has {len(nodes)} nodes: {free or 'none'}{more}"


def cpus_a_rank(nodes: Sequence[float], ranks: int) -> float:
    """The most CPUs that each rank can have at once on these nodes: a whole number, or 1/k where CPUs are few."""

    def room(cpus: float) -> int:
        return sum(int(node / cpus + 1e-6) for node in nodes)

    whole = [cpus for cpus in range(1, int(max(nodes, default=0)) + 1) if room(cpus) >= ranks]
    if whole:
        return whole[-1]
    return next((1 / share for share in range(2, ranks + 1) if room(1 / share) >= ranks), 1 / ranks)


def _with_gpus(nodes: Sequence[Node], launch: LaunchSettings) -> bool:
    """Whether ranks get a GPU each: where the settings say so, or the nodes have enough for the fewest ranks."""
    if launch.gpus_per_node is not None:
        return launch.gpus_per_node > 0
    return sum(int(node.gpus) for node in nodes) >= launch.fewest


def _place_all(nodes: Sequence[Node], launch: LaunchSettings, ranks: int, with_gpus: bool) -> Placement | None:
    a_node = launch.world_size // launch.nodes if launch.nodes else ranks
    if with_gpus:
        rooms = [min(a_node, int(node.gpus)) for node in nodes]
        cpus = 1.0
    else:
        cpus = _cpus(nodes, launch, ranks, a_node)
        rooms = [min(a_node, int(node.cpus / cpus + 1e-6)) for node in nodes]
    seats = [node for node, room in zip(nodes, rooms, strict=True) for _ in range(room)][:ranks]
    if len(seats) < ranks:
        return None
    if with_gpus:
        cpus = min(1.0, *(node.cpus / seats.count(node) for node in seats))
    return Placement(tuple(seats), cpus, int(with_gpus))


def _cpus(nodes: Sequence[Node], launch: LaunchSettings, ranks: int, a_node: int) -> float:
    """The CPUs of a rank. Less than a whole one only where no other number of ranks is wanted, and room is named."""
    if launch.cpus_per_rank:
        return float(launch.cpus_per_rank)
    free = [node.cpus for node in nodes]
    if not launch.nodes:
        cpus = cpus_a_rank(free, ranks)
        return cpus if cpus >= 1 or not launch.is_elastic else 1.0
    used = sorted(free, reverse=True)[: -(-ranks // a_node)]
    least = min(used, default=0.0)
    return float(int(least / a_node)) or cpus_a_rank([least], a_node)
