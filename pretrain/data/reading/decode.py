"""Decodes packets to planes by codecs that are kept open, one for each thread and stream header."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange
from numpy.typing import NDArray

from pretrain.data.reading.packets import needed_spans, read_spans
from pretrain.data.reading.store_split import DamagedData, FlowTable, PacketTable, RangeReader, Sample
from sharding.base.lru import LRU
from sharding.media.decoding.picture import EXACT, MATRIX_NAMES

_CODECS_KEPT = 8
_MATRICES = {name: matrix for matrix, name in MATRIX_NAMES.items()}
_local = threading.local()


@dataclass(frozen=True)
class Planes:
    """Frames as stored, 8 bits, limited range: y [T, H, W], uv [T, 2, ceil(H/2), ceil(W/2)]; bt601 or bt709."""

    y: NDArray[np.uint8]
    uv: NDArray[np.uint8]
    matrix: str


class Window(NamedTuple):
    """A part of a picture: rows and columns, both beginning at an even number."""

    rows: slice
    columns: slice

    @classmethod
    def whole(cls, sample: Sample) -> Window:
        """All of it."""
        return cls(slice(0, sample.height), slice(0, sample.width))


def decode_frames(source: RangeReader, sample: Sample, wanted: Sequence[int]) -> Planes:
    """The planes of the frames `wanted` (any order, repeats allowed), read and decoded in one pass.

    Raises DamagedData when the bytes are damaged or a frame does not decode.
    """
    y = np.empty((len(wanted), sample.height, sample.width), np.uint8)
    uv = np.empty((len(wanted), 2, (sample.height + 1) // 2, (sample.width + 1) // 2), np.uint8)
    decode_into(source, sample, wanted, Window.whole(sample), y, uv)
    return Planes(y, uv, plane_matrix(sample))


def decode_into(
    source: RangeReader,
    sample: Sample,
    wanted: Sequence[int],
    window: Window,
    y: NDArray[np.uint8],
    uv: NDArray[np.uint8],
) -> None:
    """As `decode_frames`, a window of each into the top left of y [T, H, W] and uv [T, 2, …]."""
    places = places_of(wanted)
    rows, columns = window
    luma = slice(rows.start, rows.stop), slice(columns.start, columns.stop)
    chroma = slice(rows.start // 2, (rows.stop + 1) // 2), slice(columns.start // 2, (columns.stop + 1) // 2)
    y = y[:, : rows.stop - rows.start, : columns.stop - columns.start]
    uv = uv[:, :, : chroma[0].stop - chroma[0].start, : chroma[1].stop - chroma[1].start]

    def take(number: int, frame: av.VideoFrame) -> None:
        first, *again = places[number]
        planes = frame.planes
        y[first] = _lines(planes[0])[luma]
        uv[first, 0] = _lines(planes[1])[chroma]
        uv[first, 1] = _lines(planes[2])[chroma]
        for place in again:
            y[place], uv[place] = y[first], uv[first]

    _decode_pictures(source, sample, places, take)


def decode_lumas(
    source: RangeReader, sample: Sample, wanted: Collection[int], take: Callable[[int, NDArray[np.uint8]], None]
) -> None:
    """Have the luma of each frame wanted taken, [H, W] and only as long as it is taken, by its number, in order.

    Raises DamagedData as `decode_frames` does.
    """

    def take_luma(number: int, frame: av.VideoFrame) -> None:
        take(number, _lines(frame.planes[0])[:, : sample.width])

    _decode_pictures(source, sample, dict.fromkeys(wanted), take_luma)


def decode_flow_into(
    source: RangeReader,
    sample: Sample,
    flow: FlowTable,
    wanted: Sequence[int],
    window: Window,
    steps: NDArray[np.uint8],
) -> None:
    """A window of a sample's flow pictures into the top left of steps [T, 2, H, W], dx and dy as stored.

    See `sharding.media.flow`. Raises DamagedData.
    """
    places = places_of(wanted)
    rows, columns = window
    steps = steps[..., : rows.stop - rows.start, : columns.stop - columns.start]

    def take(number: int, frame: av.VideoFrame) -> None:
        if (frame.height, frame.width) != (2 * sample.height, sample.width):
            raise DamagedData(
                "picture", sample.name, sample.tar, f"flow picture {number} is {frame.width} x {frame.height}"
            )
        lines = _lines(frame.planes[0])
        for place in places[number]:
            steps[place] = lines.reshape(2, sample.height, -1)[:, rows, columns]

    _decode(source, sample.name, flow.packets, places, take)


def plane_matrix(sample: Sample) -> str:
    """The colour matrix of the planes that are made of a sample: bt601 or bt709."""
    return sample.matrix if sample.matrix in ("bt601", "bt709") else "bt709"


def places_of(wanted: Sequence[int]) -> dict[int, list[int]]:
    """Where each frame goes."""
    places: dict[int, list[int]] = {}
    for place, number in enumerate(wanted):
        places.setdefault(number, []).append(place)
    return places


def _decode_pictures(
    source: RangeReader,
    sample: Sample,
    wanted: Mapping[int, object],
    take: Callable[[int, av.VideoFrame], None],
) -> None:
    """As `_decode`, of the sample's pictures, each as all samples have them and of the size that its record says."""
    size = sample.width, sample.height
    as_it_is = sample.range == "tv" and sample.matrix in ("bt601", "bt709")

    def take_common(number: int, frame: av.VideoFrame) -> None:
        if not as_it_is or frame.format.name != "yuv420p":
            frame = _common(frame, sample)
        if (frame.width, frame.height) != size:
            raise DamagedData("picture", sample.name, sample.tar, f"frame {number} is {frame.width} x {frame.height}")
        take(number, frame)

    _decode(source, sample.name, sample.packets, wanted, take_common)


