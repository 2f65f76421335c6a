"""The video ResNets: one network class for every form, at every depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from pretrain.models.compute.batchnorm import LaneBatchNorm
from pretrain.models.convolutions import Form, Kind, Stride, conv3d, convolution, midplanes, stem, temporal_strides
from pretrain.models.network import LaneDropout, VideoNetwork
from sharding.base.errors import UserError


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


def pointwise(inputs: int, outputs: int, stride: Stride = (1, 1), relu: bool = False) -> nn.Sequential:
    """A 1×1×1 convolution and its BN: N inputs T H W → N outputs ⌈T/t⌉ ⌈H/s⌉ ⌈W/s⌉."""
    return nn.Sequential(conv3d(inputs, outputs, (1, 1, 1), stride), LaneBatchNorm(outputs, relu=relu))


class ResidualBlock(nn.Module):
    """What basic blocks and bottlenecks share: a branch added to a shortcut, which is never factored."""

    def __init__(self, inputs: int, outputs: int, stride: Stride) -> None:
        super().__init__()
        self.downsample: nn.Module | None = None
        if stride != (1, 1) or inputs != outputs:
            self.downsample = pointwise(inputs, outputs, stride)

    def branch(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """The block's layers, of which the last, a BN, adds the shortcut before its ReLU."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """The block: N inputs T H W → N outputs ⌈T/t⌉ ⌈H/s⌉ ⌈W/s⌉."""
        return self.branch(x, x if self.downsample is None else self.downsample(x))


class BasicBlock(ResidualBlock):
    """Two 3×3×3 convolutions of the stage's kind; the first strides."""

    def __init__(self, kind: Kind, inputs: int, planes: int, stride: Stride, middle: int | None) -> None:
        super().__init__(inputs, planes, stride)
        first = convolution(kind, inputs, planes, stride, middle)
        second = convolution(kind, planes, planes, (1, 1), middle)
        self.conv1 = nn.Sequential(first, LaneBatchNorm(planes, relu=True))
        self.conv2 = nn.Sequential(second, LaneBatchNorm(planes, relu=True))

    def branch(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """The residual branch of N C T H W, to which its last layer adds the shortcut."""
        convolution, norm = self.conv2
        output: Tensor = norm(convolution(self.conv1(x)), shortcut)
        return output


class Bottleneck(ResidualBlock):
    """1×1×1, the 3×3×3 convolution of the stage's kind, which strides, 1×1×1 to `expansion` × planes."""

    def __init__(
        self, kind: Kind, inputs: int, planes: int, stride: Stride, middle: int | None, expansion: int
    ) -> None:
        super().__init__(inputs, planes * expansion, stride)
        second = convolution(kind, planes, planes, stride, middle)
        self.conv1 = pointwise(inputs, planes, relu=True)
        self.conv2 = nn.Sequential(second, LaneBatchNorm(planes, relu=True))
        self.conv3 = pointwise(planes, planes * expansion, relu=True)

    def branch(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """The residual branch of N C T H W, to which its last layer adds the shortcut."""
        convolution, norm = self.conv3
        output: Tensor = norm(convolution(self.conv2(self.conv1(x))), shortcut)
        return output


class VideoResNet(VideoNetwork):
    """A ResNet over clips, N C T H W → logits N classes; its state-dict keys are torchvision's.

    `frames` is the clip length it is built for: it decides which stages stride time (`temporal_strides`) and,
    R2D's stem apart, no weight's shape, so weights move between lengths and a clip of another length runs too.
    `pool1` halves height and width once more after the stem, as ImageNet's ResNets do. `block_midplanes` takes
    a (2+1)D block's mid-planes from its first convolution, as torchvision does, which is another network.
    """

    head: ClassVar[str] = "fc"
    stages: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("stem", "pool1"),
        ("layer1",),
        ("layer2",),
        ("layer3",),
        ("layer4",),
    )
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "stem": ("stem",),
        "conv2": ("layer1",),
        "conv3": ("layer2",),
        "conv4": ("layer3",),
        "conv5": ("layer4",),
    }

    def __init__(
        self,
        form: Form,
        depth: Depth,
        classes: int,
        frames: int,
        in_channels: int = 3,
        width: float = 1.0,
        dropout: float = 0.0,
        pool1: bool = False,
        block_midplanes: bool = False,
    ) -> None:
        super().__init__()
        self.frames = frames if form.stem == "folded" else None
        planes = [round(64 * 2**stage * width) for stage in range(4)]
        inputs = planes[0]
        self.stem = stem(form.stem, in_channels, inputs, width, frames)
        self.pool1 = nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)) if pool1 else nn.Identity()
        for index, time in enumerate(temporal_strides(form, frames)):
            stride = (time, 1 if index == 0 else 2)
            stage = _stage(form.stages[index], depth, index, inputs, planes[index], stride, block_midplanes)
            self.add_module(f"layer{index + 1}", stage)
            inputs = planes[index] * (depth.expansion or 1)
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        self.dropout = LaneDropout(dropout)
        self.fc = nn.Linear(inputs, classes)
        self.apply(initialise)

    def features(self, clips: Tensor) -> Tensor:  # N C T H W → N D
        """Pooled activations of conv5_x. Raises UserError for an R2D fed clips of another length."""
        if self.frames is not None and clips.shape[2] != self.frames:
            raise UserError(
                f"this R2D was built for clips of {self.frames} frames and was fed {clips.shape[2]}",
                "data.clip.frames",
                f"give it clips of {self.frames} frames, or take another form: all but r2d run at any length",
            )
        return super().features(clips)

    def pool(self, activations: Tensor) -> Tensor:  # N C T H W → N C
        """Their mean over time and picture."""
        pooled: Tensor = self.avgpool(activations)
        return pooled.flatten(1)

    def classify(self, features: Tensor) -> Tensor:  # N D → N classes
        """Dropout and the fully connected layer."""
        logits: Tensor = self.fc(self.dropout(features))
        return logits


def _stage(
    kind: Kind, depth: Depth, index: int, inputs: int, planes: int, stride: Stride, block_midplanes: bool
) -> nn.Sequential:
    blocks: list[nn.Module] = []
    for _ in range(depth.blocks[index]):
        middle = midplanes(inputs, planes) if block_midplanes else None
        if depth.expansion is None:
            blocks.append(BasicBlock(kind, inputs, planes, stride, middle))
        else:
            blocks.append(Bottleneck(kind, inputs, planes, stride, middle, depth.expansion))
        inputs, stride = planes * (depth.expansion or 1), (1, 1)
    return nn.Sequential(*blocks)


def initialise(module: nn.Module) -> None:
    """Convolutions N(0, √(2/fan_out)), the classifier N(0, 0.01) with bias 0; BN scale 1, bias 0."""
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.01)
        nn.init.zeros_(module.bias)
