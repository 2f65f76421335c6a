"""How the processes of a training run are started, and started again: on this machine, or on the nodes of a cluster."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from cluster.launch.choose import Launcher
from sharding.base.errors import UserError
from sharding.base.settings import Seconds, Settings, unit


class LaunchSettings(Settings):
    """How the processes of a training run are started, and started again."""

    launcher: Launcher = "auto"
    ranks: Annotated[
        int | None,
        Field(
            json_schema_extra=unit("processes"),
            ge=1,
            le=2**16,
            description="training processes; each runs lanes / ranks lanes. Left out: one on each of nodes, or for "
            "each of their gpus_per_node",
        ),
    ] = None
    nodes: Annotated[
        int | None,
        Field(
            json_schema_extra=unit("nodes"),
            ge=1,
            le=2**16,
            description="nodes of the Ray cluster, each with as many ranks. Left out: as the ranks find room",
        ),
    ] = None
    gpus_per_node: Annotated[
        int | None,
        Field(
            json_schema_extra=unit("GPUs"),
            ge=0,
            le=64,
            description="GPUs of each node, one for a rank; 0: none. Left out: GPUs where the cluster has enough",
        ),
    ] = None
    cpus_per_rank: Annotated[
        int | None,
        Field(
            json_schema_extra=unit("CPUs"),
            ge=1,
            le=1024,
            description="CPUs of Ray that each rank takes where it has no GPU, so that other runs find room beside it. "
            "Left out: as many as there are for all",
        ),
    ] = None
    min_ranks: Annotated[
        int | None,
        Field(
            json_schema_extra=unit("processes"),
            ge=1,
            le=2**16,
            description="fewest ranks that a run on Ray goes on with when nodes are lost, and the most again when they "
            "come back. Left out: it waits for all ranks",
        ),
    ] = None
    resize_seconds: Annotated[
        Seconds, Field(description="seconds between two looks for room for more ranks, where min_ranks is set")
    ] = 60.0
    placement_timeout_seconds: Annotated[
        Seconds, Field(description="seconds that a run on Ray waits for nodes with room for its ranks")
    ] = 1800.0
    retries: Annotated[
        int,
        Field(
            json_schema_extra=unit("restarts"),
            ge=0,
            le=1000,
            description="restarts in a row that Ray may make without a new checkpoint",
        ),
    ] = 3

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.ranks is not None and self.ranks % (self.nodes or 1):
            raise ValueError(f"ranks={self.ranks} do not spread evenly over nodes={self.nodes}")
        if self.nodes and self.gpus_per_node and self.world_size > self.nodes * self.gpus_per_node:
            raise ValueError(
                f"ranks={self.ranks} are more than the GPUs of nodes={self.nodes}, gpus_per_node={self.gpus_per_node}"
            )
        if self.min_ranks is not None and self.min_ranks > self.world_size:
            raise ValueError(f"min_ranks={self.min_ranks} are more than all {self.world_size} ranks")
        return self

    @property
    def world_size(self) -> int:
        """The number of ranks, where all find room."""
        return self.ranks or (self.nodes or 1) * (self.gpus_per_node or 1)

    @property
    def fewest(self) -> int:
        """The fewest ranks that a run goes on with."""
        return self.min_ranks or self.world_size

    @property
    def is_elastic(self) -> bool:
        """Whether a run goes on with fewer ranks when nodes are lost."""
        return self.fewest < self.world_size


def require_this_machine(launch: LaunchSettings) -> None:
    """Raises UserError for settings that only Ray can carry out."""
    if (launch.nodes or 1) > 1:
        raise UserError(
            f"launcher=none starts ranks on this machine alone, not on {launch.nodes} nodes",
            f"nodes={launch.nodes}",
            "use launcher=ray, or torchrun or srun on each node (cluster/README.md: On a cluster without Ray)",
        )
