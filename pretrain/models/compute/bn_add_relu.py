"""Training's batch normalisation with the addition and the ReLU that follow it, reading memory few times.

Activations are taken as rows, M C: every place of every clip, its channels side by side, which is what N T H W C
memory holds. torch's own batch normalisation, addition and ReLU read and write the same memory about twice as often as
`row_kernels` does.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from pretrain.models.compute import row_functions

Gather = Callable[[Tensor], Tensor]  # D → W D: one row from each of the W ranks


def normalise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    added: Tensor | None = None,
    relu: bool = False,
    gather: Gather | None = None,
    pending: Tensor | None = None,
) -> Tensor:
    """relu(batch_norm(x) + added), N C T H W in x's type.

    weight, bias: [c], c ≤ C, in fp32 or fp64, as statistics are; the last C - c channels of x are padding, zero before
    and after. To `pending`, [2, c] in their type, the batch's mean and unbiased variance are added. With `gather` the
    batch is spread over ranks, of which this one has a part, and the gradients are those of the mean of the ranks'
    losses, as with torch's SyncBatchNorm, which no CPU runs.
    """
    output: Tensor = _Normalise.apply(x, added, weight, bias, eps, relu, gather, pending)  # type: ignore[no-untyped-call]
    return output


def has_kernels(device: torch.device) -> bool:
    """Whether the row kernels run on such a device: a GPU, with Triton."""
    return device.type == "cuda" and _triton_is_here()


class _Normalise(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        added: Tensor | None,
        weight: Tensor,
        bias: Tensor,
        eps: float,
        relu: bool,
        gather: Gather | None,
        pending: Tensor | None,
    ) -> Tensor:
        rows, more = _rows(x), None if added is None else _rows(added)
        compute = _computing(rows, weight, more)
        ctx.count = None
        if gather is None:
            statistics = compute.statistics(rows, weight, bias, eps, pending)
        else:
            own = compute.moments(rows, weight.dtype)
            moments, ctx.count = _over_ranks(gather(torch.cat([own.flatten(), own.new_full((1,), len(rows))])))
            row_functions.add_to(pending, moments, ctx.count)
            statistics = row_functions.scales(moments, weight, bias, eps)
        output: Tensor = compute.apply(rows, statistics, more, relu)
        kept = output if relu and more is not None else None  # what was added is gone: its sign is the output's
        ctx.save_for_backward(rows, kept, statistics)
        ctx.relu, ctx.adds, ctx.channels, ctx.gather = relu, added is not None, len(weight), gather
        return _clips(output, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        rows, output, statistics = ctx.saved_tensors
        gradient = _rows(gradients[0])
        compute = _computing(rows, statistics, gradient)
        of_bias, of_weight, both, passed = compute.slopes(gradient, rows, output, statistics, ctx.relu, ctx.channels)
        count, relu = len(rows), ctx.relu
        if passed is not None:
            gradient, relu = passed, False
        if ctx.gather is not None:
            both, count = ctx.gather(both.flatten()).sum(0).view(2, -1) / ctx.count, 1
        inner = compute.inner(gradient, rows, statistics, both, count, relu)
        of_added = _clips(gradient, gradients[0]) if ctx.adds else None
        return _clips(inner, gradients[0]), of_added, of_weight, of_bias, None, None, None, None


def _computing(rows: Tensor, wide: Tensor, more: Tensor | None) -> ModuleType:
    """The kernels, or the functions of the same names, for rows in a type and statistics in a wider one."""
    alike = more is None or more.dtype == rows.dtype
    if not alike or wide.dtype != torch.float32 or rows.dtype == torch.float64 or not has_kernels(rows.device):
        return row_functions
    return _kernels()


@functools.cache
def _kernels() -> ModuleType:
    from pretrain.models.compute import row_kernels  # takes a second, and is of use on few devices

    return row_kernels


@functools.cache
def _triton_is_here() -> bool:
    return importlib.util.find_spec("triton") is not None


def _over_ranks(parts: Tensor) -> tuple[Tensor, Tensor]:  # W (2 C + 1) → 2 C, 1
    """The whole batch's moments and count, from those of its parts (Chan et al., 1979)."""
    counts = parts[:, -1:]
    means, variances = parts[:, :-1].unflatten(1, (2, -1)).unbind(1)  # W C
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    return torch.stack([mean, (counts * (variances + (means - mean).square())).sum(0) / count]), count


def _rows(x: Tensor) -> Tensor:  # N C T H W → M C
    # A view of N T H W C memory, else a copy: also of a slice of wider rows, which reshape alone would leave as it is.
    return x.permute(0, 2, 3, 4, 1).reshape(-1, x.shape[1]).contiguous()


def _clips(rows: Tensor, like: Tensor) -> Tensor:  # M C → N C T H W
    batch, channels, *sides = like.shape
    return rows.view(batch, *sides, channels).permute(0, 4, 1, 2, 3)
