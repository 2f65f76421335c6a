"""Batch normalisation by lane: a lane's own statistics, and one move of the running ones a training step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

Gather = Callable[[Tensor], Tensor]  # D → W D: one row from each of the W ranks
_holding = False  # a plain flag, which a compiled network can look at


class LaneBatchNorm(nn.BatchNorm3d):
    """`nn.BatchNorm3d` that holds its running statistics back until `commit_statistics`.

    In training it normalises with the statistics of the batch it is given (a lane), as `nn.BatchNorm3d` does,
    and adds that batch's mean and unbiased variance to pending sums. A training step that runs many lanes one
    after the other therefore moves the running statistics once, by the mean over lanes, however the lanes are
    spread over ranks. In evaluation it is `nn.BatchNorm3d`.

    The statistics are float32 (float64 for a float64 input) under autocast and in a network cast to half
    precision. State-dict keys are those of `nn.BatchNorm3d`; what is pending is not part of the state.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    pending: Tensor  # 2 C + 1: the sums over lanes of the mean and of the unbiased variance, and the lanes' number

    def __init__(self, channels: int, eps: float = 1e-3, momentum: float = 0.1) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)
        self.register_buffer("pending", torch.zeros(2 * channels + 1), persistent=False)
        self.gather: Gather | None = None  # where the batch is spread over ranks (`synchronise`)

    def forward(self, input: Tensor, zeros: int = 0) -> Tensor:
        """Normalised N C T H W. The last `zeros` channels of the input are padding, zero before and after."""
        self._check_input_dim(input)
        precision = torch.float64 if input.dtype == torch.float64 else torch.float32
        weight, bias = self._padded(self.weight.to(precision), zeros), self._padded(self.bias.to(precision), zeros)
        if not self.training:
            mean, variance = self.running_mean.to(precision), self.running_var.to(precision)
            mean, variance = self._padded(mean, zeros), self._padded(variance, zeros)
            return functional.batch_norm(input, mean, variance, weight, bias, training=False, eps=self.eps)
        if self.gather is not None:
            output, batch = _normalise_together(input, weight, bias, self.eps, self.gather)
        else:
            # Momentum 1 makes the kernel write the batch's statistics. Zeros, not empty memory: 0 × NaN is NaN.
            batch = torch.zeros(2, self.num_features + zeros, dtype=precision, device=input.device)
            output = functional.batch_norm(
                input, batch[0], batch[1], weight, bias, training=True, momentum=1.0, eps=self.eps
            )
        if not _holding:
            with torch.no_grad():
                self.pending[:-1] += batch[:, : self.num_features].reshape(-1).to(self.pending.dtype)
                self.pending[-1] += 1
        return output

    def _padded(self, values: Tensor, zeros: int) -> Tensor:
        return functional.pad(values, (0, zeros)) if zeros else values

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = self.running_mean, self.running_var, self.pending
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Small steps of the running statistics vanish in half precision, so a cast moves their device alone.
        if self.running_mean.dtype in (torch.float16, torch.bfloat16):
            device = self.running_mean.device
            self.running_mean, self.running_var, self.pending = (statistic.to(device) for statistic in kept)
        return self


class _Together(torch.autograd.Function):
    """Batch normalisation over a batch that is spread over ranks, of which this one has a part."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, gather: Gather) -> tuple[Tensor, Tensor]:
        wide = x.to(weight.dtype)
        axes = [axis for axis in range(x.dim()) if axis != 1]
        count = torch.full((1,), x.numel() / x.shape[1], dtype=weight.dtype, device=x.device)
        variance, mean = torch.var_mean(wide, axes, correction=0)
        parts = gather(torch.cat([mean, variance, count]))  # W (2 C + 1)
        means, variances, counts = parts.split([len(mean), len(mean), 1], dim=1)
        total = counts.sum()
        mean = (counts * means).sum(0) / total
        # Chan et al.: the parts' variances and how far their means lie from the whole's.
        variance = (counts * (variances + (means - mean).square())).sum(0) / total
        scale = (variance + eps).rsqrt()
        shape = [1, -1] + [1] * (x.dim() - 2)
        normal = (wide - mean.view(shape)) * scale.view(shape)
        ctx.save_for_backward(normal.to(x.dtype), weight, scale, total)
        ctx.gather = gather
        output = normal * weight.view(shape) + bias.view(shape)
        batch = torch.stack([mean, variance * total / (total - 1).clamp(min=1)])
        ctx.mark_non_differentiable(batch)
        return output.to(x.dtype), batch

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        normal, weight, scale, total = ctx.saved_tensors
        gradient = gradients[0].to(weight.dtype)
        wide = normal.to(weight.dtype)
        axes = [axis for axis in range(wide.dim()) if axis != 1]
        shape = [1, -1] + [1] * (wide.dim() - 2)
        own = torch.stack([gradient.sum(axes), (gradient * wide).sum(axes)])  # of the bias and of the weight
        mean, slope = ctx.gather(own.flatten()).sum(0).view(2, -1) / total
        inner = gradient - mean.view(shape) - wide * slope.view(shape)
        return (inner * (weight * scale).view(shape)).to(normal.dtype), own[1], own[0], None, None


def _normalise_together(x: Tensor, weight: Tensor, bias: Tensor, eps: float, gather: Gather) -> tuple[Tensor, Tensor]:
    output, batch = _Together.apply(x, weight, bias, eps, gather)  # type: ignore[no-untyped-call]
    return output, batch


def _layers(model: nn.Module) -> list[LaneBatchNorm]:
    return [module for module in model.modules() if isinstance(module, LaneBatchNorm)]


def synchronise(model: nn.Module, gather: Gather) -> None:
    """Normalise from now on with the statistics of the batches of all ranks together.

    `gather` gives every rank's row of a vector. What a rank is given at once is then its share of one batch, and
    the gradients are those of the mean of the ranks' losses, as with torch's SyncBatchNorm, which no CPU runs.
    """
    for layer in _layers(model):
        layer.gather = gather


@torch.no_grad()
def commit_statistics(model: nn.Module, all_reduce: Callable[[Tensor], object] | None = None) -> None:
    """Move the running statistics of every layer once, by the mean over all lanes since the last commit.

    `all_reduce` sums a tensor over the ranks in place, is called once with all layers' sums, and is None where
    this process runs every lane. Layers that saw no training batch (those in evaluation mode) stay as they are;
    `num_batches_tracked` of the others grows by one.
    """
    layers = _layers(model)
    if not layers:
        return
    sums = torch.cat([layer.pending for layer in layers])
    if all_reduce is not None:
        all_reduce(sums)
    for layer, pending in zip(layers, sums.split([len(layer.pending) for layer in layers]), strict=True):
        assert layer.momentum is not None
        seen = pending[-1].clamp(max=1)  # 0 leaves the layer as it is
        mean, variance = (pending[:-1] / pending[-1].clamp(min=1)).view(2, -1)
        share = (layer.momentum * seen).to(layer.running_mean.dtype)
        layer.running_mean.lerp_(mean.to(share.dtype), share)
        layer.running_var.lerp_(variance.to(share.dtype), share)
        layer.num_batches_tracked.add_(seen.to(torch.int64))
    discard_statistics(model)


@torch.no_grad()
def discard_statistics(model: nn.Module) -> None:
    """Drop what is pending, so that a skipped step leaves the running statistics as they were."""
    for layer in _layers(model):
        layer.pending.zero_()


@contextmanager
def statistics_held() -> Iterator[None]:
    """Batches seen inside the `with` are not counted, because they were seen before."""
    global _holding
    before, _holding = _holding, True
    try:
        yield
    finally:
        _holding = before
