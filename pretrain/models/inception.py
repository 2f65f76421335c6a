"""Inception-V1 over clips, with TensorFlow's SAME padding, and the baselines I3D and S3D that are it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.compute.batchnorm import LaneBatchNorm
from pretrain.models.convolutions import Stride, conv3d
from pretrain.models.network import LaneDropout, VideoNetwork

Triple = tuple[int, int, int]
UnitKind = Literal["3d", "2d", "separable"]

MIXED: dict[str, tuple[int, int, int, int, int, int]] = {  # planes of b0, b1a, b1b, b2a, b2b, b3b
    "3b": (64, 96, 128, 16, 32, 32),
    "3c": (128, 128, 192, 32, 96, 64),
    "4b": (192, 96, 208, 16, 48, 64),
    "4c": (160, 112, 224, 24, 64, 64),
    "4d": (128, 128, 256, 24, 64, 64),
    "4e": (112, 144, 288, 32, 64, 64),
    "4f": (256, 160, 320, 32, 128, 128),
    "5b": (256, 160, 320, 32, 128, 128),
    "5c": (384, 192, 384, 48, 128, 128),
}
STAGES: tuple[tuple[str, ...], ...] = (
    ("Conv3d_1a_7x7", "MaxPool3d_2a_3x3", "Conv3d_2b_1x1", "Conv3d_2c_3x3", "MaxPool3d_3a_3x3"),
    ("Mixed_3b", "Mixed_3c", "MaxPool3d_4a_3x3"),
    ("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f", "MaxPool3d_5a_2x2"),
    ("Mixed_5b", "Mixed_5c"),
)
PARTS: Mapping[str, tuple[str, ...]] = {
    "stem": ("Conv3d_1a_7x7",),
    "conv2": ("Conv3d_2b_1x1", "Conv3d_2c_3x3"),
    **{f"conv{number}": tuple(f"Mixed_{name}" for name in MIXED if name[0] == number) for number in "345"},
}
_MOMENTUM = 0.01  # of the running statistics, in kinetics-i3d and its PyTorch port


def same_padding(length: int, kernel: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME: (before, after), so that ⌈length / stride⌉ come out; the odd one goes after."""
    total = max((-(-length // stride) - 1) * stride + kernel - length, 0)
    return total // 2, total - total // 2


def pad_same(x: Tensor, kernel: Triple, stride: Triple) -> Tensor:
    """x with SAME's zeros around it."""
    sides = [same_padding(length, k, s) for length, k, s in zip(x.shape[2:], kernel, stride, strict=True)]
    return F.pad(x, [side for pair in reversed(sides) for side in pair])


class Unit3D(nn.Module):
    """Convolution (SAME) → BN → ReLU."""

    def __init__(self, inputs: int, outputs: int, kernel: Triple, stride: Stride = (1, 1)) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, (stride[0], stride[1], stride[1])
        # At stride 1 SAME is half the kernel on both sides, whatever the length, and the convolution pads.
        self.conv3d = conv3d(inputs, outputs, kernel, stride, padding=None if stride == (1, 1) else (0, 0, 0))
        self.bn = LaneBatchNorm(outputs, momentum=_MOMENTUM, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        """Activations N C T H W of the same layout."""
        if self.stride != (1, 1, 1):
            x = pad_same(x, self.kernel, self.stride)
        normalised: Tensor = self.bn(self.conv3d(x))
        return normalised


def unit(kind: UnitKind, inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Module:
    """The units that stand for one of size³: that one, one of pictures alone, or one of pictures and one of time.

    `stride` is along time, too, but in a 2D one.
    """
    if kind == "2d":
        return Unit3D(inputs, outputs, (1, size, size), (1, stride))
    if kind == "3d" or size == 1:
        return Unit3D(inputs, outputs, (size, size, size), (stride, stride))
    pictures = Unit3D(inputs, outputs, (1, size, size), (1, stride))
    return nn.Sequential(pictures, Unit3D(outputs, outputs, (size, 1, 1), (stride, 1)))


class SamePool(nn.Module):
    """Max pooling with SAME padding; zeros pad, which is right after a ReLU."""

    def __init__(self, kernel: Triple, stride: Triple) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, x: Tensor) -> Tensor:
        """The largest of each window, N C T H W."""
        return F.max_pool3d(pad_same(x, self.kernel, self.stride), self.kernel, self.stride)


class Mixed(nn.Module):
    """An Inception module: four branches, joined along the channels."""

    def __init__(self, kind: UnitKind, inputs: int, planes: list[int]) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = planes
        self.b0 = unit(kind, inputs, b0, 1)
        self.b1a = unit(kind, inputs, b1a, 1)
        self.b1b = unit(kind, b1a, b1b, 3)
        self.b2a = unit(kind, inputs, b2a, 1)
        self.b2b = unit(kind, b2a, b2b, 3)
        self.b3a = _pool(kind, 3, time=3, stride=1)
        self.b3b = unit(kind, inputs, b3b, 1)

    def forward(self, x: Tensor) -> Tensor:
        """All branches' channels, N C T H W."""
        branches = (self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x)))
        return torch.cat(branches, dim=1)


def _pool(kind: UnitKind, size: int, time: int, stride: int = 2) -> SamePool:
    """Max pooling of time × size × size, which a 2D network does not do along time."""
    if kind == "2d" or time == 1:
        return SamePool((1, size, size), (1, stride, stride))
    return SamePool((time, size, size), (stride, stride, stride))


def inception_layers(
    kind: UnitKind, in_channels: int, width: float, stacked: int = 1
) -> tuple[dict[str, nn.Module], int]:
    """Inception-V1 up to its last average pooling: its layers by the names of `STAGES`, in order, and their planes.

    The first convolution of a 2D one may stack so many frames, which leaves one of them.
    """
    planes = [max(1, round(planes * width)) for planes in (64, 64, 192)]
    stacking = Unit3D(in_channels, planes[0], (stacked, 7, 7), (stacked, 2)) if stacked > 1 else None
    layers: dict[str, nn.Module] = {
        "Conv3d_1a_7x7": stacking or unit(kind, in_channels, planes[0], 7, stride=2),
        "MaxPool3d_2a_3x3": _pool(kind, 3, time=1),
        "Conv3d_2b_1x1": unit(kind, planes[0], planes[1], 1),
        "Conv3d_2c_3x3": unit(kind, planes[1], planes[2], 3),
        "MaxPool3d_3a_3x3": _pool(kind, 3, time=1),
    }
    inputs = planes[2]
    for name, published in MIXED.items():
        if name == "4b":
            layers["MaxPool3d_4a_3x3"] = _pool(kind, 3, time=3)
        elif name == "5b":
            layers["MaxPool3d_5a_2x2"] = _pool(kind, 2, time=2)
        branches = [max(1, round(planes * width)) for planes in published]
        layers[f"Mixed_{name}"] = Mixed(kind, inputs, branches)
        inputs = branches[0] + branches[2] + branches[4] + branches[5]
    return layers, inputs


class _Logits(nn.Module):
    """The classifier's convolution, under the name it has in the published layout."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        self.conv3d = conv3d(inputs, classes, (1, 1, 1), bias=True)


class I3D(VideoNetwork):
    """Inflated Inception-V1 (arXiv 1705.07750, kinetics-i3d), its state-dict keys those of pytorch-i3d.

    The last average pool spans two frames and the whole picture (7×7 of 224² pixels); the logits of what is
    left of time are averaged. Any number of frames and any size run.
    """

    kind: ClassVar[UnitKind] = "3d"
    head: ClassVar[str] = "logits"
    stages: ClassVar[tuple[tuple[str, ...], ...]] = STAGES
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = PARTS

    def __init__(self, classes: int, in_channels: int = 3, width: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        layers, inputs = inception_layers(self.kind, in_channels, width)
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.dropout = LaneDropout(dropout)
        self.logits = _Logits(inputs, classes)
        self.apply(initialise)
        nn.init.normal_(self.logits.conv3d.weight, 0.0, 0.01)

    def pool(self, activations: Tensor) -> Tensor:  # N D T H W → N D T'
        """Their mean over the picture and over each two neighbouring steps of time."""
        kernel = (min(2, activations.shape[2]), *activations.shape[3:])
        return F.avg_pool3d(activations, kernel, stride=1).flatten(2)

    def classify(self, features: Tensor) -> Tensor:  # N D T' → N classes
        """Dropout, the classifier's convolution, the mean of its logits over time."""
        logits: Tensor = self.logits.conv3d(self.dropout(features)[..., None, None])
        return logits.mean(dim=(2, 3, 4))


class S3D(I3D):
    """S3D: I3D with each convolution of k×k×k factored: 1×k×k → BN → ReLU → k×1×1 → BN → ReLU.

    Both have as many planes as the one that they stand for. Source: Xie et al. 2018 (arXiv 1712.04851), and
    torchvision's s3d.py, of which it has the parameters and multiply-accumulates; its paddings are I3D's, where
    torchvision's are even on both sides. TensorFlow's s3dg.py has a whole stem, and no batch normalisation after the
    k×1×1 convolutions.
    """

    kind: ClassVar[UnitKind] = "separable"


def initialise(module: nn.Module) -> None:
    """Convolutions N(0, √(2/fan_out)), biases 0."""
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
