"""Views of a clip: resize, crop and flip of planes, their conversion to RGB, and the network's normalisation."""

from typing import Annotated, Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator

from pretrain.data.clips import needed_frames
from pretrain.data.decode import Planes
from sharding.settings import Settings

MEAN = (0.43216, 0.394666, 0.37645)
STD = (0.22803, 0.22145, 0.216989)
_KR_KB = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}


Positive = Annotated[float, Field(gt=0)]


MOST_FRAMES, LARGEST_CROP = 10_000, 4_096  # beyond any network's reach, and within that of arithmetic on sizes


class Normalisation(Settings):
    """What a network of RGB clips was trained on: (x / 255 - mean) / std, a value a channel."""

    mean: tuple[float, float, float] = MEAN
    std: tuple[Positive, Positive, Positive] = STD


class ClipSettings(Settings):
    """What one clip is, in frames and pixels."""

    frames: Annotated[int, Field(ge=1, le=MOST_FRAMES, description="frames a clip")] = 16
    stride: Annotated[int, Field(ge=1, description="frames from one to the next")] = 1
    resize: Annotated[
        tuple[Annotated[int, Field(ge=8)], Annotated[int, Field(ge=8)]],
        Field(description="height, width before the crop; the aspect ratio is not kept (R(2+1)D's 128 x 171)"),
    ] = (128, 171)
    crop: Annotated[
        int, Field(ge=8, le=LARGEST_CROP, description="side of the square crop: random in training, centre in testing")
    ] = 112
    flip: Annotated[
        bool, Field(description="mirror half of the training clips; off where left and right are classes")
    ] = True
    normalisation: Normalisation = Normalisation()

    @property
    def needed(self) -> int:
        """Consecutive stored frames that a clip spans."""
        return needed_frames(self.frames, self.stride)

    @model_validator(mode="after")
    def _crop_fits(self) -> Self:
        if self.crop > min(self.resize):
            raise ValueError(
                f"crop {self.crop} is larger than resize {self.resize[0]} x {self.resize[1]}; make crop smaller"
            )
        return self


class View(Settings):
    """Where the crop of a resized clip lies, in pixels, and whether it is mirrored."""

    top: int
    left: int
    flip: bool


def train_view(clip: ClipSettings, randoms: tuple[float, float, float]) -> View:
    """A uniformly random crop and flip from three uniform numbers in [0, 1)."""
    height, width = clip.resize
    return View(
        top=int(randoms[0] * (height - clip.crop + 1)),
        left=int(randoms[1] * (width - clip.crop + 1)),
        flip=clip.flip and randoms[2] < 0.5,
    )


def centre_view(clip: ClipSettings) -> View:
    """The centre crop, not mirrored."""
    height, width = clip.resize
    return View(top=(height - clip.crop) // 2, left=(width - clip.crop) // 2, flip=False)


def rgb_clip(planes: Planes, clip: ClipSettings, view: View) -> torch.Tensor:
    """Planes to the view's RGB: uint8 [3, T, crop, crop], full range.

    Luma and chroma are resized bilinearly to the same size before the crop, so a crop may begin between chroma
    samples; the conversion is BT.601's or BT.709's for limited range, as the planes say.
    """
    size = clip.resize
    rows = slice(view.top, view.top + clip.crop)
    columns = slice(view.left, view.left + clip.crop)
    y = _resized(torch.from_numpy(planes.y).unsqueeze(1), size)[:, 0, rows, columns]  # T H W
    uv = _resized(torch.from_numpy(planes.uv), size)[:, :, rows, columns] - 128.0  # T 2 H W
    y = (y - 16.0) * (255.0 / 219.0)
    u, v = uv[:, 0] * (255.0 / 224.0), uv[:, 1] * (255.0 / 224.0)
    kr, kb = _KR_KB[planes.matrix]
    kg = 1.0 - kr - kb
    red = y + 2.0 * (1.0 - kr) * v
    green = y - (2.0 * kb * (1.0 - kb) / kg) * u - (2.0 * kr * (1.0 - kr) / kg) * v
    blue = y + 2.0 * (1.0 - kb) * u
    rgb = torch.stack([red, green, blue]).round_().clamp_(0.0, 255.0).to(torch.uint8)  # 3 T H W
    return rgb.flip(-1) if view.flip else rgb


def _resized(frames: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    frames = frames.to(torch.float32)
    if tuple(frames.shape[-2:]) == tuple(size):
        return frames
    shrinks = frames.shape[-2] > size[0] or frames.shape[-1] > size[1]
    return F.interpolate(frames, size=size, mode="bilinear", align_corners=False, antialias=shrinks)


def normalise(clips: torch.Tensor, by: Normalisation) -> torch.Tensor:
    """uint8 [N, 3, T, H, W] to float32, (x / 255 - mean) / std per channel, where the clips lie."""
    mean = torch.tensor(by.mean, device=clips.device).mul(255.0).view(1, 3, 1, 1, 1)
    scale = torch.tensor(by.std, device=clips.device).mul(255.0).reciprocal().view(1, 3, 1, 1, 1)
    return (clips.to(torch.float32) - mean) * scale
