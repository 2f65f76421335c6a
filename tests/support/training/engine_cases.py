"""What the engine's tests run on one, two and four ranks, and plain loops over the lanes to hold it against."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from pretrain.models.compute.batchnorm import commit_statistics
from pretrain.models.compute.compute_path import COMPUTE_PATHS
from pretrain.models.groups import parameter_groups
from tests.support.training.engine_ranks import BASELINES, LANES, RATE, SIZES, lane_clips, network

ROOT = Path(__file__).parents[3]
STEPS, LONG, DECAY, CLIP, FACTOR = 3, 20, 0.9, 0.5, 4.0
ZERO = (0, 1, 2, 3)
# Of tiny networks ZeRO 3 would share out nothing.
ALL_IN_PARTS = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
START_SCALE = {"factor": 4.0, "good_steps": 1999.0}


def settings(zero: int, **more: Any) -> dict[str, Any]:
    """Engine settings of a case; SGD as `plain_loop`'s."""
    plain = {"precision": "fp32", "momentum": 0.9, "nesterov": True, "weight_decay": 0.01, "zero": zero}
    return {**plain, **({"deepspeed": ALL_IN_PARTS} if zero == 3 else {}), **more}


def _cases() -> dict[str, dict[str, Any]]:
    cases: dict[str, dict[str, Any]] = {
        "together": {"last": STEPS, "kept": [1, 2], "together": True, "settings": settings(1)},
        "together3": {"last": 1, "together": True, "settings": settings(3), "sizes": [2]},
        "whole3": {"last": 3, "resumed": "sgd", "first": 2, "settings": settings(3, deepspeed={}), "sizes": [2]},
        "padded3": {
            "last": 1, "compute_path": "rows", "relu": True, "settings": settings(3, weight_decay=0.0), "sizes": [2],
        },
    }  # fmt: skip
    one_lane = {"last": 1, "lanes": 1, "small": True, "recomputed_groups": 0, "relu": True, "sizes": [1]}
    for zero in (0, 3):
        half = settings(zero, precision="bf16")
        cases[f"half rows{zero}"] = one_lane | {"last": 3, "kept": [1, 2], "compute_path": "rows", "settings": half}
    for name in BASELINES:
        for zero in (1, 3):
            cases[f"{name}{zero}"] = {
                "baseline": name, "lanes": 2, "relu": True, "last": 2, "settings": settings(zero),
            }  # fmt: skip
    for zero in ZERO:
        for compute_path in COMPUTE_PATHS:
            cases[f"{compute_path} path{zero}"] = one_lane | {
                "compute_path": compute_path, "kernels": compute_path == "rows",
                "settings": settings(zero, weight_decay=0.0),
            }  # fmt: skip
        bare = settings(zero, weight_decay=0.0)
        cases |= {
            f"gradients{zero}": {"last": 1, "recomputed": True, "settings": bare, "sizes": [1, 2, 4]},
            f"left-out{zero}": {
                "last": 4, "kept": [1, 2, 3], "pixels": [1], "losses": [2], "counted": True,
                "settings": settings(zero, average=DECAY),
            },
            f"resumed{zero}": {"resumed": "sgd", "first": 2, "last": STEPS, "settings": settings(zero)},
            f"pair{zero}": {"lanes": 2, "relu": True, "last": LONG, "settings": settings(zero)},
            f"adamw{zero}": {
                "resumed": "adamw", "first": 2, "last": 4, "kept": [3], "pixels": [2],
                "recomputed": True, "settings": settings(zero, optimizer="adamw", average=DECAY),
            },
            f"clipped{zero}": {"last": 4, "counted": True, "settings": bare | {"clip_gradient": CLIP}, "sizes": [2]},
            f"bf16{zero}": {"last": 1, "settings": bare | {"precision": "bf16"}},
            f"low{zero}": {"last": 1, "settings": bare | {"precision": "bf16", "gradients": "bf16"}, "sizes": [2]},
            f"fp16{zero}": {
                "last": 4, "kept": [1, 2, 3], "factor": FACTOR, "settings": bare | {"precision": "fp16"},
            },
            f"scaled{zero}": {"resumed": "fp16", "last": 1, "settings": bare | {"precision": "fp16"}, "sizes": [2]},
        }  # fmt: skip
    return cases


