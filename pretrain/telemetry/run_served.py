"""Which run a rank trains, and what it does that on: served from the rank's begin to its end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from pretrain import metrics
from pretrain.engine.distributed import World
from pretrain.settings import TrainSettings
from pretrain.telemetry.gpu_usage import watching_gpu
from sharding.base import environment
from sharding.telemetry.build import set_run_info
from sharding.telemetry.host import watching_host


@contextmanager
def run_served(folder: Path, settings: TrainSettings, recipe: str, versions: list[str], world: World) -> Iterator[None]:
    """Inside the `with`, metrics say what this rank trains, and how its GPU, its host and its disks are."""
    device = world.device
    metrics.STARTED_TIME.set_to_current_time()
    set_run_info(
        "finetune" if settings.init else "pretrain",
        recipe=recipe,
        network=settings.model.label,
        store_version=",".join(versions),
        world_size=world.size,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
    )
    if world.rank == 0:
        metrics.STEPS.set(settings.steps)
    with watching_gpu(device), watching_host({"run": folder, "cache": environment.cache_folder()}):
        yield
