"""I3D: Inception-V1 inflated to clips, with TensorFlow's SAME padding; a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.compute.batchnorm import LaneBatchNorm
from pretrain.models.convolutions import conv3d
from pretrain.models.network import LaneDropout, VideoNetwork

Triple = tuple[int, int, int]

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

    def __init__(self, inputs: int, outputs: int, kernel: Triple, stride: int = 1) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, (stride, stride, stride)
        # At stride 1 SAME is half the kernel on both sides, whatever the length, and the convolution pads.
        self.conv3d = conv3d(inputs, outputs, kernel, (stride, stride), padding=None if stride == 1 else (0, 0, 0))
        self.bn = LaneBatchNorm(outputs, momentum=_MOMENTUM, relu=True)

    def forward(self, x: Tensor) -> Tensor:
        """Activations N C T H W of the same layout."""
        if self.stride != (1, 1, 1):
            x = pad_same(x, self.kernel, self.stride)
        normalised: Tensor = self.bn(self.conv3d(x))
        return normalised


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

    def __init__(self, inputs: int, planes: list[int]) -> None:
        super().__init__()
        b0, b1a, b1b, b2a, b2b, b3b = planes
        self.b0 = Unit3D(inputs, b0, (1, 1, 1))
        self.b1a = Unit3D(inputs, b1a, (1, 1, 1))
        self.b1b = Unit3D(b1a, b1b, (3, 3, 3))
        self.b2a = Unit3D(inputs, b2a, (1, 1, 1))
        self.b2b = Unit3D(b2a, b2b, (3, 3, 3))
        self.b3a = SamePool((3, 3, 3), (1, 1, 1))
        self.b3b = Unit3D(inputs, b3b, (1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """All branches' channels, N C T H W."""
        branches = (self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(self.b3a(x)))
        return torch.cat(branches, dim=1)


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

    head: ClassVar[str] = "logits"
    stages: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("Conv3d_1a_7x7", "MaxPool3d_2a_3x3", "Conv3d_2b_1x1", "Conv3d_2c_3x3", "MaxPool3d_3a_3x3"),
        ("Mixed_3b", "Mixed_3c", "MaxPool3d_4a_3x3"),
        ("Mixed_4b", "Mixed_4c", "Mixed_4d", "Mixed_4e", "Mixed_4f", "MaxPool3d_5a_2x2"),
        ("Mixed_5b", "Mixed_5c"),
    )
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "stem": ("Conv3d_1a_7x7",),
        "conv2": ("Conv3d_2b_1x1", "Conv3d_2c_3x3"),
        **{f"conv{number}": tuple(f"Mixed_{name}" for name in MIXED if name[0] == number) for number in "345"},
    }

    def __init__(self, classes: int, in_channels: int = 3, width: float = 1.0, dropout: float = 0.0) -> None:
        super().__init__()
        planes = [max(1, round(planes * width)) for planes in (64, 64, 192)]
        self.Conv3d_1a_7x7 = Unit3D(in_channels, planes[0], (7, 7, 7), stride=2)
        self.MaxPool3d_2a_3x3 = SamePool((1, 3, 3), (1, 2, 2))
        self.Conv3d_2b_1x1 = Unit3D(planes[0], planes[1], (1, 1, 1))
        self.Conv3d_2c_3x3 = Unit3D(planes[1], planes[2], (3, 3, 3))
        self.MaxPool3d_3a_3x3 = SamePool((1, 3, 3), (1, 2, 2))
        inputs = planes[2]
        for name, published in MIXED.items():
            if name == "4b":
                self.MaxPool3d_4a_3x3 = SamePool((3, 3, 3), (2, 2, 2))
            elif name == "5b":
                self.MaxPool3d_5a_2x2 = SamePool((2, 2, 2), (2, 2, 2))
            branches = [max(1, round(planes * width)) for planes in published]
            self.add_module(f"Mixed_{name}", Mixed(inputs, branches))
            inputs = branches[0] + branches[2] + branches[4] + branches[5]
        self.dropout = LaneDropout(dropout)
        self.logits = _Logits(inputs, classes)
        self.apply(_initialise)
        nn.init.normal_(self.logits.conv3d.weight, 0.0, 0.01)

    def pool(self, activations: Tensor) -> Tensor:  # N D T H W → N D T'
        """Their mean over the picture and over each two neighbouring steps of time."""
        kernel = (min(2, activations.shape[2]), *activations.shape[3:])
        return F.avg_pool3d(activations, kernel, stride=1).flatten(2)

    def classify(self, features: Tensor) -> Tensor:  # N D T' → N classes
        """Dropout, the classifier's convolution, the mean of its logits over time."""
        logits: Tensor = self.logits.conv3d(self.dropout(features)[..., None, None])
        return logits.mean(dim=(2, 3, 4))


def _initialise(module: nn.Module) -> None:
    """Convolutions N(0, √(2/fan_out)), the classifier N(0, 0.01) after that, biases 0."""
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
