"""Computes optical flow (Farneback between stored frames), and encodes a segment's as a small H.264 mp4."""

from __future__ import annotations

import contextlib
import io
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import av
import numpy as np
import pydantic
from av.video.frame import PictureType, VideoFrame
from av.video.reformatter import ColorRange
from numpy.typing import NDArray

from sharding.base.errors import UserError
from sharding.base.settings import Settings, unit
from sharding.media.decoding.picture import luma_of, pad_lines
from sharding.media.h264 import TIME_BASE, open_h264, packet_table, x264_options

ZERO, LARGEST = 128, 127  # the value of no motion, and the steps from there to ±bound: no motion is stored exactly
FARNEBACK = {"pyr_scale": 0.5, "levels": 3, "winsize": 15, "iterations": 3, "poly_n": 5, "poly_sigma": 1.2, "flags": 0}


class FlowSettings(Settings):
    """How optical flow is computed and stored.

    The default of `crf` is the largest with which the error of what is stored stays below twice that of the steps
    alone, bound / 127 pixels, on every video of tests/benchmarks/flow.py.
    """

    method: Literal["farneback"] = pydantic.Field(
        default="farneback", description="algorithm that computes the optical flow"
    )
    bound: float = pydantic.Field(
        json_schema_extra=unit("pixels"),
        default=20.0,
        gt=0.0,
        le=1000.0,
        description="pixels of the stored frame, from one frame to the next, to which larger motion is cut",
    )
    crf: int = pydantic.Field(
        default=11, ge=1, le=51, description="x264's constant rate factor: lower is better and larger"
    )


@dataclass(frozen=True)
class FlowClip:
    """The flow of a segment: the bytes of its mp4, and its packet table (as in media.clip.Clip).

    Its picture t is the motion from the segment's frame t to frame t + 1, the last one repeats the one before: as
    many as the segment has, at the same times. A picture's luma holds dx above dy, so `height` is twice the frame's;
    `dequantised` reads it. `clipped`: share of values beyond the bound. Errors are means over all values, in pixels
    of motion, against the flow cut to the bound: `quantisation_error` of the 8 bits alone, `stored_error` of what
    decodes from the mp4.
    """

    data: bytes
    width: int
    height: int
    frames: int
    bound: float
    clipped: float
    quantisation_error: float
    stored_error: float
    extradata: bytes
    packet_offset: NDArray[np.int64]
    packet_size: NDArray[np.int32]
    packet_pts: NDArray[np.int64]
    packet_key: NDArray[np.bool_]
    group_crc32: NDArray[np.uint32]


def quantised(flow: NDArray[np.float32], bound: float) -> NDArray[np.uint8]:
    """The luma picture, 2H W, that stores flow in pixels, 2 H W: 128 + flow · 127 / bound, so 1 to 255."""
    steps = np.rint(np.clip(flow, -bound, bound) * np.float32(LARGEST / bound))
    picture: NDArray[np.uint8] = (steps + ZERO).astype(np.uint8).reshape(-1, flow.shape[-1])
    return picture


def dequantised(luma: NDArray[np.uint8], bound: float) -> NDArray[np.float32]:
    """The flow, dx and dy in pixels, 2 H W, in a luma picture of a flow mp4, 2H W: the inverse of `quantised`."""
    steps = luma.astype(np.float32) - ZERO
    return (steps * np.float32(bound / LARGEST)).reshape(2, -1, luma.shape[-1])


