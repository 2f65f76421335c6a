"""How a decoded frame must be turned and mirrored to be upright: its display matrix, read as players read it."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

from av.video.frame import VideoFrame

Filter = tuple[str, str]  # a filter of libavfilter and its argument
_NEAR = 1.0  # degrees from a right angle that count as one


@dataclass(frozen=True)
class Orientation:
    """The `filters` that make a frame upright, one after the other; none for one that is upright as it is.

    `sideways`: width and height change places.
    """

    filters: tuple[Filter, ...] = ()
    sideways: bool = False

    def __str__(self) -> str:
        return ", ".join(f"{name} {argument}".strip() for name, argument in self.filters)


UPRIGHT = Orientation()


def orientation_of(frame: VideoFrame, before: Orientation = UPRIGHT) -> Orientation:
    """The orientation by the frame's display matrix, the container's or its own; without one, that of `before`.

    A stream that carries matrices itself (H.264's and HEVC's SEI) repeats them at key frames only.
    """
    try:
        data: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # a workaround: PyAV 18 knows no types of side data that FFmpeg 8 added (Exif, views)
        return orientation(_turning(frame.rotation)) if frame.rotation else before
    return before if data is None else orientation(struct.unpack("=9i", bytes(data)))


def orientation(matrix: tuple[int, ...]) -> Orientation:
    """The orientation by a display matrix' nine numbers, as the ffmpeg program has it (`configure_input_video_filter`).

    A right angle, less than a degree off, is a turn, mirrored where the signs say so; at any other angle the picture
    is turned inside its own size.
    """
    a, b, _, c, d = matrix[:5]
    across, down = math.hypot(a, c), math.hypot(b, d)
    if not across or not down:
        return UPRIGHT
    degrees = round(math.degrees(math.atan2(b / down, a / across))) % 360
    if abs(degrees - 90) < _NEAR:
        return Orientation((("transpose", "cclock_flip" if c > 0 else "clock"),), sideways=True)
    if abs(degrees - 270) < _NEAR:
        return Orientation((("transpose", "clock_flip" if c < 0 else "cclock"),), sideways=True)
    if abs(degrees - 180) < _NEAR:
        mirrored = (("hflip", a), ("vflip", d))
        return Orientation(tuple((name, "") for name, sign in mirrored if sign < 0))
    if degrees:
        return Orientation((("rotate", f"{degrees}*PI/180"),))
    return Orientation((("vflip", ""),)) if d < 0 else UPRIGHT


def _turning(degrees: int) -> tuple[int, ...]:
    """The display matrix that turns counter-clockwise by so many degrees, without mirroring."""
    across, down = (round(2**16 * of(math.radians(degrees))) for of in (math.cos, math.sin))
    return (across, -down, 0, down, across, 0, 0, 0, 2**30)
