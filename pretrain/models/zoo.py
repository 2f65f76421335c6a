"""The zoo: a network's settings, and the network they describe."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import Field, model_validator

from pretrain.models.c3d import C3D
from pretrain.models.compute.batchnorm import LaneBatchNorm
from pretrain.models.convolutions import FORMS
from pretrain.models.inception import I3D
from pretrain.models.network import VideoNetwork
from pretrain.models.resnet import DEPTHS, VideoResNet
from sharding.base.settings import Settings

Name = Literal[
    "r2d", "fr2d", "r3d", "mc2", "mc3", "mc4", "mc5", "rmc2", "rmc3", "rmc4", "rmc5", "r2plus1d", "i3d", "c3d"
]
NAMES: tuple[str, ...] = get_args(Name)
RESNET_ONLY = ("depth", "pool1", "midplanes")


class ModelSettings(Settings):
    """Which network: its name, its size, and what its variants differ in."""

    name: Annotated[Name, Field(description="the network's name")] = "r2plus1d"
    depth: Annotated[
        Literal[10, 16, 18, 26, 34, 50, 101, 152] | None,
        Field(description="layers of a ResNet; null: 34; i3d and c3d have no depth to set"),
    ] = None
    width: Annotated[float, Field(ge=1 / 64, le=8, description="factor on the channels of every layer")] = 1.0
    dropout: Annotated[
        float, Field(ge=0, lt=1, description="share from 0 to 1 of the features dropped before the classifier")
    ] = 0.0
    in_channels: Annotated[
        int, Field(ge=1, le=1024, description="channels of the input: 3 for RGB, 2 for optical flow")
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
    def _depth_of_resnets(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        name = values.get("name", "r2plus1d")
        if name in FORMS:
            return {**values, "depth": 34} if values.get("depth") is None else values
        given = [key for key in RESNET_ONLY if values.get(key) not in (None, False, "conv")]
        if name in NAMES and given:
            raise ValueError(f"{name} has no {' and no '.join(given)}; leave it out")
        return values

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
    model: VideoNetwork
    if settings.name == "i3d":
        model = I3D(classes, settings.in_channels, settings.width, settings.dropout)
    elif settings.name == "c3d":
        model = C3D(classes, frames, size, settings.in_channels, settings.width, settings.dropout)
    else:
        assert settings.depth is not None
        model = VideoResNet(
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
    for module in model.modules():
        if isinstance(module, LaneBatchNorm):
            module.eps = settings.eps
    return model