def optical_flow(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> NDArray[np.float32]:
    """The motion from one frame to the next by their lumas, H W: dx and dy in pixels, 2 H W.

    The same bits on every x86 processor. Raises UserError if OpenCV is not installed.
    """
    cv2 = require_opencv()
    with _same_everywhere(cv2):
        flow = cv2.calcOpticalFlowFarneback(before, after, None, *FARNEBACK.values())
    return np.ascontiguousarray(np.moveaxis(flow, 2, 0))  # H W 2 -> 2 H W


class FlowEncoder:
    """Encodes the flow between frames into one mp4: the same bytes for the same frames, on every x86 processor.

    Holds few frames, however many come. Raises UserError if OpenCV is not installed.
    """

    def __init__(self, settings: FlowSettings, key_frame_every: int) -> None:
        self.settings = settings
        self.key_frame_every = key_frame_every
        require_opencv()
        self.sink = io.BytesIO()
        self.before: NDArray[np.uint8] | None = None
        self.pts = 0
        self.flow: NDArray[np.float32] | None = None
        self.undecoded: deque[NDArray[np.float32]] = deque()  # what went in and has not yet come out of the decoder
        self.decoder: Any = None
        self.frames = self.values = self.beyond = 0
        self.quantisation_error = self.stored_error = 0.0

    def add(self, luma: NDArray[np.uint8], pts: int) -> None:
        """Add the next stored frame: its luma, H W, both even, and its time in TIME_BASE."""
        if self.before is not None:
            self.flow = optical_flow(self.before, luma)
            self._encode(self.flow, self.pts)
        self.before, self.pts = luma.copy(), pts

    def finish(self) -> FlowClip | None:
        """Close the mp4; returns the FlowClip, None if fewer than two frames came."""
        if self.flow is None:
            return None
        self._encode(self.flow, self.pts)
        self._put(self.stream.encode(None))
        self._compare(self.decoder.decode(None))
        self.container.close()
        assert not self.undecoded
        data = self.sink.getvalue()
        table = packet_table(data)
        assert len(table["packet_pts"]) == self.frames
        return FlowClip(
            data=data,
            width=self.stream.codec_context.width,
            height=self.stream.codec_context.height,
            frames=self.frames,
            bound=self.settings.bound,
            clipped=self.beyond / self.values,
            quantisation_error=self.quantisation_error / self.values,
            stored_error=self.stored_error / self.values,
            **table,
        )

    def _encode(self, flow: NDArray[np.float32], pts: int) -> None:
        bound = self.settings.bound
        cut = np.clip(flow, -bound, bound)
        luma = quantised(cut, bound)
        self.frames += 1
        self.values += flow.size
        self.beyond += int(np.count_nonzero(np.abs(flow) > bound))
        self.quantisation_error += _distance(dequantised(luma, bound), cut)
        picture = _picture(luma)
        picture.pts, picture.time_base = pts, TIME_BASE
        if self.frames == 1:
            self._open(picture)
        self.undecoded.append(cut)
        self._put(self.stream.encode(picture))

    def _put(self, packets: list[Any]) -> None:
        """Write packets, and decode them as a reader will, to measure the stored error."""
        for packet in packets:
            if self.decoder is None:
                self.decoder = av.CodecContext.create("h264", "r")
                self.decoder.thread_count = 1
                self.decoder.extradata = self.stream.codec_context.extradata
            self._compare(self.decoder.decode(av.Packet(bytes(packet))))
            self.container.mux(packet)

    def _compare(self, pictures: list[VideoFrame]) -> None:
        for picture in pictures:
            stored = dequantised(luma_of(picture), self.settings.bound)
            self.stored_error += _distance(stored, self.undecoded.popleft())

    def _open(self, picture: VideoFrame) -> None:
        rate = Fraction(25)  # only named: pictures have their times
        self.container, self.stream = open_h264(self.sink, picture, rate, self.key_frame_every, self._options())
        self.stream.codec_context.color_range = int(ColorRange.JPEG)  # all 256 values, untouched

    def _options(self) -> dict[str, str]:
        # What pleases an eye is an error here; without adaptive quantisation the same error takes a fifth fewer bytes.
        more = {"psy": 0, "aq-mode": 0}
        return x264_options(self.key_frame_every, "veryfast", self.settings.crf, **more)


def _picture(luma: NDArray[np.uint8]) -> VideoFrame:
    """A frame with this luma and no colour."""
    picture = VideoFrame(luma.shape[1], luma.shape[0], "yuv420p")
    picture.color_range = int(ColorRange.JPEG)
    for plane in picture.planes:
        lines = np.frombuffer(memoryview(plane), np.uint8)[: plane.height * plane.line_size]
        lines.reshape(plane.height, plane.line_size)[:] = ZERO
    luma_of(picture)[:] = luma
    pad_lines(picture)
    picture.pict_type = PictureType.NONE
    return picture


def _distance(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The sum of the absolute differences of two flows."""
    return float(np.abs(one - other).sum(dtype=np.float64))


@contextlib.contextmanager
def _same_everywhere(cv2: Any) -> Iterator[None]:
    """Have OpenCV compute the same bits on every processor, in the calling thread, inside the `with`.

    A workaround: OpenCV picks its code by the processor, and AVX2's rounds otherwise than SSE's: enough to change a
    stored value. The plain code is as fast here.
    """
    optimised, threads = cv2.useOptimized(), cv2.getNumThreads()
    try:
        if optimised:
            cv2.setUseOptimized(False)
        if threads != 1:
            cv2.setNumThreads(1)
        yield
    finally:
        if optimised:
            cv2.setUseOptimized(True)
        if threads != 1:
            cv2.setNumThreads(threads)


def require_opencv(where: str = "the setting flow", remedy: str = "leave the setting out") -> Any:
    """OpenCV's module. Raises UserError, of `where` and with what else may be done, if it is not installed."""
    try:
        import cv2
    except ImportError as error:
        remedy = f"install it with: pip install 'reelscale[flow]'; or {remedy}"
        raise UserError(f"optical flow needs OpenCV: {error}", where, remedy) from error
    return cv2
