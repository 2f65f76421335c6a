"""Training's batch normalisation with the addition and the ReLU that follow it, in few passes over memory.

Activations are taken as rows, M C: every place of every clip, its channels side by side, which is what N T H W C
memory holds. What is computed on rows are pure functions, each of which torch.compile turns into one or two
kernels; torch's own batch normalisation, addition and ReLU read and write the same memory about twice as often.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Gather = Callable[[Tensor], Tensor]  # D → W D: one row from each of the W ranks


def normalise(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    added: Tensor | None = None,
    relu: bool = False,
    gather: Gather | None = None,
    compiled: bool = False,
) -> tuple[Tensor, Tensor]:
    """relu(batch_norm(x) + added), N C T H W, and the batch's mean and unbiased variance, 2 C.

    Statistics are of weight's type. With `gather` the batch is spread over ranks, of which this one has a part, and
    the gradients are those of the mean of the ranks' losses, as with torch's SyncBatchNorm, which no CPU runs.
    """
    output, batch = _Normalise.apply(x, added, weight, bias, eps, relu, gather, compiled)  # type: ignore[no-untyped-call]
    return output, batch


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
        compiled: bool,
    ) -> tuple[Tensor, Tensor]:
        rows, more = _rows(x), None if added is None else _rows(added)
        if gather is None:
            output, moments, batch = _run(_forward, compiled, rows, weight, bias, more, eps, relu)
            count: Tensor | int = len(rows)
        else:
            moments = _run(_moments, compiled, rows, weight.dtype)
            moments, count = _over_ranks(gather(torch.cat([moments.flatten(), moments.new_full((1,), len(rows))])))
            output = _run(_normal, compiled, rows, moments, weight, bias, more, eps, relu)
            batch = _unbiased(moments, count)
        kept = output if relu and more is not None else None  # what was added is gone: its sign is the output's
        ctx.save_for_backward(rows, kept, moments, weight, bias)
        ctx.how = eps, relu, added is not None
        ctx.count, ctx.gather, ctx.compiled = count, gather, compiled
        ctx.mark_non_differentiable(batch)
        return _clips(output, x), batch

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        gradient, saved = _rows(gradients[0]), _Saved(*ctx.saved_tensors, *ctx.how)
        if ctx.gather is None:
            slopes, inner, added = _run(_backward, ctx.compiled, gradient, saved)
        else:
            slopes = _run(_slopes, ctx.compiled, gradient, saved)
            mean = ctx.gather(slopes.flatten()).sum(0).view(2, -1) / ctx.count
            inner, added = _run(_inner, ctx.compiled, gradient, saved, mean)
        to_added = None if added is None else _clips(added, gradients[0])
        return _clips(inner, gradients[0]), to_added, slopes[1], slopes[0], None, None, None, None


class _Saved(NamedTuple):
    """What the backward pass knows of the forward one; `output` where its sign cannot be had from the rest."""

    rows: Tensor
    output: Tensor | None
    moments: Tensor
    weight: Tensor
    bias: Tensor
    eps: float
    relu: bool
    added: bool


def _forward(
    rows: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:  # M C → M C, 2 C, 2 C
    moments = _moments(rows, weight.dtype)
    return _normal(rows, moments, weight, bias, added, eps, relu), moments, _unbiased(moments, len(rows))


def _backward(gradient: Tensor, saved: _Saved) -> tuple[Tensor, Tensor, Tensor | None]:  # M C → 2 C, M C, M C
    slopes = _slopes(gradient, saved)
    return slopes, *_inner(gradient, saved, slopes / len(saved.rows))


def _moments(rows: Tensor, precision: torch.dtype) -> Tensor:  # M C → 2 C
    """Mean and biased variance, from sums of distances to the first row, which are small where the mean is large."""
    wide = rows.to(precision)
    first = wide[0]
    apart = wide - first
    mean = apart.mean(0)
    return torch.stack([first + mean, (apart.square().mean(0) - mean.square()).clamp(min=0)])


def _unbiased(moments: Tensor, count: Tensor | int) -> Tensor:
    return torch.stack([moments[0], moments[1] * (count / (count - 1 + (count == 1)))])


def _normal(
    rows: Tensor, moments: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None, eps: float, relu: bool
) -> Tensor:  # M C → M C
    y = _before_relu(rows, moments, weight, bias, eps)
    if added is not None:
        y = y + added
    return (y.relu() if relu else y).to(rows.dtype)


def _slopes(gradient: Tensor, saved: _Saved) -> Tensor:  # M C → 2 C
    """The gradients of bias and weight."""
    passed, (mean, variance) = _through_relu(gradient, saved), saved.moments
    return torch.stack([passed.sum(0), (passed * (saved.rows - mean) * (variance + saved.eps).rsqrt()).sum(0)])


def _inner(gradient: Tensor, saved: _Saved, slopes: Tensor) -> tuple[Tensor, Tensor | None]:  # M C → M C
    """The gradients of the rows and of what was added; `slopes`: the batch's mean of those of bias and weight."""
    passed, (mean, variance) = _through_relu(gradient, saved), saved.moments
    scale = (variance + saved.eps).rsqrt()
    inner = (passed - slopes[0] - (saved.rows - mean) * (scale * slopes[1])) * (saved.weight * scale)
    return inner.to(saved.rows.dtype), passed.to(gradient.dtype) if saved.added else None


