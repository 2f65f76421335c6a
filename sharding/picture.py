"""A decoded frame of any size, rotation and colour → small upright yuv420p, bt601, limited range."""

from __future__ import annotations

import numpy as np
from av.error import BlockingIOError as NotReady
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange, Interpolation, VideoReformatter

BT709, UNSPECIFIED, SMPTE170M = 1, 2, 6
KNOWN_MATRICES = (1, 4, 5, 6, 7)
# Without the last two, swscale's result depends on where in memory the frame happens to lie.
EXACT = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.BITEXACT
HD_HEIGHT = 720  # an unmarked video this high is bt709, as players take it


def fitted_size(width: int, height: int, aspect: float, short_edge: int) -> tuple[int, int]:
    """Even (width, height) with pixels made square and the short edge at most `short_edge`.

    `aspect` is a pixel's width over its height. Nothing is enlarged: a squeezed picture loses lines.
    """
    shown_width, shown_height = (width, height / aspect) if aspect > 1 else (width * aspect, float(height))
    scale = min(1.0, short_edge / min(shown_width, shown_height))
    return max(2, 2 * round(shown_width * scale / 2)), max(2, 2 * round(shown_height * scale / 2))


class Fitter:
    """Fits every frame of a video to the size that its first frame decides."""

    def __init__(self, short_edge: int, aspect: float) -> None:
        self.short_edge = short_edge
        self.aspect = aspect
        self.size: tuple[int, int] | None = None
        self.turn = 0
        self.graph: Graph | None = None
        self.reformatter = VideoReformatter()

    def fit(self, frame: VideoFrame) -> VideoFrame:
        """The frame as it is to be stored (without a time)."""
        if self.size is None:
            self.turn = round(frame.rotation / 90) * 90 % 360
            self.size = fitted_size(frame.width, frame.height, self.aspect, self.short_edge)
        small = self.reformatter.reformat(
            frame,
            width=self.size[0],
            height=self.size[1],
            format="yuv420p",
            src_colorspace=source_matrix(frame.colorspace, min(frame.width, frame.height)),
            dst_colorspace=SMPTE170M,
            interpolation=EXACT,
            src_color_range=_source_range(frame),
            dst_color_range=ColorRange.MPEG,
        )
        upright = self._turned(small) if self.turn else small
        pad_lines(upright)
        return upright

    def _turned(self, small: VideoFrame) -> VideoFrame:
        if self.graph is None:
            self.graph = _turning_graph(small, self.turn)
        self.graph.push(small)
        try:
            turned = self.graph.pull()
        except NotReady as error:
            raise AssertionError("a filter that turns frames keeps none back") from error
        assert isinstance(turned, VideoFrame)
        return turned


def pad_lines(frame: VideoFrame) -> None:
    """Continue every line into the unused memory behind it, in place.

    x264 reads a little of it where a width is no multiple of 16: left as it is, the same video gives
    other bytes from run to run.
    """
    frame.make_writable()  # a frame that fitted already may still be the decoder's
    for plane in frame.planes:
        lines = np.frombuffer(memoryview(plane), np.uint8)[: plane.height * plane.line_size]
        lines = lines.reshape(plane.height, plane.line_size)
        lines[:, plane.width :] = lines[:, plane.width - 1 : plane.width]


def source_matrix(colorspace: int, height: int) -> int:
    """The matrix to read a source's YUV by; what is unmarked goes by its height."""
    if colorspace in KNOWN_MATRICES:
        return colorspace
    return BT709 if height >= HD_HEIGHT else SMPTE170M


def _source_range(frame: VideoFrame) -> int:
    full = frame.format.name.startswith("yuvj") or frame.format.is_rgb
    return ColorRange.JPEG if full or frame.color_range == ColorRange.JPEG else ColorRange.MPEG


def _turning_graph(frame: VideoFrame, turn: int) -> Graph:
    """`turn`: degrees counter-clockwise."""
    names = {
        90: [("transpose", "cclock")],
        270: [("transpose", "clock")],
        180: [("hflip", ""), ("vflip", "")],
    }
    graph = Graph()
    last = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base)
    for name, argument in [*names[turn], ("buffersink", "")]:
        following = graph.add(name, argument) if argument else graph.add(name)
        last.link_to(following)
        last = following
    graph.configure()
    return graph
