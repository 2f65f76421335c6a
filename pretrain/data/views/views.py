"""The settings of a clip, and the view of it: which size, crop and flip of its pictures are shown. No torch here."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pretrain.data.views.frames import Times, clip_frames, clip_frames_at, needed_frames, needed_frames_at
from sharding.base.settings import Settings, unit

MEAN = (0.43216, 0.394666, 0.37645)
STD = (0.22803, 0.22145, 0.216989)
FLOW_MEAN = (0.0046635, 0.0046261)  # R(2+1)D's, of Farneback flow in pixels of 128 x 171 frames
FLOW_STD = (0.972347, 0.755146)
RESIZE = (128, 171)
MOST_FRAMES, LARGEST_CROP = 10_000, 4_096  # beyond any network's reach, and within that of arithmetic on sizes
LARGEST_EDGE = 2**15  # of a picture that the crop is taken from
VIEW_RANDOMS = 4  # random numbers that `train_view` takes

Input = Literal["rgb", "flow", "rgb+flow"]
Positive = Annotated[float, Field(gt=0)]
Edge = Annotated[int, Field(ge=8, le=LARGEST_EDGE)]


class Normalisation(Settings):
    """A network's input is (x - mean) / std in each channel; x is RGB / 255, flow in pixels, or one after the other."""

    mean: Annotated[
        tuple[float, ...], Field(min_length=2, max_length=5, description="mean of each channel, taken off the input")
    ] = MEAN
    std: Annotated[
        tuple[Positive, ...],
        Field(min_length=2, max_length=5, description="standard deviation of each channel, which divides the input"),
    ] = STD

    @model_validator(mode="after")
    def _as_many(self) -> Self:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {len(self.mean)} values and std {len(self.std)}; give both, each a value a channel"
            )
        return self


NORMALISATIONS: dict[Input, Normalisation] = {
    "rgb": Normalisation(),
    "flow": Normalisation(mean=FLOW_MEAN, std=FLOW_STD),
    "rgb+flow": Normalisation(mean=MEAN + FLOW_MEAN, std=STD + FLOW_STD),
}


