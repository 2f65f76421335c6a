"""Scales decoded frames of any size, rotation and colour to the stored form: small, upright, yuv420p, bt601."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from av.error import BlockingIOError as NotReady
from av.filter import Graph
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter
from numpy.typing import NDArray

from sharding.media.decoding.orientation import UPRIGHT, Filter, Orientation, orientation_of

# H.273's number of a matrix → swscale's, which ignores a number that it does not know.
SWSCALE_MATRIX = {
    1: Colorspace.ITU709,
    4: Colorspace.FCC,
    5: Colorspace.ITU601,
    6: Colorspace.ITU601,
    7: Colorspace.SMPTE240M,
    9: Colorspace.BT2020,
    10: Colorspace.BT2020,
}
MATRIX_NAMES = {
    Colorspace.ITU709: "bt709",
    Colorspace.FCC: "fcc",
    Colorspace.ITU601: "bt601",
    Colorspace.SMPTE240M: "smpte240m",
    Colorspace.BT2020: "bt2020",
}
FILTER_MATRIX = MATRIX_NAMES | {Colorspace.BT2020: "bt2020nc"}  # names of libavfilter's
# Without the last two, swscale's result depends on where in memory the frame happens to lie.
EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
HD_HEIGHT = 720  # an unmarked video this high is bt709, as players take it
YUV420P = VideoFormat("yuv420p")


def fitted_size(width: int, height: int, aspect: float, short_edge: int) -> tuple[int, int]:
    """Even (width, height) with pixels made square and the short edge at most `short_edge`.

    `aspect` is a pixel's width over its height. Nothing is enlarged: a squeezed picture loses lines.
    """
    shown_width, shown_height = (width, height / aspect) if aspect > 1 else (width * aspect, float(height))
    scale = min(1.0, short_edge / min(shown_width, shown_height))
    return max(2, 2 * round(shown_width * scale / 2)), max(2, 2 * round(shown_height * scale / 2))


class FrameScaler:
    """Scales every frame of a video to one size: `size` (width, height) as shown, else one chosen by the first frame.

    Frames are turned and mirrored as the display matrix of each says. Of a frame that is flagged interlaced only the
    upper field is taken, which leaves no comb and no double contours, costs nothing, and has lines enough for what is
    stored of it.
    """

    def __init__(self, short_edge: int, aspect: float, size: tuple[int, int] | None = None) -> None:
        self.short_edge = short_edge
        self.aspect = aspect
        self.size = size
        self.orientation = UPRIGHT
        self.angle: int | None = None
        self.reformatter = VideoReformatter()
        self._turning: dict[Orientation, Graph] = {}
        self._field: tuple[tuple[object, ...], Graph] | None = None
        self._recolouring: dict[tuple[Colorspace, int, int], Graph] = {}
        self._full: dict[str, bool] = {}

    def scale(self, frame: VideoFrame) -> VideoFrame:
        """The frame in the form in which it is stored, without a time."""
        # A stream's own matrices stand at key frames. A workaround (seen with PyAV 18): reading a frame's side data
        # makes a reference cycle, which frees the frame late; so it is read only where the angle has changed.
        if self.angle is None or (frame.key_frame and frame.rotation != self.angle):
            self.angle, self.orientation = frame.rotation, orientation_of(frame, self.orientation)
        sideways = self.orientation.sideways
        if self.size is None:
            lying = fitted_size(frame.width, frame.height, self.aspect, self.short_edge)
            self.size = lying[::-1] if sideways else lying
        size = self.size[::-1] if sideways else self.size
        matrix = source_matrix(frame.colorspace, min(frame.width, frame.height))
        full = ColorRange.JPEG if self._is_full(frame) else ColorRange.MPEG
        if frame.interlaced_frame and frame.height >= 4:
            frame = self._upper_field(frame)
        small = self._scaled(frame, size, matrix, full)
        upright = self._turned(small) if self.orientation.filters else small
        if upright is frame:
            upright.make_writable()  # a frame that fitted already may still be the decoder's
        if upright.width % 16:
            pad_lines(upright)
        return upright

    def _scaled(self, frame: VideoFrame, size: tuple[int, int], matrix: Colorspace, full: ColorRange) -> VideoFrame:
        """The frame in the stored size (before it is turned), range and matrix.

        From another matrix the small picture is converted: swscale would convert the large frame before it scales
        it, at the price of everything else together, and less exactly.
        """
        direct = matrix == Colorspace.ITU601 or frame.format.is_rgb
        small = self.reformatter.reformat(
            frame,
            width=size[0],
            height=size[1],
            format=YUV420P,  # type: ignore[arg-type]  # looked up once, not by its name
            src_colorspace=matrix,
            dst_colorspace=Colorspace.ITU601 if direct else matrix,
            interpolation=EXACT,
            src_color_range=full,
            dst_color_range=ColorRange.MPEG,
            threads=1,  # more cost more than they save, and a process runs on every core
        )
        return small if direct else self._recoloured(small, matrix)

    def _recoloured(self, small: VideoFrame, matrix: Colorspace) -> VideoFrame:
        key = (matrix, small.width, small.height)
        if key not in self._recolouring:
            # Only the matrix is to change: with "fast" the primaries and the transfer are named and not converted.
            same = ":".join(f"{prefix}{what}=bt709" for prefix in ("i", "") for what in ("primaries", "trc"))
            ours = f"ispace={FILTER_MATRIX[matrix]}:space=smpte170m:irange=tv:range=tv"
            self._recolouring[key] = _graph(small, [("colorspace", f"{ours}:{same}:fast=1")])
        return _filtered(self._recolouring[key], small)

    def _is_full(self, frame: VideoFrame) -> bool:
        if frame.color_range == ColorRange.JPEG:
            return True
        name = frame.format.name
        full = self._full.get(name)
        if full is None:
            full = self._full[name] = is_full_range(name) or frame.format.is_rgb
        return full

    def _turned(self, small: VideoFrame) -> VideoFrame:
        if self.orientation not in self._turning:
            self._turning[self.orientation] = _graph(small, self.orientation.filters)
        return _filtered(self._turning[self.orientation], small)

    def _upper_field(self, frame: VideoFrame) -> VideoFrame:
        shape = (frame.width, frame.height, frame.format.name)
        if self._field is None or self._field[0] != shape:
            self._field = (shape, _graph(frame, [("field", "top")]))
        return _filtered(self._field[1], frame)


def pad_lines(frame: VideoFrame) -> None:
    """Repeat each line's last pixel in the unused memory behind the line, in place.

    A workaround: x264 reads a little of that memory where a width is no multiple of 16; left as it is, the same video
    gives other bytes from run to run.
    """
    frame.make_writable()
    for plane in frame.planes:
        lines = np.frombuffer(memoryview(plane), np.uint8)[: plane.height * plane.line_size]
        lines = lines.reshape(plane.height, plane.line_size)
        lines[:, plane.width :] = lines[:, plane.width - 1 : plane.width]


def luma_of(picture: VideoFrame) -> NDArray[np.uint8]:
    """The luma plane of a decoded picture, H W, a view of its memory."""
    plane = picture.planes[0]
    lines = np.frombuffer(memoryview(plane), np.uint8)[: plane.height * plane.line_size]
    return lines.reshape(plane.height, plane.line_size)[:, : plane.width]


def source_matrix(colorspace: int, height: int) -> Colorspace:
    """The matrix by which a source's YUV is read; chosen by the height where it is not marked."""
    if colorspace in SWSCALE_MATRIX:
        return SWSCALE_MATRIX[colorspace]
    return Colorspace.ITU709 if height >= HD_HEIGHT else Colorspace.ITU601


def is_full_range(pixel_format: str) -> bool:
    """Whether the pixel format itself means full range: black is 0, white 255."""
    return pixel_format.startswith("yuvj")


def _graph(frame: VideoFrame, filters: Sequence[Filter]) -> Graph:
    graph = Graph()
    last = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    for name, argument in (*filters, ("buffersink", "")):
        following = graph.add(name, argument) if argument else graph.add(name)
        last.link_to(following)
        last = following
    graph.configure()
    return graph


def _filtered(graph: Graph, frame: VideoFrame) -> VideoFrame:
    graph.push(frame)
    try:
        filtered = graph.pull()
    except NotReady as error:
        raise AssertionError("these filters keep no frame back") from error
    assert isinstance(filtered, VideoFrame)
    return filtered
