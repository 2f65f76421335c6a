"""Packets to planes: H.264 packets fed to a codec that is kept open, one per thread and stream header."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import av
import numpy as np
from numpy.typing import NDArray

from pretrain.data.stream import DamagedSample, Sample, read_packets
from sharding.store import Store

_CODECS_KEPT = 8
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
    codec = _codec(sample.extradata)
    try:
        for number, payload in enumerate(packets, start=begin):
            packet = av.Packet(payload)
            packet.pts = number
            _collect(codec.decode(packet), keep, decoded)
        _collect(codec.decode(None), keep, decoded)
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
        sample.matrix,
    )


def _collect(
    frames: list[av.VideoFrame],
    keep: set[int],
    into: dict[int, tuple[NDArray[np.uint8], NDArray[np.uint8]]],
) -> None:
    for frame in frames:
        if frame.pts in keep:
            y, u, v = (_plane(plane) for plane in frame.planes)
            into[frame.pts] = (y, np.stack([u, v]))


def _plane(plane: av.video.plane.VideoPlane) -> NDArray[np.uint8]:
    rows = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return rows[: plane.height, : plane.width].copy()


def _codec(extradata: bytes) -> av.VideoCodecContext:
    codecs: OrderedDict[bytes, av.VideoCodecContext] = _local.__dict__.setdefault("codecs", OrderedDict())
    if extradata in codecs:
        codecs.move_to_end(extradata)
        return codecs[extradata]
    codec = av.VideoCodecContext.create("h264", "r")
    codec.extradata = extradata
    codec.thread_count = 1
    codecs[extradata] = codec
    if len(codecs) > _CODECS_KEPT:
        codecs.popitem(last=False)
    return codec