def _decode(
    source: RangeReader,
    name: str,
    table: PacketTable,
    wanted: Mapping[int, object],
    take: Callable[[int, av.VideoFrame], None],
) -> None:
    """Have all the frames taken that are wanted, by their numbers, in the order shown."""
    spans = needed_spans(table, wanted)
    codec = _codec(table.codec, table.extradata)
    for (first, last), (begin, packets) in zip(spans, read_spans(source, name, table, spans), strict=True):
        missing = sum(first <= number <= last for number in wanted)
        times = table.pts[begin : begin + len(packets)]
        # A frame's number is its place in the order shown; only a copied source's packets lie in another.
        if in_order := bool((times[1:] > times[:-1]).all()):
            numbers: Iterable[int] = range(begin, last + 1)
        else:
            numbers = (begin + np.argsort(np.argsort(times, kind="stable"))).tolist()
        clean = False
        try:
            for number, payload in zip(numbers, packets, strict=False):
                packet = av.Packet(payload)
                packet.pts = number
                for frame in codec.decode(packet):
                    if (shown := frame.pts or 0) in wanted and first <= shown <= last:
                        take(shown, frame)
                        missing -= 1
            # A codec that holds nothing back is ready for the next key frame as it is.
            clean = in_order and not missing
            if missing:
                for frame in codec.decode(None):
                    if (shown := frame.pts or 0) in wanted and first <= shown <= last:
                        take(shown, frame)
                        missing -= 1
        except av.error.FFmpegError as error:
            raise DamagedData("decode", name, table.tar, str(error)) from error
        finally:
            if not clean:
                codec.flush_buffers()
        if missing:
            raise DamagedData("decode", name, table.tar, f"{missing} of its frames {first} to {last} do not decode")


def _common(frame: av.VideoFrame, sample: Sample) -> av.VideoFrame:
    """A picture of a copied source, of whatever depth, range and matrix, as other samples have them."""
    return frame.reformat(
        format="yuv420p",
        src_colorspace=_MATRICES[sample.matrix],
        dst_colorspace=_MATRICES[plane_matrix(sample)],
        src_color_range=ColorRange.JPEG if sample.range == "pc" else ColorRange.MPEG,
        dst_color_range=ColorRange.MPEG,
        interpolation=EXACT,
    )


def _lines(plane: av.video.plane.VideoPlane) -> NDArray[np.uint8]:
    """A plane's lines, with what pads each."""
    return np.ndarray((plane.height, plane.line_size), np.uint8, plane)  # type: ignore[arg-type]  # any buffer


def _codec(name: str, extradata: bytes) -> av.VideoCodecContext:
    """This thread's decoder for a stream of this codec and extradata."""
    codecs: LRU[tuple[str, bytes], av.VideoCodecContext] = _local.__dict__.setdefault("codecs", LRU(_CODECS_KEPT))
    return codecs.get_or_make((name, extradata), lambda: _new_codec(name, extradata))


def _new_codec(name: str, extradata: bytes) -> av.VideoCodecContext:
    codec: av.VideoCodecContext = av.CodecContext.create(name, "r")  # type: ignore[assignment]
    codec.extradata = extradata
    codec.thread_count = 1
    return codec