CASES = _cases()


def copied(model: Any, optimizer: torch.optim.Optimizer, average: dict[str, torch.Tensor]) -> dict[str, Any]:
    """The fields of an EngineState, of torch's own objects."""
    names = {value: name for name, value in model.named_parameters()}
    states = {
        f"{kind}:{names[value]}": tensor.clone()
        for value, state in optimizer.state.items()
        for kind, tensor in state.items()
    }
    return {
        "model": {name: value.clone() for name, value in model.state_dict().items()},
        "optimizer": states,
        "average": {name: value.clone() for name, value in average.items()},
        "scaler": {},
    }


@functools.cache
def plain_loop(
    clips: tuple[int, ...] = tuple(range(STEPS)),
    adamw: bool = False,
    decay: float = 0.01,
    clip: float = math.inf,
    half: torch.dtype | None = None,
    together: bool = False,
    relu: bool = False,
    compute_path: str | None = None,
) -> dict[int, dict[str, Any]]:
    """What the engine must do, in torch's own words: the mean loss of all lanes, in one process.

    A step for each of `clips`, the numbers of the clips that it sees. By the number of steps: the fields of an
    EngineState, and `norm`. `half`: under autocast. `together`: all lanes are one batch. `compute_path`: to compute by.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model = network(relu)
    if compute_path:
        model.use(COMPUTE_PATHS[compute_path])
    groups, optimizer = parameter_groups(model, decay, {}), None
    if adamw:
        optimizer = torch.optim.AdamW(groups, lr=RATE)
    else:
        optimizer = torch.optim.SGD(groups, lr=RATE, momentum=0.9, nesterov=True)
    average = {name: value.detach().clone() for name, value in model.named_parameters()}
    taken = {0: copied(model, optimizer, average)}
    for step, number in enumerate(clips):
        optimizer.zero_grad()
        lanes = [lane_clips(number, lane) for lane in range(LANES)]
        if together:
            lanes = [(torch.cat([video for video, _ in lanes]), torch.cat([labels for _, labels in lanes]))]
        for video, labels in lanes:
            with torch.autocast("cpu", half) if half else contextlib.nullcontext():
                logits = model(video)
            (functional.cross_entropy(logits.float(), labels) / len(lanes)).backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        commit_statistics(model)
        for name, value in model.named_parameters():
            average[name] = DECAY * average[name] + (1 - DECAY) * value.detach()
        taken[step + 1] = {**copied(model, optimizer, average), "norm": float(norm)}
    torch.set_num_threads(threads)
    return taken


def run_cases(folder: Path) -> None:
    """Run the cases, a process a rank, each of which runs all of its cases; their results go to `folder`."""
    fields = ("model", "optimizer", "average", "scaler")
    references = {
        name: {step: {field: state[field] for field in fields} for step, state in plain_loop(adamw=adamw).items()}
        for name, adamw in (("sgd", False), ("adamw", True))
    }
    fresh = references["sgd"][0]
    zeros = {f"momentum_buffer:{name}": torch.zeros_like(value) for name, value in fresh["average"].items()}
    references["fp16"] = {0: {**fresh, "optimizer": zeros, "scaler": START_SCALE}}
    torch.save(references, folder / "references.pt")
    (folder / "cases.json").write_text(json.dumps(CASES))
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.support.training.engine_ranks", str(folder)]
    with subprocess.Popen(command, cwd=ROOT, env=environment, start_new_session=True) as worker:
        try:
            code = worker.wait(270)
        except subprocess.TimeoutExpired:
            os.killpg(worker.pid, signal.SIGKILL)
            raise
    assert code == 0, "\n".join(path.read_text()[-3000:] for path in folder.glob("*.log"))


def read_results(folder: Path) -> dict[int, dict[str, Any]]:
    """What `run_cases` left: the cases' results by world size."""
    return {size: torch.load(folder / f"{size}.pt", weights_only=False) for size in SIZES}
