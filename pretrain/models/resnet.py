"""The video ResNets: one network class for every form, at every depth."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pretrain.models.batchnorm import LaneBatchNorm
from pretrain.models.convolutions import FORMS, Form, Kind, Stride, convolution, stem, temporal_strides
from sharding.settings import Settings


class ModelSettings(Settings):
    """Which network: its form (`name`), depth, width factor, and the dropout before its classifier."""

    name: Literal["r2plus1d"] = "r2plus1d"
    depth: Literal[10, 16, 18, 26, 34, 50, 101, 152] = 34
    width: float = Field(default=1.0, ge=1 / 64, le=8)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    in_channels: int = Field(default=3, ge=1)


@dataclass(frozen=True)
class Depth:
    """How many blocks each stage has; `expansion` is None for basic blocks, else the bottlenecks'."""

    blocks: tuple[int, int, int, int]
    expansion: int | None = None


DEPTHS: dict[int, Depth] = {
    10: Depth((1, 1, 1, 1)),
    16: Depth((2, 2, 2, 1)),
    18: Depth((2, 2, 2, 2)),
    26: Depth((2, 2, 2, 2), expansion=1),
    34: Depth((3, 4, 6, 3)),
    50: Depth((3, 4, 6, 3), expansion=4),
    101: Depth((3, 4, 23, 3), expansion=4),
    152: Depth((3, 8, 36, 3), expansion=4),
}


def _pointwise(inputs: int, outputs: int, stride: Stride = (1, 1)) -> list[nn.Module]:
    time, space = stride
    unit = nn.Conv3d(inputs, outputs, 1, stride=(time, space, space), bias=False)
    return [unit, LaneBatchNorm(outputs)]


class _Block(nn.Module):
    """What basic blocks and bottlenecks share: a branch added to a shortcut, which is never factored."""

    def __init__(self, inputs: int, outputs: int, stride: Stride) -> None:
        super().__init__()
        self.downsample: nn.Module | None = None
        if stride != (1, 1) or inputs != outputs:
            self.downsample = nn.Sequential(*_pointwise(inputs, outputs, stride))
        self.relu = nn.ReLU(inplace=True)

    def branch(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:  # N inputs T H W → N outputs ⌈T/t⌉ ⌈H/s⌉ ⌈W/s⌉
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.branch(x) + shortcut)


class BasicBlock(_Block):
    """Two 3×3×3 convolutions of the stage's kind; the first strides."""

    def __init__(self, kind: Kind, inputs: int, planes: int, stride: Stride) -> None:
        super().__init__(inputs, planes, stride)
        first = convolution(kind, inputs, planes, stride)
        second = convolution(kind, planes, planes, (1, 1))
        self.conv1 = nn.Sequential(first, LaneBatchNorm(planes), nn.ReLU(inplace=True))
        self.conv2 = nn.Sequential(second, LaneBatchNorm(planes))

    def branch(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x))


class Bottleneck(_Block):
    """1×1×1, the 3×3×3 convolution of the stage's kind, which strides, 1×1×1 to `expansion` × planes."""

    def __init__(self, kind: Kind, inputs: int, planes: int, stride: Stride, expansion: int) -> None:
        super().__init__(inputs, planes * expansion, stride)
        middle = convolution(kind, planes, planes, stride)
        self.conv1 = nn.Sequential(*_pointwise(inputs, planes), nn.ReLU(inplace=True))
        self.conv2 = nn.Sequential(middle, LaneBatchNorm(planes), nn.ReLU(inplace=True))
        self.conv3 = nn.Sequential(*_pointwise(planes, planes * expansion))

    def branch(self, x: Tensor) -> Tensor:
        return self.conv3(self.conv2(self.conv1(x)))


class VideoResNet(nn.Module):
    """A ResNet over clips, N C T H W → logits N classes; its state-dict keys are torchvision's.

    `frames` is the clip length it is built for: it decides which stages stride time (`temporal_strides`) and
    no weight's shape, so weights move between lengths and a clip of another length runs too. There is no
    pooling after the stem, at any depth.
    """

    head: ClassVar[str] = "fc"  # the classifier's name in the state dict

    def __init__(
        self,
        form: Form,
        depth: Depth,
        classes: int,
        frames: int,
        in_channels: int,
        width: float,
        dropout: float,
    ) -> None:
        super().__init__()
        if classes < 1 or frames < 1:
            raise ValueError(f"a network needs at least 1 class and 1 frame, not {classes} and {frames}")
        planes = [round(64 * 2**stage * width) for stage in range(4)]
        inputs = planes[0]
        self.stem = stem(form.stem, in_channels, inputs, width)
        for index, time in enumerate(temporal_strides(form, frames)):
            stride = (time, 1 if index == 0 else 2)
            stage = _stage(form.stages[index], depth, index, inputs, planes[index], stride)
            self.add_module(f"layer{index + 1}", stage)
            inputs = planes[index] * (depth.expansion or 1)
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(inputs, classes)
        self.apply(_initialise)

    def forward(self, clips: Tensor) -> Tensor:  # N C T H W → N classes
        x = self.stem(clips.contiguous(memory_format=torch.channels_last_3d))  # a third faster on a CPU
        for index in range(1, 5):
            x = self.get_submodule(f"layer{index}")(x)
        return self.fc(self.dropout(self.avgpool(x).flatten(1)))


def _stage(kind: Kind, depth: Depth, index: int, inputs: int, planes: int, stride: Stride) -> nn.Sequential:
    blocks: list[nn.Module] = []
    for _ in range(depth.blocks[index]):
        if depth.expansion is None:
            blocks.append(BasicBlock(kind, inputs, planes, stride))
        else:
            blocks.append(Bottleneck(kind, inputs, planes, stride, depth.expansion))
        inputs, stride = planes * (depth.expansion or 1), (1, 1)
    return nn.Sequential(*blocks)


def _initialise(module: nn.Module) -> None:
    """Convolutions N(0, √(2/fan_out)), the classifier N(0, 0.01) with bias 0; BN scale 1, bias 0."""
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.01)
        nn.init.zeros_(module.bias)


def build_model(settings: ModelSettings, classes: int, frames: int) -> VideoResNet:
    """The network of these settings for `classes` classes and clips of `frames` frames, freshly initialised.

    It draws from torch's default generator. Raises ValueError if either is below 1.
    """
    return VideoResNet(
        FORMS[settings.name],
        DEPTHS[settings.depth],
        classes=classes,
        frames=frames,
        in_channels=settings.in_channels,
        width=settings.width,
        dropout=settings.dropout,
    )
