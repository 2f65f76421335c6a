"""Compute paths: ways to compute the same network, in other orders of memory and by other kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.compute.batchnorm import LaneBatchNorm
from pretrain.models.compute.space_to_depth import fits_blocks, space_to_depth


@dataclass(frozen=True)
class ComputePath:
    """How a network computes the function that it is.

    channels_last: activations lie N T H W C in memory, else N C T H W. planar: (1,k,k) convolutions run as 2D
    ones over N·T and (k,1,1) ones as (k,1) ones over (T, H·W), which in that order are views (but for a stride
    along time of a (1,k,k) one, which copies); True for all that can, or the names of those that do.
    multiple: mid-planes are padded with zero channels to a multiple of it, for tensor cores. rows: in training,
    batch normalisation, addition and ReLU are one (`normalise`). blocks: a convolution of pictures that strides by two
    is one over their blocks of 2 × 2 pixels, which fill a tensor core's channels (`space_to_depth`). cast_at_once: in
    half precision all weights are cast by one call. recomputed: the activations inside so many of the network's first
    groups of layers are not kept for the backward pass but computed again.
    """

    channels_last: bool = True
    planar: bool | frozenset[str] = False
    multiple: int = 1
    rows: bool = False
    blocks: bool = False
    cast_at_once: bool = False
    recomputed: int = 0


COMPUTE_PATHS: dict[str, ComputePath] = {
    "plain": ComputePath(channels_last=False),
    "channels-last": ComputePath(),
    "planar": ComputePath(planar=True),
    "rows": ComputePath(planar=True, multiple=8, rows=True, blocks=True, cast_at_once=True),
}
ON_CPU = ("plain", "channels-last", "planar")  # what the other does for tensor cores costs there
ON_GPU = ("rows", "channels-last")


class Convolution(nn.Conv3d):
    """`nn.Conv3d` that computes by the network's compute path; its weight keeps its five dimensions."""

    planar = False
    blocks = False
    cast: Tensor | None = None  # the weight in half precision, while a forward pass has cast all at once

    @property
    def flat(self) -> bool:
        """Whether it can run as a 2D convolution."""
        return self._is_of_pictures or self._is_of_time

    @property
    def _is_of_pictures(self) -> bool:
        return self.kernel_size[0] == 1 and self._sides()[0] == 0

    @property
    def _is_of_time(self) -> bool:
        return self.kernel_size[1:] == (1, 1) and self._sides()[1:] == (0, 0) and self.stride[1:] == (1, 1)

    def forward(self, input: Tensor) -> Tensor:  # N C T H W → N C' T' H' W'
        """The convolution."""
        return self.compute(input, self.used_weight)

    def uses_space_to_depth(self, pictures: Tensor) -> bool:
        """Whether the network's compute path has it compute over blocks of these pictures' pixels."""
        return self.blocks and fits_blocks(self) and not pictures.requires_grad

    @property
    def used_weight(self) -> Tensor:
        """The weight as the forward pass computes with it, of the weight's own shape."""
        return self.weight if self.cast is None else self.cast

    def compute(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution with another weight of the same kernel."""
        if self.uses_space_to_depth(x):
            return self._over_blocks(x, weight)
        if self.planar and self._is_of_pictures:
            return self._over_pictures(x, weight)
        if self.planar and self._is_of_time:
            return self._over_time(x, weight)
        time, height, width = self._sides()
        x, time = _padded_in_time(x, time)
        return F.conv3d(x, weight, self.bias, self.stride, (time, height, width), self.dilation, self.groups)

    def _sides(self) -> tuple[int, int, int]:
        time, height, width = (int(side) for side in self.padding)
        return time, height, width

    def _over_blocks(self, x: Tensor, weight: Tensor) -> Tensor:
        x, weight = space_to_depth(x, weight, autocast_type(x.device) or x.dtype)
        if self.kernel_size[0] == 1 and self.stride[0] == 1:
            y = F.conv2d(x.transpose(1, 2).flatten(0, 1), weight.squeeze(2), self.bias)
            clips: Tensor = y.unflatten(0, (x.shape[0], x.shape[2]))
            return clips.transpose(1, 2)
        x, time = _padded_in_time(x, self._sides()[0])
        return F.conv3d(x, weight, self.bias, (self.stride[0], 1, 1), (time, 0, 0))

    def _over_pictures(self, x: Tensor, weight: Tensor) -> Tensor:
        if self.stride[0] > 1:
            x = x[:, :, :: self.stride[0]]
        pictures = _last(x).transpose(1, 2).flatten(0, 1)  # N·T C H W
        y = F.conv2d(pictures, weight.squeeze(2), self.bias, self.stride[1:], self._sides()[1:])
        clips: Tensor = y.unflatten(0, (x.shape[0], x.shape[2]))
        return clips.transpose(1, 2)

    def _over_time(self, x: Tensor, weight: Tensor) -> Tensor:
        rows = _last(x).flatten(3)  # N C T H·W
        y = F.conv2d(rows, weight.squeeze(4), self.bias, (self.stride[0], 1), (self._sides()[0], 0))
        clips: Tensor = y.unflatten(3, x.shape[3:])
        return clips


class Factored(nn.Sequential):
    """Two convolutions with BN and its ReLU between, and what follows; the planes between may be padded."""

    multiple = 1

    def forward(self, input: Tensor) -> Tensor:
        """The layers one after the other."""
        first, norm, second = self[0], self[1], self[3]
        assert isinstance(first, Convolution) and isinstance(second, Convolution)
        assert isinstance(norm, LaneBatchNorm)
        zeros = -first.out_channels % self.multiple
        if zeros:
            x = first.compute(input, F.pad(first.used_weight, (0,) * 9 + (zeros,)))
            x = norm(x, zeros=zeros)
            x = second.compute(x, F.pad(second.used_weight, (0,) * 7 + (zeros,)))
        else:
            x = second(norm(first(input)))
        for layer in list(self)[4:]:
            x = layer(x)
        return x


def _padded_in_time(x: Tensor, time: int) -> tuple[Tensor, int]:
    """N C T H W, and by how many frames a convolution is yet to pad it at either end.

    oneDNN's bf16 weight gradient of a padded convolution over two frames reads memory that it never set.
    """
    if time and x.shape[2] == 2 and x.device.type == "cpu" and _in_half(x):
        return F.pad(x, (0, 0, 0, 0, time, time)), 0
    return x, time


def _in_half(x: Tensor) -> bool:
    return x.dtype == torch.bfloat16 or torch.is_autocast_enabled("cpu")


def autocast_type(device: torch.device) -> torch.dtype | None:
    """What autocast has convolutions compute in on such a device; None without it."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d)


@contextmanager
def unpadded(model: nn.Module) -> Iterator[None]:
    """Inside the `with`, layers have the network's own channels, so that these are counted, not a compute path."""
    padded = [(module, module.multiple) for module in model.modules() if isinstance(module, Factored)]
    blocks = [module for module in model.modules() if isinstance(module, Convolution) and module.blocks]
    for module, _ in padded:
        module.multiple = 1
    for layer in blocks:
        layer.blocks = False
    try:
        yield
    finally:
        for module, multiple in padded:
            module.multiple = multiple
        for layer in blocks:
            layer.blocks = True


def set_compute_path(model: nn.Module, compute_path: ComputePath) -> None:
    """Have every layer of the network compute by `compute_path`."""
    for name, module in model.named_modules():
        if isinstance(module, Convolution):
            module.planar = (
                compute_path.planar if isinstance(compute_path.planar, bool) else name in compute_path.planar
            )
            module.blocks = compute_path.blocks
        elif isinstance(module, Factored):
            module.multiple = compute_path.multiple
        elif isinstance(module, LaneBatchNorm):
            module.rows = compute_path.rows
