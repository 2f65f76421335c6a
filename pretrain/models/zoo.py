"""The zoo: a network's settings, and the network they describe."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from pretrain.models.c3d import C3D
from pretrain.models.compute.batchnorm import LaneBatchNorm
from pretrain.models.convolutions import FORMS
from pretrain.models.frame_networks import ConvNetLSTM, FusedTwoStream
from pretrain.models.inception import I3D, S3D
from pretrain.models.network import VideoNetwork
from pretrain.models.p3d import P3D, P3D_DEPTHS
from pretrain.models.resnet import DEPTHS, VideoResNet
from sharding.base.settings import Settings

Name = Literal[
    "r2d", "fr2d", "r3d", "mc2", "mc3", "mc4", "mc5", "rmc2", "rmc3", "rmc4", "rmc5", "r2plus1d", "r3drelu",
    "p3d", "s3d", "lstm", "fused3d", "i3d", "c3d",
]  # fmt: skip
NAMES: tuple[str, ...] = get_args(Name)
RESNET_ONLY = ("depth", "pool1", "midplanes")


class ModelSettings(Settings):
    """Which network: its name, its size, and what its variants differ in."""

    name: Annotated[Name, Field(description="the network's name")] = "r2plus1d"
    depth: Annotated[
        Literal[10, 16, 18, 26, 34, 50, 101, 152] | None,
        Field(
            description="layers of a ResNet; null: 34, p3d's 152 (p3d has 26, 50, 101 and 152); s3d, lstm, fused3d, "
            "i3d and c3d have no depth to set"
        ),
    ] = None
    width: Annotated[float, Field(ge=1 / 64, le=8, description="factor on the channels of every layer")] = 1.0
    dropout: Annotated[
        float, Field(ge=0, lt=1, description="share from 0 to 1 of the features dropped before the classifier")
    ] = 0.0
    in_channels: Annotated[
        int,
        Field(
            ge=1,
            le=1024,
            description="channels of the input: 3 for RGB, 2 for optical flow, 5 for both (fused3d); left out, those "
            "of a training run follow its data.clip.input",
        ),
    ] = 3
    pool1: Annotated[bool, Field(description="whether a ResNet has max pooling after its stem")] = False
    midplanes: Annotated[
        Literal["conv", "block"],
        Field(
            description="channels between r2plus1d's two convolutions: conv as in the paper; block as in torchvision"
        ),
    ] = "conv"
    eps: Annotated[
        float,
        Field(gt=0, le=1, description="added to the variance in batch normalisation; torchvision's weights have 1e-5"),
    ] = 1e-3

    batch_norm: Annotated[
        Literal["lane", "all"],
        Field(description="clips normalised together: those of a lane, or of all lanes, whatever the ranks"),
    ] = "lane"

    @model_validator(mode="before")
    @classmethod
    def _defaults_by_name(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        name = values.get("name", "r2plus1d")
        if name in FORMS:
            return {**values, "depth": 34} if values.get("depth") is None else values
        absent = [key for key in RESNET_ONLY if key != "depth" or name != "p3d"]
        asked = [key for key in absent if values.get(key) not in (None, False, "conv")]
        if name in NAMES and asked:
            raise ValueError(f"{name} has no {' and no '.join(asked)}; leave it out")
        if name == "p3d":
            return {**values, "depth": 152} if values.get("depth") is None else values
        return {"in_channels": 5, **values} if name == "fused3d" else values

    @model_validator(mode="after")
    def _what_the_network_has(self) -> ModelSettings:
        if self.name == "p3d" and self.depth not in P3D_DEPTHS:
            depths = ", ".join(map(str, P3D_DEPTHS))
            raise ValueError(
                f"p3d is made of bottlenecks, and depth {self.depth} of basic blocks; give one of {depths}"
            )
        if self.name == "fused3d" and self.in_channels != 5:
            raise ValueError(f"fused3d takes 5 channels, RGB and optical flow, not {self.in_channels}; leave it out")
        return self

    @model_validator(mode="after")
    def _midplanes_of_r2plus1d(self) -> ModelSettings:
        if self.midplanes == "block" and self.name != "r2plus1d":
            raise ValueError(f"midplanes=block is for r2plus1d; {self.name} has no mid-planes; leave it out")
        return self

    @property
    def label(self) -> str:
        """Name and depth in one word: r2plus1d-34, i3d."""
        return f"{self.name}-{self.depth}" if self.depth else self.name


def build_model(settings: ModelSettings, classes: int, frames: int, size: int = 112) -> VideoNetwork:
    """The network of these settings for `classes` classes and clips of `frames` frames of `size`² pixels.

    Freshly initialised from torch's default generator. `size` decides a weight's shape in C3D alone.
    Raises ValueError if classes or frames are below 1, UserError if the clips are too small for the network.
    """
    if classes < 1 or frames < 1:
        raise ValueError(f"a network needs at least 1 class and 1 frame, not {classes} and {frames}")
    model = _resnet(settings, classes, frames) if settings.name in FORMS else _baseline(settings, classes, frames, size)
    for module in model.modules():
        if isinstance(module, LaneBatchNorm):
            module.eps = settings.eps
    return model


def _resnet(settings: ModelSettings, classes: int, frames: int) -> VideoResNet:
    assert settings.depth is not None
    return VideoResNet(
        FORMS[settings.name],
        DEPTHS[settings.depth],
        classes=classes,
        frames=frames,
        in_channels=settings.in_channels,
        width=settings.width,
        dropout=settings.dropout,
        pool1=settings.pool1,
        block_midplanes=settings.midplanes == "block",
    )


def _baseline(settings: ModelSettings, classes: int, frames: int, size: int) -> VideoNetwork:
    channels, width, dropout = settings.in_channels, settings.width, settings.dropout
    if settings.name == "c3d":
        return C3D(classes, frames, size, channels, width, dropout)
    if settings.name == "fused3d":
        return FusedTwoStream(classes, frames, width, dropout)
    if settings.name == "p3d":
        assert settings.depth is not None
        return P3D(settings.depth, classes, channels, width, dropout)
    made = {"i3d": I3D, "s3d": S3D, "lstm": ConvNetLSTM}[settings.name]
    return made(classes, channels, width, dropout)
