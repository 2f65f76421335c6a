"""Batch normalisation by lane: each lane's own statistics, and one update of the running ones a training step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.compute.bn_add_relu import Gather, normalise

_holding = False


class LaneBatchNorm(nn.BatchNorm3d):
    """`nn.BatchNorm3d`, and the ReLU after it, that holds its running statistics back until `commit_statistics`.

    In training it normalises with the statistics of the batch it is given (a lane), as `nn.BatchNorm3d` does,
    and keeps the sum over lanes of their means and unbiased variances pending. A training step that runs many
    lanes one after the other therefore moves the running statistics once, by the mean over lanes, however they are
    spread over ranks. In evaluation it is `nn.BatchNorm3d`.

    The sum is the device's and `lanes`, how many it is of, the host's: what a lane computes depends on no number of
    the host's, so that it can be captured in a CUDA graph, whose replays count their lane themselves.

    The statistics are float32 (float64 in a network cast to it) under autocast and in a network cast to half
    precision. State-dict keys are those of `nn.BatchNorm3d`; what is pending is not part of the state.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    pending: Tensor  # 2 C: the sums over the lanes so far of the mean and of the unbiased variance
    momentum: float

    def __init__(self, channels: int, eps: float = 1e-3, momentum: float = 0.1, relu: bool = False) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)
        self.relu = relu
        self.register_buffer("pending", torch.zeros(2, channels), persistent=False)
        self.lanes = 0  # how many are pending
        self.rows = (
            False  # by the network's compute path: normalised, added and passed through the ReLU at once (`normalise`)
        )
        self.frozen = False  # in evaluation for good
        self.gather: Gather | None = None  # where the batch is spread over ranks (`synchronise`)

    def train(self, mode: bool = True) -> Self:
        """As `nn.Module.train`; a frozen layer stays in evaluation."""
        return super().train(mode and not self.frozen)

    def forward(self, input: Tensor, added: Tensor | None = None, zeros: int = 0) -> Tensor:
        """Normalised N C T H W, plus `added`, through the ReLU where the layer has one.

        The last `zeros` channels of the input are padding, zero before and after. Raises ValueError for a lane with
        one value a channel.
        """
        self._check_input_dim(input)
        precision = self.pending.dtype
        if self.training and self.gather is None and input.numel() == input.shape[1]:
            raise ValueError(f"one value a channel cannot be normalised: {tuple(input.shape)}")
        weight, bias = self.weight.to(precision), self.bias.to(precision)
        if self.training and (self.rows or self.gather is not None):
            pending = self._counted()
            return normalise(input, weight, bias, self.eps, added, self.relu, self.gather, pending)
        weight, bias = self._padded(weight, zeros), self._padded(bias, zeros)
        order = _order(input) if 1 in input.shape else None
        if order is not None:
            input = _in_order(input, order)
        if self.training:
            output = self._of_the_lane(input, weight, bias)
        else:
            mean, variance = self.running_mean.to(precision), self.running_var.to(precision)
            mean, variance = self._padded(mean, zeros), self._padded(variance, zeros)
            output = F.batch_norm(input, mean, variance, weight, bias, training=False, eps=self.eps)
        if order is not None and output.requires_grad:
            output.register_hook(functools.partial(_in_order, order=order))
        if added is not None:
            output += added
        return F.relu_(output) if self.relu else output

    def _of_the_lane(self, input: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        # Momentum 1 makes the kernel write the batch's own statistics.
        batch = torch.zeros(2, len(weight), dtype=weight.dtype, device=input.device)
        output = F.batch_norm(input, batch[0], batch[1], weight, bias, training=True, momentum=1.0, eps=self.eps)
        pending = self._counted()
        if pending is not None:
            pending += batch[:, : self.num_features]
        return output

    def _counted(self) -> Tensor | None:
        """Count a lane; the buffer to add its statistics to, or None where its batch was counted before."""
        if _holding:
            return None
        self.lanes += 1
        return self.pending

    def _padded(self, values: Tensor, zeros: int) -> Tensor:
        return F.pad(values, (0, zeros)) if zeros else values

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        kept = self.running_mean, self.running_var, self.pending
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # Small steps of the running statistics vanish in half precision, so a cast moves their device alone.
        if self.running_mean.dtype in (torch.float16, torch.bfloat16):
            device = self.running_mean.device
            self.running_mean, self.running_var, self.pending = (statistic.to(device) for statistic in kept)
        return self


def _order(x: Tensor) -> torch.memory_format | None:
    orders = (torch.channels_last_3d, torch.contiguous_format)
    return next((order for order in orders if x.is_contiguous(memory_format=order)), None)


def _in_order(x: Tensor, order: torch.memory_format) -> Tensor:
    """In this order of memory, N C T H W or N T H W C, with the strides that it has where no side is 1.

    A tensor with such a side is contiguous with other strides for that side, too, and torch's kernels for a CPU take
    the order from them in one place and not in another: their gradients were then of other elements.
    """
    x = x.contiguous(memory_format=order)
    if order == torch.contiguous_format:
        return x.reshape(-1).view(x.shape)
    rows = x.permute(0, 2, 3, 4, 1)
    return rows.reshape(-1).view(rows.shape).permute(0, 4, 1, 2, 3)


def _layers(model: nn.Module) -> list[LaneBatchNorm]:
    return [module for module in model.modules() if isinstance(module, LaneBatchNorm)]


def synchronise(model: nn.Module, gather: Gather) -> None:
    """Normalise from now on with the statistics of the batches of all ranks together.

    `gather` gives every rank's row of a vector. What a rank is given at once is then its share of one batch.
    """
    for layer in _layers(model):
        layer.gather = gather


@torch.no_grad()
def commit_statistics(
    model: nn.Module, all_reduce: Callable[[Tensor], object] | None = None, finite: Tensor | None = None
) -> None:
    """Move the running statistics of every layer once, by the mean over all lanes since the last commit.

    `all_reduce` sums a tensor over the ranks in place, is called once with all layers' statistics, and is None
    where this process runs every lane; every rank has seen as many lanes. Layers that saw no training batch
    (those in evaluation mode) stay as they are; `num_batches_tracked` of the others grows by one. Where `finite`, a
    bool on the layers' device, is false, all stays as it is to the bit; the host does not wait for it.
    """
    layers = [layer for layer in _layers(model) if layer.lanes]
    if not layers:
        return
    lanes: Tensor | int = layers[0].lanes
    sums = torch.cat([layer.pending.flatten() for layer in layers])
    if all_reduce is not None:
        sums = torch.cat([sums, sums.new_full((1,), float(lanes))])
        all_reduce(sums)
        sums, lanes = sums[:-1], sums[-1]
    statistics = [part.view(2, -1) for part in (sums / lanes).split([layer.pending.numel() for layer in layers])]
    running = [layer.running_mean for layer in layers] + [layer.running_var for layer in layers]
    moved = [mean for mean, _ in statistics] + [variance for _, variance in statistics]
    counts = [layer.num_batches_tracked for layer in layers]
    momenta = [layer.momentum for layer in layers] * 2
    # torch._foreach_*, private in torch 2.x (its optimizers compute by them): one kernel for many small tensors.
    if finite is None:
        torch._foreach_lerp_(running, moved, momenta)
        torch._foreach_add_(counts, 1)
    else:
        _move_where(finite, running, torch._foreach_lerp(running, moved, momenta))
        torch._foreach_add_(counts, [finite.to(counts[0].dtype)] * len(counts))
    discard_statistics(model)


def _move_where(finite: Tensor, values: list[Tensor], moved: Sequence[Tensor]) -> None:
    """Copy `moved` to `values` where `finite` is true: many small tensors, by few kernels."""
    chosen = torch.where(finite, torch.cat(list(moved)), torch.cat(values))
    torch._foreach_copy_(values, chosen.split([len(value) for value in values]))


@torch.no_grad()
def discard_statistics(model: nn.Module) -> None:
    """Drop what is pending, so that a skipped step leaves the running statistics as they were."""
    layers = _layers(model)
    for layer in layers:
        layer.lanes = 0
    if layers:
        torch._foreach_zero_([layer.pending for layer in layers])  # 0 × NaN is NaN: old ones must not stay


@torch.no_grad()
def recompute_statistics(
    model: nn.Module,
    batches: Iterable[Tensor],
    forward: Callable[[Tensor], object],
    all_reduce: Callable[[Tensor], object] | None = None,
) -> None:
    """Set the running statistics to the plain mean of many batches' own, "precise" ones (arXiv 2105.07576, 3.1).

    `forward` runs the network, whose weights stand still, on a batch N C T H W. The ranks' shares of the batches
    may differ in number; `all_reduce` sums a tensor over the ranks in place, is called once, and is None where
    this process has all batches. Layers frozen in evaluation mode stay as they are, as everything does without a
    batch. Only the layers normalise by the batch meanwhile: no dropout draws, and all modes are then as before.
    """
    modes = [(module, module.training) for module in model.modules()]
    discard_statistics(model)
    model.eval()
    layers = [layer for layer in _layers(model) if layer.train().training]
    try:
        for batch in batches:
            forward(batch)
        if not layers:
            return
        sums = torch.cat([layer.pending.flatten() for layer in layers])
        sums = torch.cat([sums, sums.new_tensor([max(layer.lanes for layer in layers)])])
        if all_reduce is not None:
            all_reduce(sums)
        if not sums[-1]:
            return
        means = (sums[:-1] / sums[-1]).split([layer.pending.numel() for layer in layers])
        for layer, statistics in zip(layers, means, strict=True):
            mean, variance = statistics.view(2, -1)
            layer.running_mean.copy_(mean)
            layer.running_var.copy_(variance)
    finally:
        discard_statistics(model)
        for module, training in modes:
            module.training = training


@contextmanager
def statistics_held() -> Iterator[None]:
    """Inside the `with`, batches are not counted, because they were before."""
    global _holding
    before, _holding = _holding, True
    try:
        yield
    finally:
        _holding = before
