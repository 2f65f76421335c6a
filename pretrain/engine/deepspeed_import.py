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
    _leave_compilers_out()
    import deepspeed

    _import_muon_uncompiled()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # An operation for inference that DeepSpeed (0.19) compiles at the first start on a CPU: a start killed while
    # compiling leaves a lock on which every later one waits for ever, and training never calls it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed


def _leave_compilers_out() -> None:
    """Have optimizers' first calls load no compiler, which takes a second: nothing that calls them is compiled.

    What `torch._disable_dynamo` (torch 2.x) guards runs as it is; `__dynamo_disable` is where it keeps that.
    """
    for name in ("add_param_group", "load_state_dict", "state_dict", "zero_grad"):
        guarded = getattr(getattr(torch.optim.Optimizer, name), "__wrapped__", None)
        if guarded:
            setattr(guarded, "__dynamo_disable", guarded)


def _import_muon_uncompiled() -> None:
    """Import DeepSpeed's (0.19) Muon, of which ZeRO asks whether an optimizer is one: compiling it takes seconds."""
    from deepspeed.runtime import compiler

    compile_ = compiler.compile
    compiler.compile = lambda *arguments, **options: lambda function: function
    try:
        import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401
    except ImportError:
        pass
    finally:
        compiler.compile = compile_


def join_deepspeed(device: torch.device) -> Any:
    """DeepSpeed, imported, in the process group that torch.distributed has begun."""
    deepspeed = import_deepspeed(device)
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    return deepspeed
