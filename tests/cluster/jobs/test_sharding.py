"""Shard jobs over nodes: what no node could ever hold is refused."""

from __future__ import annotations

import pytest

from cluster.jobs.sharding import require_fitting_node
from sharding.base.errors import UserError


@pytest.mark.parametrize(("threads", "nodes"), [(4, [2, 4.0]), (1, [1]), (4, [0, 0]), (4, [])])
def test_nodes_that_hold_a_workers_threads_now_or_may_yet_join(threads: int, nodes: list[float]) -> None:
    require_fitting_node(threads, nodes)


@pytest.mark.parametrize(("nodes", "most"), [([2, 2], 2), ([0, 3.5], 3)])
def test_threads_that_no_node_has_cpus_for(nodes: list[float], most: int) -> None:
    with pytest.raises(UserError, match="no node has 4 CPUs") as refused:
        require_fitting_node(4, nodes)
    assert refused.value.where == "decoder_threads=4"
    assert refused.value.remedy == f"set decoder_threads={most} or less, or launcher=none"
