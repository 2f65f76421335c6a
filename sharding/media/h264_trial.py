"""A tiny video encoded and decoded, which shows whether PyAV's FFmpeg can do what sharding and training need."""

from __future__ import annotations

import io
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np

from sharding.media.h264 import open_h264, x264_options

_FRAMES, _EDGE = 8, 64
_NEAR = 8.0  # grey levels that a pixel of a decoded frame may differ in the mean


@dataclass(frozen=True)
class H264Trial:
    """PyAV's version and its libavcodec's; the frames that were encoded and decoded, and their mean difference."""

    av: str
    avcodec: str
    encoded: int
    decoded: int
    difference: float

    @property
    def is_good(self) -> bool:
        """Whether all frames came back much as they were."""
        return self.decoded == self.encoded and self.difference <= _NEAR


def try_h264() -> H264Trial:
    """A few frames of a moving slope, encoded as shards are and decoded again. Raises what FFmpeg raises."""
    rows, columns = np.mgrid[:_EDGE, :_EDGE]
    pictures = [((rows + 2 * columns + 5 * number) % 200 + 20).astype(np.uint8) for number in range(_FRAMES)]
    frames = [av.VideoFrame.from_ndarray(picture, format="gray").reformat(format="yuv420p") for picture in pictures]
    sink = io.BytesIO()
    container, stream = open_h264(sink, frames[0], Fraction(25), _FRAMES, x264_options(_FRAMES, "ultrafast", 18))
    for number, frame in enumerate(frames):
        frame.pts, frame.time_base = 3600 * number, stream.time_base
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))
    container.close()
    with av.open(io.BytesIO(sink.getvalue()), "r") as video:
        luma = [frame.to_ndarray()[:_EDGE].astype(float) for frame in video.decode(video=0)]
    sent = [frame.to_ndarray()[:_EDGE].astype(float) for frame in frames]
    difference = max((float(abs(a - b).mean()) for a, b in zip(luma, sent, strict=False)), default=0.0)
    major, minor, patch = av.library_versions["libavcodec"]
    return H264Trial(av.__version__, f"{major}.{minor}.{patch}", len(frames), len(luma), difference)
