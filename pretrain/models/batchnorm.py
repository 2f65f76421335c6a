"""Batch normalisation by lane: a lane's own statistics, and one move of the running ones a training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional


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

    def __init__(self, channels: int, eps: float = 1e-3, momentum: float = 0.1) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)
        self.pending: Tensor | None = None  # 2 C: the sums over lanes of the mean and of the unbiased variance
        self.pending_lanes = 0

    def forward(self, input: Tensor) -> Tensor:  # N C T H W
        self._check_input_dim(input)
        precision = torch.float64 if input.dtype == torch.float64 else torch.float32
        weight, bias = self.weight.to(precision), self.bias.to(precision)
        if not self.training:
            mean, variance = self.running_mean.to(precision), self.running_var.to(precision)
            return functional.batch_norm(input, mean, variance, weight, bias, training=False, eps=self.eps)
        # Momentum 1 makes the kernel write the batch's statistics. Zeros, not empty memory: 0 × NaN is NaN.
        batch = torch.zeros(2, self.num_features, dtype=precision, device=input.device)
        output = functional.batch_norm(
            input, batch[0], batch[1], weight, bias, training=True, momentum=1.0, eps=self.eps
        )
        self.pending = batch if self.pending is None else self.pending.add_(batch)
        self.pending_lanes += 1
        return output

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = self.running_mean, self.running_var
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Small steps of the running statistics vanish in half precision, so a cast moves their device alone.
        if self.running_mean.dtype in (torch.float16, torch.bfloat16):
            device = self.running_mean.device
            self.running_mean, self.running_var = (statistic.to(device) for statistic in kept)
        return self


def _layers(model: nn.Module) -> list[LaneBatchNorm]:
    return [module for module in model.modules() if isinstance(module, LaneBatchNorm)]


@torch.no_grad()
def commit_statistics(model: nn.Module, lanes: int, all_reduce: Callable[[Tensor], object] | None = None) -> None:
    """Move the running statistics of every layer once, by the mean over the step's lanes.

    `lanes` counts the lanes of all ranks; `all_reduce` sums a tensor over the ranks in place, is called once
    with all layers' sums, and is None where this process runs every lane. Layers that saw no training batch
    (those in evaluation mode) stay as they are; `num_batches_tracked` of the others grows by one.

    Raises ValueError if the pending batches cannot be `lanes` lanes.
    """
    layers = [layer for layer in _layers(model) if layer.pending is not None]
    if not layers:
        return
    counts = {layer.pending_lanes for layer in layers}
    if len(counts) > 1 or max(counts) > lanes or (all_reduce is None and counts != {lanes}):
        raise ValueError(f"{sorted(counts)} batches are pending in the layers of this rank, for {lanes} lanes")
    sums = torch.cat([layer.pending.flatten() for layer in layers if layer.pending is not None])
    if all_reduce is not None:
        all_reduce(sums)
    means = (sums / lanes).split([2 * layer.num_features for layer in layers])
    for layer, statistics in zip(layers, means, strict=True):
        assert layer.momentum is not None
        mean, variance = statistics.view(2, -1).to(layer.running_mean.dtype)
        layer.running_mean.mul_(1 - layer.momentum).add_(mean, alpha=layer.momentum)
        layer.running_var.mul_(1 - layer.momentum).add_(variance, alpha=layer.momentum)
        layer.num_batches_tracked.add_(1)
    discard_statistics(model)


def discard_statistics(model: nn.Module) -> None:
    """Drop what is pending, so that a skipped step leaves the running statistics as they were."""
    for layer in _layers(model):
        layer.pending = None
        layer.pending_lanes = 0