class ClipSettings(Settings):
    """What one clip is, in frames and pixels."""

    input: Annotated[
        Input,
        Field(
            description="rgb: pictures; flow: the optical flow that `reelscale shard` stored beside them, computed as "
            "they are decoded where it stored none; rgb+flow: both"
        ),
    ] = "rgb"
    frames: Annotated[
        int, Field(json_schema_extra=unit("frames"), ge=1, le=MOST_FRAMES, description="frames in a clip")
    ] = 16
    stride: Annotated[
        int,
        Field(
            json_schema_extra=unit("frames"),
            ge=1,
            le=10**6,
            description="stored frames from one frame of a clip to the next",
        ),
    ] = 1
    fps: Annotated[
        float | None,
        Field(
            json_schema_extra=unit("frames a second"),
            gt=0,
            le=1000,
            description="frames a second of a clip, whatever the video's own rate; replaces stride",
        ),
    ] = None
    short_edge: Annotated[
        tuple[Edge, Edge] | None,
        Field(
            json_schema_extra=unit("pixels"),
            description="lowest and highest short edge before the crop, in pixels, the aspect ratio kept; replaces "
            "resize; a random one in training, the lowest in testing",
        ),
    ] = None
    resize: Annotated[
        tuple[Edge, Edge] | None,
        Field(
            json_schema_extra=unit("pixels"),
            description="height and width before the crop, in pixels; the aspect ratio is not kept",
        ),
    ] = RESIZE
    crop: Annotated[
        int,
        Field(
            json_schema_extra=unit("pixels"),
            ge=8,
            le=LARGEST_CROP,
            description="side of the square crop, in pixels: a random crop in training, the centre in testing",
        ),
    ] = 112
    flip: Annotated[
        bool, Field(description="mirror half of the training clips; turn it off where left and right are classes")
    ] = True
    normalisation: Annotated[Normalisation, Field(description="mean and deviation of the network's input")] = (
        Normalisation()
    )

    @property
    def channels(self) -> int:
        """3 (red, green, blue), 2 (dx, dy), or 5 (both)."""
        return len(NORMALISATIONS[self.input].mean)

    def needed_frames(self, times: Times) -> int:
        """Of a video whose frames are shown at these seconds: a clip may begin at frame 0, …, frames - needed.

        Without `fps` only the number of the times matters.
        """
        if self.fps is None:
            return needed_frames(self.frames, self.stride)
        return needed_frames_at(times, self.frames, self.fps)

    def frame_numbers(self, times: Times, start: int) -> list[int]:
        """The frame numbers of the clip that begins at frame `start` of such a video; a short one is looped."""
        if self.fps is None:
            return clip_frames(len(times), start, self.frames, self.stride)
        return clip_frames_at(times, start, self.frames, self.fps)

    @model_validator(mode="before")
    @classmethod
    def _defaults_that_follow(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        follow: dict[str, Any] = {"resize": None} if values.get("short_edge") is not None else {}
        if (shown := values.get("input")) in ("flow", "rgb+flow"):
            follow["normalisation"] = NORMALISATIONS[shown]
        return follow | values

    @model_validator(mode="after")
    def _one_rate(self) -> Self:
        if self.fps is not None and self.stride > 1:
            raise ValueError(
                f"stride {self.stride} and fps {self.fps:g} both say how far frames lie apart; leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.short_edge is None:
            if self.resize is None:
                raise ValueError("neither resize nor short_edge says how large pictures are; give one of them")
            if self.crop > min(self.resize):
                raise ValueError(
                    f"crop {self.crop} is larger than resize {self.resize[0]} x {self.resize[1]}; make crop smaller"
                )
            return self
        low, high = self.short_edge
        if self.resize is not None:
            raise ValueError("resize and short_edge both say how large pictures are; leave one of them out")
        if low > high:
            raise ValueError(f"short_edge {low} to {high} holds no size; give the lowest first")
        if self.crop > low:
            raise ValueError(f"crop {self.crop} is larger than the lowest short_edge, {low}; make crop smaller")
        return self

    @model_validator(mode="after")
    def _a_value_a_channel(self) -> Self:
        count = len(self.normalisation.mean)
        if count != self.channels:
            raise ValueError(
                f"normalisation has {count} values and a clip of input {self.input} {self.channels} channels; give "
                f"mean and std {self.channels} values each, or leave normalisation out"
            )
        return self


@dataclass(frozen=True)
class View:
    """The part of a clip that is shown, in pixels.

    Resized to `size` (height, width), the square crop whose first row and column are `top` and `left`, mirrored or not.
    """

    size: tuple[int, int]
    top: int
    left: int
    flip: bool


def train_view(clip: ClipSettings, source: tuple[int, int], randoms: Sequence[float]) -> View:
    """A uniformly random size, crop and flip of stored pictures of `source` (height, width).

    `randoms` are uniform numbers in [0, 1), `VIEW_RANDOMS` of them: for the top, the left, the flip and the short edge.
    """
    if clip.short_edge is None:
        size = _size(clip, source, 0)
    else:
        low, high = clip.short_edge
        size = _size(clip, source, low + int(randoms[3] * (high - low + 1)))
    return View(
        size=size,
        top=int(randoms[0] * (size[0] - clip.crop + 1)),
        left=int(randoms[1] * (size[1] - clip.crop + 1)),
        flip=clip.flip and randoms[2] < 0.5,
    )


def centre_view(clip: ClipSettings, source: tuple[int, int]) -> View:
    """The centre crop, not mirrored, at the lowest short edge, of stored pictures of `source` (height, width)."""
    height, width = _size(clip, source, clip.short_edge[0] if clip.short_edge else 0)
    return View(size=(height, width), top=(height - clip.crop) // 2, left=(width - clip.crop) // 2, flip=False)


def evaluation_views(clip: ClipSettings, source: tuple[int, int], crops: int) -> list[View]:
    """The centre view and, where `crops` is 3, those at both ends of the picture's longer side, the centre second.

    Left, centre and right of a picture that is as wide as high or wider, else top, centre and bottom; in the middle
    along the other side. Source: SlowFast's `uniform_crop`, its centre rounded down as Caffe2's video input has it.
    """
    centre = centre_view(clip, source)
    if crops == 1:
        return [centre]
    height, width = centre.size
    if height > width:
        return [replace(centre, top=0), centre, replace(centre, top=height - clip.crop)]
    return [replace(centre, left=0), centre, replace(centre, left=width - clip.crop)]


def _size(clip: ClipSettings, source: tuple[int, int], edge: int) -> tuple[int, int]:
    """`resize`, or the source's size with this short edge, its long one rounded to the nearest."""
    if clip.resize is not None:
        return clip.resize
    short = min(source)
    height, width = ((2 * side * edge + short) // (2 * short) for side in source)
    return height, width
