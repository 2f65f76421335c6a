"""C3D with batch normalisation, as VMZ has it: a baseline."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from pretrain.models.compute.batchnorm import LaneBatchNorm
from pretrain.models.convolutions import conv3d
from pretrain.models.network import LaneDropout, VideoNetwork
from sharding.base.errors import UserError

_GROUPS = ((64,), (128,), (256, 256), (512, 512), (512, 512))
_FC = 4096


class C3D(VideoNetwork):
    """Five groups of 3×3×3 convolutions with biases and BN, two fully connected layers, and the classifier.

    Pool1 leaves time alone; each of the others halves time, height and width, odd lengths rounded down. fc6
    is built for clips of `frames` frames of `size`² pixels (16 and 112 in VMZ), and other clips do not fit.
    `dropout` is applied after fc6 and after fc7. Source: VMZ's c3d_model.py.

    Raises UserError if nothing of such a clip is left to fc6.
    """

    head: ClassVar[str] = "fc8"
    stages: ClassVar[tuple[tuple[str, ...], ...]] = tuple((f"conv{group}", f"pool{group}") for group in range(1, 6))
    parts: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "stem": ("conv1",),
        **{name: (name,) for name in ("conv2", "conv3", "conv4", "conv5", "fc6", "fc7")},
    }

    def __init__(self, classes: int, frames: int, size: int, in_channels: int, width: float, dropout: float) -> None:
        super().__init__()
        time, space = frames // 16, size // 32
        if not time or not space:
            raise UserError(
                f"C3D halves time four times and space five, and {frames} frames of {size}² pixels do not last",
                "the clips' frames and size",
                "give it clips of at least 16 frames and 32 pixels, or take another network",
            )
        self.frames, self.size = frames, size
        inputs = in_channels
        for number, group in enumerate(_GROUPS, start=1):
            layers: list[nn.Module] = []
            for planes in (round(planes * width) for planes in group):
                layers += [conv3d(inputs, planes, (3, 3, 3), bias=True), LaneBatchNorm(planes, relu=True)]
                inputs = planes
            kernel = (1, 2, 2) if number == 1 else (2, 2, 2)
            self.add_module(f"conv{number}", nn.Sequential(*layers))
            self.add_module(f"pool{number}", nn.MaxPool3d(kernel, kernel))
        hidden = round(_FC * width)
        self.fc6 = nn.Linear(inputs * time * space**2, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.relu = nn.ReLU(inplace=True)
        self.dropout = LaneDropout(dropout)
        self.fc8 = nn.Linear(hidden, classes)
        self.apply(_initialise)

    def features(self, clips: Tensor) -> Tensor:  # N C T H W → N 4096
        """fc7's activations. Raises UserError for clips of another shape than it was built for."""
        frames, height, width = clips.shape[2:]
        if frames // 16 != self.frames // 16 or {height // 32, width // 32} != {self.size // 32}:
            raise UserError(
                f"this C3D was built for {self.frames} frames of {self.size}² pixels, not {frames} of {height}×{width}",
                "data.clip",
                f"give it clips of {self.frames} frames and a crop of {self.size}",
            )
        x = self.through_stages(clips)
        x = self.dropout(self.relu(self.fc6(x.flatten(1))))
        features: Tensor = self.relu(self.fc7(x))
        return features

    def classify(self, features: Tensor) -> Tensor:  # N 4096 → N classes
        """Dropout and the last fully connected layer."""
        logits: Tensor = self.fc8(self.dropout(features))
        return logits


def _initialise(module: nn.Module) -> None:
    """Convolutions N(0, √(2/fan_out)), fully connected layers N(0, 0.01), biases 0."""
    if isinstance(module, nn.Conv3d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0.0, 0.01)
    if isinstance(module, nn.Conv3d | nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
