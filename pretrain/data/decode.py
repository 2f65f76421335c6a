"""Packets to planes: packets fed to a codec that is kept open, one per thread and stream header."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import av
import numpy as np
from av.video.reformatter import ColorRange
from numpy.typing import NDArray

from pretrain.data.stream import DamagedSample, Sample, read_packets
from sharding.media.picture import EXACT, MATRIX_NAMES
from sharding.store import Store

_CODECS_KEPT = 8
_MATRICES = {name: matrix for matrix, name in MATRIX_NAMES.items()}
_local = threading.local()


@dataclass(frozen=True)
class Planes:
    """Frames as stored, 8 bits, limited range: y [T, H, W], uv [T, 2, H/2, W/2]; matrix is bt601 or bt709."""

    y: NDArray[np.uint8]
    uv: NDArray[np.uint8]
    matrix: str


def decode_frames(store: Store, sample: Sample, wanted: Sequence[int]) -> Planes:
    """The planes of the frames `wanted` (any order, repeats allowed), from one ranged read.

    Raises DamagedSample when the bytes are damaged or a frame does not decode.
    """
    begin, packets = read_packets(store, sample, min(wanted), max(wanted))
    keep = set(wanted)
    decoded: dict[int, tuple[NDArray[np.uint8], NDArray[np.uint8]]] = {}
    codec = _codec(sample.codec, sample.extradata)
    # A frame's number is its place in the order shown; only a copied source's packets lie in another.
    shown = np.argsort(np.argsort(sample.packet_pts[begin : begin + len(packets)], kind="stable"))
    try:
        for number, payload in zip(shown, packets, strict=True):
            packet = av.Packet(payload)
            packet.pts = begin + int(number)
            _collect(codec.decode(packet), keep, decoded, sample)
        _collect(codec.decode(None), keep, decoded, sample)
    except av.error.FFmpegError as error:
        raise DamagedSample(f"sample {sample.key} ({sample.uri}) in {sample.tar}: {error}") from error
    finally:
        codec.flush_buffers()
    missing = keep - decoded.keys()
    if missing:
        raise DamagedSample(f"sample {sample.key} ({sample.uri}) in {sample.tar}: frame {min(missing)} is missing")
    return Planes(
        np.stack([decoded[i][0] for i in wanted]),
        np.stack([decoded[i][1] for i in wanted]),
        _matrix(sample),
    )


def _collect(
    frames: list[av.VideoFrame],
    keep: set[int],
    into: dict[int, tuple[NDArray[np.uint8], NDArray[np.uint8]]],
    sample: Sample,
) -> None:
    for frame in frames:
        if frame.pts in keep:
            number = frame.pts
            if frame.format.name != "yuv420p" or sample.range != "tv" or sample.matrix not in ("bt601", "bt709"):
                frame = _common(frame, sample)
            y, u, v = (_plane(plane) for plane in frame.planes)
            into[number] = (y, np.stack([u, v]))


def _matrix(sample: Sample) -> str:
    """The matrix of the planes that are made of a sample."""
    return sample.matrix if sample.matrix in ("bt601", "bt709") else "bt709"


def _common(frame: av.VideoFrame, sample: Sample) -> av.VideoFrame:
    """A picture of a copied source, of whatever depth, range and matrix, as other samples have them."""
    return frame.reformat(
        format="yuv420p",
        src_colorspace=_MATRICES[sample.matrix],
        dst_colorspace=_MATRICES[_matrix(sample)],
        src_color_range=ColorRange.JPEG if sample.range == "pc" else ColorRange.MPEG,
        dst_color_range=ColorRange.MPEG,
        interpolation=EXACT,
    )


def _plane(plane: av.video.plane.VideoPlane) -> NDArray[np.uint8]:
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return rows[: plane.height, : plane.width].copy()


def _codec(name: str, extradata: bytes) -> av.VideoCodecContext:
    codecs: OrderedDict[tuple[str, bytes], av.VideoCodecContext] = _local.__dict__.setdefault("codecs", OrderedDict())
    if (name, extradata) in codecs:
        codecs.move_to_end((name, extradata))
        return codecs[name, extradata]
    codec: av.VideoCodecContext = av.CodecContext.create(name, "r")  # type: ignore[assignment]
    codec.extradata = extradata
    codec.thread_count = 1
    codecs[name, extradata] = codec
    if len(codecs) > _CODECS_KEPT:
        codecs.popitem(last=False)
    return codec
