"""How Ray Train's workers learn which rank they are: by torch.distributed's variables, as under torchrun.

The ranks then meet by themselves (`start_world`), by the same road and with the same errors as under other launchers.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.train import get_context
from ray.train.backend import Backend
from ray.train.torch import TorchConfig

from pretrain.engine.distributed import free_port
from sharding.base import environment


class RankConfig(TorchConfig):
    """Ray Train's setting for it."""

    @property
    def backend_cls(self) -> type[Backend]:
        """The backend's class."""
        return RankBackend


class RankBackend(Backend):
    """Sets the variables in each worker; the ranks leave their process group by themselves."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        """Say to every worker where the ranks meet: at the first of them."""
        host, port = worker_group.execute_single(0, _meeting_place)
        worker_group.execute(_become_rank, host, port)


def _meeting_place() -> tuple[str, int]:
    util: Any = ray.util
    return util.get_node_ip_address(), free_port()


def _become_rank(host: str, port: int) -> None:
    context = get_context()
    environment.become_rank(str(context.get_world_rank()), str(context.get_world_size()), str(context.get_local_rank()))
    more = {environment.LOCAL_WORLD_SIZE: str(context.get_local_world_size())}
    environment.adopt_variables(more | {environment.MASTER_ADDR: host, environment.MASTER_PORT: str(port)})
