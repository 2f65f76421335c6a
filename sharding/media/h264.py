"""Writes H.264 mp4s whose bytes are the same on every machine, and reads the packet table of an mp4."""

from __future__ import annotations

import io
import zlib
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.container import OutputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

TIME_BASE = Fraction(1, 90000)  # whole steps for 24, 25, 30, 50, 60 and 30000/1001 frames a second
TICKS = TIME_BASE.denominator


def packet_table(data: bytes) -> dict[str, Any]:
    """The packet table of an mp4's bytes: extradata, packet_offset, _size, _pts, _key and group_crc32."""
    offsets, sizes, times, keys, crcs = [], [], [], [], []
    with av.open(io.BytesIO(data), "r", format="mp4") as container:
        stream = container.streams.video[0]
        extradata = bytes(stream.codec_context.extradata or b"")
        for packet in container.demux(stream):
            if not packet.size:
                continue
            assert packet.pos is not None and packet.pts is not None
            payload = data[packet.pos : packet.pos + packet.size]
            assert payload == bytes(packet)
            if packet.is_keyframe:
                crcs.append(0)
            crcs[-1] = zlib.crc32(payload, crcs[-1])
            offsets.append(packet.pos)
            sizes.append(packet.size)
            times.append(packet.pts)
            keys.append(packet.is_keyframe)
        assert stream.time_base == TIME_BASE
    return {
        "extradata": extradata,
        "packet_offset": np.array(offsets, np.int64),
        "packet_size": np.array(sizes, np.int32),
        "packet_pts": np.array(times, np.int64),
        "packet_key": np.array(keys, np.bool_),
        "group_crc32": np.array(crcs, np.uint32),
    }


def x264_options(key_frame_every: int, preset: str, crf: int, **more: int) -> dict[str, str]:
    """libx264's options for bytes that are cheap to decode and the same on every processor; `more` of x264's own."""
    x264 = {
        "keyint": key_frame_every,
        "min-keyint": key_frame_every,
        "scenecut": 0,
        "open-gop": 0,
        "bframes": 0,
        "cabac": 0,
        "no-deblock": 1,
        "threads": 1,
        "cpu-independent": 1,  # else other instruction sets make other bytes
        **more,
    }
    params = ":".join(f"{key}={value}" for key, value in x264.items())
    return {"preset": preset, "tune": "fastdecode", "crf": str(crf), "x264-params": params}


def open_h264(
    sink: io.BytesIO, picture: VideoFrame, rate: Fraction, key_frame_every: int, options: dict[str, str]
) -> tuple[OutputContainer, VideoStream]:
    """A new mp4 in `sink` with one H.264 stream for pictures like this one, in TIME_BASE, without dates or versions."""
    container = av.open(sink, "w", format="mp4", options={"fflags": "+bitexact"})
    stream = container.add_stream("libx264", rate=rate, options=options)
    context = stream.codec_context
    context.width, context.height, context.pix_fmt = picture.width, picture.height, "yuv420p"
    context.time_base = stream.time_base = TIME_BASE
    context.gop_size, context.max_b_frames = key_frame_every, 0
    context.thread_count = 1  # more threads make other bytes
    context.flags |= int(av.codec.context.Flags.bitexact | av.codec.context.Flags.closed_gop)
    return container, stream