def _through_relu(gradient: Tensor, saved: _Saved) -> Tensor:
    wide = gradient.to(saved.moments.dtype)
    if not saved.relu:
        return wide
    output = saved.output
    if output is None:
        output = _before_relu(saved.rows, saved.moments, saved.weight, saved.bias, saved.eps)
    return torch.where(output <= 0, 0.0, wide)


def _before_relu(rows: Tensor, moments: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    # Rows in half precision are widened by the mean.
    return (rows - moments[0]) * ((moments[1] + eps).rsqrt() * weight) + bias


def _over_ranks(parts: Tensor) -> tuple[Tensor, Tensor]:  # W (2 C + 1) → 2 C, 1
    """The whole batch's moments and count, from those of its parts (Chan et al., 1979)."""
    counts = parts[:, -1:]
    means, variances = parts[:, :-1].unflatten(1, (2, -1)).unbind(1)  # W C
    count = counts.sum(0)
    mean = (counts * means).sum(0) / count
    return torch.stack([mean, (counts * (variances + (means - mean).square())).sum(0) / count]), count


def _rows(x: Tensor) -> Tensor:  # N C T H W → M C
    return x.permute(0, 2, 3, 4, 1).reshape(-1, x.shape[1])  # a view of N T H W C memory, else a copy


def _clips(rows: Tensor, like: Tensor) -> Tensor:  # M C → N C T H W
    batch, channels, *sides = like.shape
    return rows.view(batch, *sides, channels).permute(0, 4, 1, 2, 3)


def _run(function: Callable[..., Any], compiled: bool, *given: Any) -> Any:
    if not compiled:
        return function(*given)
    kind = tuple(map(_kind, given))
    return _compiled(function, kind)(*given)


def _kind(value: Any) -> Any:
    if isinstance(value, _Saved):
        return tuple(map(_kind, value))
    return (value.shape, value.dtype, value.device) if isinstance(value, Tensor) else value


@functools.cache
def _compiled(function: Callable[..., Any], kind: tuple[Any, ...]) -> Callable[..., Any]:
    """The function compiled for arguments of this kind alone.

    Dynamo keeps what it compiled with the function's code, and tries one entry after the other at every call: each
    kind has a copy of the code for its own.
    """
    own = types.FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
    # Unless told, Inductor writes the gradient behind the ReLU to memory, in fp32, for its second use: twice the bytes.
    return torch.compile(own, dynamic=False, options={"realize_reads_threshold": 64})
