"""Videos made of the real footage, with what the tests need to be odd about them."""

from __future__ import annotations

import os
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from tests.sharding.conftest import FOOTAGE


def carphone(frames: int = 100) -> list[NDArray[np.uint8]]:
    """RGB pictures, 144 × 176, of a man in a car."""
    with av.open(str(FOOTAGE / "carphone.mp4")) as container:
        pairs = zip(range(frames), container.decode(video=0), strict=False)
        return [frame.to_ndarray(format="rgb24") for _, frame in pairs]


def write_video(
    path: Path,
    frames: list[Any] | None = None,
    times: int = 1,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: int = 25,
    options: dict[str, str] | None = None,
    muxer: dict[str, str] | None = None,
    prepare: Callable[[Any], None] | None = None,
    change: Callable[[av.VideoFrame], None] | None = None,
) -> Path:
    """Write the frames (RGB arrays or video frames; 100 of the man in the car by default), `times` over, as a video.

    Each round is darker than the one before it. `prepare` changes the stream, `change` every frame.
    """
    pictures = carphone() if frames is None else frames
    defaults = {"preset": "ultrafast"} if codec in ("libx264", "libx265") else {}
    if codec == "libx265":
        defaults["x265-params"] = "log-level=none:pools=1"
    with av.open(str(path), "w", options=muxer or {}) as out:
        stream = out.add_stream(codec, rate=rate, options={**defaults, **(options or {})})
        first = pictures[0]
        height, width = first.shape[:2] if isinstance(first, np.ndarray) else (first.height, first.width)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.thread_count = 1
        if prepare is not None:
            prepare(stream)
        for number in range(times * len(pictures)):
            picture = pictures[number % len(pictures)]
            if isinstance(picture, np.ndarray):
                darker = (picture * (1 - 0.6 * (number // len(pictures)) / max(1, times))).astype(np.uint8)
                frame = av.VideoFrame.from_ndarray(darker, format="rgb24").reformat(format=pix_fmt)
            else:
                frame = picture
            frame.pts, frame.time_base = number, Fraction(1, rate)
            frame.pict_type = av.video.frame.PictureType.NONE
            if change is not None:
                change(frame)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    if codec == "libsvtav1" and os.geteuid() == 0:  # it gives the caller's thread real-time priority, and all it starts
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    return path


def remux_video(source: Path, path: Path, shift: float = 0.0, muxer: dict[str, str] | None = None) -> Path:
    """Copy a video's packets into another container, `shift` seconds later."""
    with av.open(str(source)) as container, av.open(str(path), "w", options=muxer or {}) as out:
        stream = container.streams.video[0]
        target = out.add_stream_from_template(stream, opaque=True)
        assert stream.time_base is not None
        by = round(shift / stream.time_base)
        for packet in container.demux(stream):
            if packet.size and packet.pts is not None and packet.dts is not None:
                packet.pts, packet.dts = packet.pts + by, packet.dts + by
                packet.stream = target
                out.mux_one(packet)
    return path


def loop_video(source: Path, path: Path, times: int) -> Path:
    """Write a video's packets again and again into a new one."""
    with av.open(str(path), "w") as out:
        target = None
        by = 0
        for _ in range(times):
            with av.open(str(source)) as container:
                stream = container.streams.video[0]
                target = target or out.add_stream_from_template(stream, opaque=True)
                end = 0
                for packet in container.demux(stream):
                    if packet.size and packet.pts is not None and packet.dts is not None:
                        end = max(end, packet.pts + (packet.duration or 0))
                        packet.pts, packet.dts = packet.pts + by, packet.dts + by
                        packet.stream = target
                        out.mux_one(packet)
                by += end
    return path


def add_silence(source: Path, path: Path, seconds: float, codec: str, muxer: dict[str, str] | None = None) -> Path:
    """Copy a video's packets into another container, with so many seconds of silence."""
    with av.open(str(source)) as container, av.open(str(path), "w", options=muxer or {}) as out:
        stream = container.streams.video[0]
        target = out.add_stream_from_template(stream, opaque=True)
        sound = out.add_stream(codec, rate=48000, layout="mono")
        sound.bit_rate = 64000
        for packet in container.demux(stream):
            if packet.size:
                packet.stream = target
                out.mux(packet)
        size = sound.codec_context.frame_size or 1024
        for number in range(int(seconds * 48000 / size)):
            frame = av.AudioFrame(format=sound.codec_context.format.name, layout="mono", samples=size)
            for plane in frame.planes:
                plane.update(bytes(plane.buffer_size))
            frame.sample_rate, frame.pts, frame.time_base = 48000, number * size, Fraction(1, 48000)
            out.mux(sound.encode(frame))
        out.mux(sound.encode(None))
    return path
