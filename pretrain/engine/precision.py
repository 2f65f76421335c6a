"""The precisions that a network is trained in, and the size of a micro-step, as it is tried before a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

Precision = Literal["fp32", "bf16", "fp16"]
HALF_DTYPES: dict[Precision, torch.dtype | None] = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class MicroStep:
    """A micro-step's size: one forward and backward of `batch` clips of shape C T H W.

    held: bytes that training holds on the device beside weights, gradients and what the micro-step makes.
    joint_batch_norm: the clips are normalised with those of other ranks. graph: where the device can, it is replayed
    by a CUDA graph.
    """

    clip: Sequence[int]
    batch: int
    precision: Precision
    held: int = 0
    joint_batch_norm: bool = False
    graph: bool = False


def autocast(device: torch.device, precision: Precision) -> torch.autocast:
    """What a forward pass is computed under."""
    half = HALF_DTYPES[precision]
    return torch.autocast(device.type, half, enabled=half is not None)
