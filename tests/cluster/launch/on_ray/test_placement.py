"""Where ranks run: on live nodes with room, as many as divide the lanes, and no fewer than wanted."""

from __future__ import annotations

from collections import Counter

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.launch.launch_settings import LaunchSettings, require_this_machine
from cluster.launch.on_ray.placement import Node, cpus_a_rank, explain_capacity, place
from sharding.base.errors import UserError


def nodes(*cpus: float, gpus: float = 0.0) -> list[Node]:
    return [Node(f"id{n}", f"10.0.0.{n}", each, gpus) for n, each in enumerate(cpus)]


def seats(placement: object) -> list[int]:
    """Ranks on each node."""
    return list(Counter(node.id for node in placement.nodes).values())  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("free", "ranks", "cpus"),
    [
        ([8], 1, 8),
        ([8], 2, 4),
        ([8], 3, 2),
        ([1], 2, 0.5),
        ([1], 3, 1 / 3),
        ([8, 8], 2, 8),
        ([8, 8], 3, 4),
        ([8, 0], 2, 4),
        ([1, 1], 3, 0.5),
        ([0.5], 1, 1),
        ([], 2, 0.5),
    ],
)
def test_every_rank_finds_its_cpus(free: list[float], ranks: int, cpus: float) -> None:
    assert cpus_a_rank(free, ranks) == pytest.approx(cpus)


def test_as_many_ranks_on_each_node() -> None:
    placed = place(nodes(4, 4, 4), LaunchSettings(nodes=2, ranks=4), 8)
    assert placed and seats(placed) == [2, 2] and placed.cpus == 2 and placed.gpus == 0


def test_nodes_alone_mean_a_rank_each_and_gpus_one_for_each() -> None:
    assert LaunchSettings(nodes=3).world_size == 3
    launch = LaunchSettings(nodes=2, gpus_per_node=8)
    placed = place(nodes(64, 64, gpus=8), launch, 64)
    assert placed and seats(placed) == [8, 8] and placed.gpus == 1 and placed.cpus == 1
    assert place(nodes(64, 64, gpus=7), launch, 64) is None


def test_gpus_are_taken_where_there_are_enough_and_left_where_the_settings_say_so() -> None:
    free = nodes(8, gpus=2)
    taken, left = place(free, LaunchSettings(ranks=2), 4), place(free, LaunchSettings(ranks=2, gpus_per_node=0), 4)
    assert taken and left and (taken.gpus, left.gpus) == (1, 0) and left.cpus == 4


def test_a_node_lost_leaves_the_most_that_divide_the_lanes() -> None:
    """Seven nodes of eight ranks have room for 56, and 64 lanes spread over 32 of them: four nodes."""
    launch = LaunchSettings(nodes=8, gpus_per_node=8, min_ranks=8)
    placed = place(nodes(*[64] * 7, gpus=8), launch, 64)
    assert placed and placed.ranks == 32 and seats(placed) == [8] * 4
    assert place(nodes(64, gpus=7), launch, 64) is None


def test_without_min_ranks_all_are_waited_for() -> None:
    launch = LaunchSettings(nodes=3)
    assert place(nodes(1, 1), launch, 6) is None
    assert explain_capacity(nodes(1, 1), launch) == (
        "3 nodes with 1 ranks each wanted; the cluster has 2 nodes: 10.0.0.0 (1 CPUs free), 10.0.0.1 (1 CPUs free)"
    )
    assert "none" in explain_capacity([], launch)


def test_an_elastic_run_takes_whole_cpus_and_no_shares_of_them() -> None:
    """Else the two CPUs that are left would do for any number of ranks."""
    placed = place(nodes(1, 1), LaunchSettings(ranks=4, min_ranks=1), 4)
    assert placed and placed.ranks == 2 and placed.cpus == 1
    shared = place(nodes(1), LaunchSettings(ranks=4), 4)
    assert shared and shared.ranks == 4 and shared.cpus == 0.25


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), max_size=6),
    st.integers(1, 12), st.integers(1, 24), st.integers(1, 12), st.sampled_from([None, 1, 2, 3]), st.booleans(),
)  # fmt: skip
def test_no_node_gives_more_than_it_has(
    free: list[tuple[int, int]], ranks: int, lanes: int, fewest: int, count: int | None, elastic: bool
) -> None:
    if count and ranks % count:
        return
    launch = LaunchSettings(ranks=ranks, nodes=count, min_ranks=min(fewest, ranks) if elastic else None)
    cluster = [Node(str(n), str(n), cpus, gpus) for n, (cpus, gpus) in enumerate(free)]
    placed = place(cluster, launch, lanes)
    if placed is None:
        return
    assert launch.fewest <= placed.ranks <= ranks and lanes % placed.ranks == 0
    for node, seated in Counter(placed.nodes).items():
        assert seated * placed.cpus <= node.cpus + 1e-6 and seated * placed.gpus <= node.gpus
        assert not count or seated <= ranks // count


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"ranks": 3, "nodes": 2}, "do not spread evenly"),
        ({"ranks": 2, "min_ranks": 3}, "more than all 2 ranks"),
        ({"ranks": 8, "nodes": 2, "gpus_per_node": 2}, "more than the GPUs"),
    ],
)
def test_what_cannot_be_is_refused(settings: dict[str, int], words: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=words):
        LaunchSettings(**settings)  # type: ignore[arg-type]


def test_without_ray_there_is_one_node() -> None:
    require_this_machine(LaunchSettings(nodes=1))
    with pytest.raises(UserError, match="on this machine alone"):
        require_this_machine(LaunchSettings(nodes=2))
