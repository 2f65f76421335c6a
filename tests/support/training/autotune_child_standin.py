"""The child that measures compute paths, and misbehaves: how, and by which compute path, the environment says."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.engine.autotune import child, choose
from pretrain.models.network import VideoNetwork

PLAN, PIDS = "REELSCALE_TEST_CHILD", "REELSCALE_TEST_PIDS"


def main(words: int) -> None:
    """The child's own main, after the plan: {path or "layers": how}; "engine": false leaves the engine's steps out."""
    torch.set_num_threads(1)
    plan: dict[str, Any] = json.loads(os.environ[PLAN])
    with Path(os.environ[PIDS]).open("a") as pids:
        pids.write(f"{os.getpid()}\n")
    forward = VideoNetwork.forward

    def misbehaving(self: VideoNetwork, clips: Tensor) -> Tensor:
        if self.training and torch.is_grad_enabled():
            misbehave(plan.get(name_of(self), "well"), self)
        return forward(self, clips)

    VideoNetwork.forward = misbehaving  # type: ignore[method-assign]
    if "layers" in plan:
        choose.planar_layers = lambda *_: misbehave(plan["layers"], None)  # type: ignore[assignment]
    if "build" in plan:
        child.build_model = lambda *_: misbehave(plan["build"], None)  # type: ignore[assignment]
    if not plan.get("engine", True):
        child._trains = lambda names, *_: names
    child.main(words)


def name_of(network: VideoNetwork) -> str:
    """Of the compute path that it computes by."""
    if not network.compute_path.channels_last:
        return "plain"
    return "planar" if isinstance(network.compute_path.planar, frozenset) else "channels-last"


def misbehave(how: str, network: VideoNetwork | None) -> None:
    """Die, hang or be short of memory, now or once the weights are DeepSpeed's."""
    if how == "dies by a signal":
        os.kill(os.getpid(), signal.SIGKILL)
    elif how == "hangs":
        time.sleep(1000)
    elif how == "needs two groups recomputed" and network is not None and network.compute_path.recomputed < 2:
        raise torch.OutOfMemoryError("short")
    elif how == "loses the device":
        raise RuntimeError("CUDA error: misaligned address\nmore of it")
    elif how == "exits in the engine" and network is not None:
        weight = next(network.parameters())
        if weight.untyped_storage().nbytes() > weight.nbytes:  # a view into DeepSpeed's buffer
            os._exit(3)
