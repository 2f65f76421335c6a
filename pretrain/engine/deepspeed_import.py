"""DeepSpeed, imported where it is needed: quiet, in seconds, and without what a training never calls."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch


def import_deepspeed(device: torch.device) -> Any:
    """Import DeepSpeed, quiet, on the CPU where there is no GPU; it takes seconds, and the GPU is not touched."""
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed calls ninja by name; an environment that is not activated keeps it beside its Python.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # An operation for inference that DeepSpeed (0.19) compiles at the first start on a CPU: a start killed while
    # compiling leaves a lock on which every later one waits for ever, and training never calls it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def join_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, imported, in the process group that torch.distributed has begun."""
    deepspeed = import_deepspeed(device)
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    return deepspeed
