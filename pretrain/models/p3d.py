"""P3D: a ResNet of pseudo-3D bottlenecks; a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

from torch import Tensor, nn

from pretrain.models.compute.batchnorm import LaneBatchNorm
from pretrain.models.convolutions import Stride, conv3d, stem
from pretrain.models.inception import SamePool
from pretrain.models.network import LaneDropout, VideoNetwork
from pretrain.models.resnet import DEPTHS, ResidualBlock, initialise, pointwise

Design = Literal["A", "B", "C"]
_DESIGNS: tuple[Design, ...] = ("A", "B", "C")
P3D_DEPTHS = tuple(depth for depth, blocks in DEPTHS.items() if blocks.expansion)


class P3DBlock(ResidualBlock):
    """A bottleneck whose middle is S, 1×3×3 over pictures, and T, 3×1×1 over time; its first 1×1×1 strides.

    A: T(S(x)). B: S(x) + T(x). C: (S(x) + T(S(x))) / 2. Each is followed by a ReLU, as S is by itself; without a
    design the middle is S alone. T and S have as many planes.
    """

    def __init__(self, design: Design | None, inputs: int, planes: int, stride: Stride, expansion: int) -> None:
        super().__init__(inputs, planes * expansion, stride)
        self.design = design
        self.conv1 = pointwise(inputs, planes, stride, relu=True)
        self.spatial = nn.Sequential(conv3d(planes, planes, (1, 3, 3)), LaneBatchNorm(planes, relu=True))
        if design:
            self.temporal = nn.Sequential(conv3d(planes, planes, (3, 1, 1)), LaneBatchNorm(planes, relu=True))
        self.conv3 = pointwise(planes, planes * expansion, relu=True)

    def branch(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """The residual branch of N C T H W, to which its last layer adds the shortcut."""
        x = self.conv1(x)
        spatial = self.spatial(x)
        if self.design in ("B", "C"):
            convolution, norm = self.temporal
            x = norm(convolution(x if self.design == "B" else spatial), spatial)
            x = x / 2 if self.design == "C" else x
        else:
            x = self.temporal(spatial) if self.design else spatial
        convolution, norm = self.conv3
        output: Tensor = norm(convolution(x), shortcut)
        return output


class P3D(VideoNetwork):
    """P3D ResNet over clips, N C T H W → logits N classes.

    A ResNet's stem of pictures, max pooling 2×3×3, and its four stages of bottlenecks. Those of the first three are of
    designs A, B, C in turn, and max pooling after each of them halves time; the last stage sees pictures alone. Depths
    50, 101 and 152 are called P3D-63, -131 and -199 after the layers that they have with the T ones. Any number of
    frames and any size run, 16 frames of 160² pixels in the paper.

    Source: Qiu et al. 2017 (arXiv 1711.10305), and the network that its authors published
    (pseudo-3d-residual-networks, deploy_p3d_resnet_kinetics.prototxt), of which depth 152 has the parameters, to the
    last. By that file C halves its sum and T has no ReLU of its own in B and C, which the paper leaves open.
    """

    head: ClassVar[str] = "fc"
    stages: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("stem", "pool1"),
        ("layer1", "pool2"),
        ("layer2", "pool3"),
        ("layer3", "pool4"),
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
        self, depth: int, classes: int, in_channels: int = 3, width: float = 1.0, dropout: float = 0.0
    ) -> None:
        super().__init__()
        expansion, inputs = DEPTHS[depth].expansion, round(64 * width)
        assert expansion is not None
        self.stem = stem("2d", in_channels, inputs, width, frames=1)
        self.pool1 = SamePool((2, 3, 3), (2, 2, 2))
        number = 0
        for stage, count in enumerate(DEPTHS[depth].blocks, start=1):
            blocks: list[nn.Module] = []
            planes = max(1, round(64 * 2 ** (stage - 1) * width))
            for block in range(count):
                design = _DESIGNS[number % 3] if stage < 4 else None
                stride = (1, 2 if stage > 1 and block == 0 else 1)
                blocks.append(P3DBlock(design, inputs, planes, stride, expansion))
                inputs, number = planes * expansion, number + 1
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            if stage < 4:
                self.add_module(f"pool{stage + 1}", SamePool((2, 1, 1), (2, 1, 1)))
        self.avgpool = nn.AdaptiveAvgPool3d(1)
        self.dropout = LaneDropout(dropout)
        self.fc = nn.Linear(inputs, classes)
        self.apply(initialise)

    def features(self, clips: Tensor) -> Tensor:  # N C T H W → N D
        """Pooled activations of conv5_x."""
        pooled: Tensor = self.avgpool(self.through_stages(clips))
        return pooled.flatten(1)

    def classify(self, features: Tensor) -> Tensor:  # N D → N classes
        """Dropout and the fully connected layer."""
        logits: Tensor = self.fc(self.dropout(features))
        return logits
