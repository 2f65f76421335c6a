"""One video: open, judge, transcode to a small H.264 whose packets a reader can fetch one by one."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import av
import av.error
import numpy as np
import pydantic
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from sharding.judge import BadVideo, Decoded, judge_bytes, judge_frames, judge_unopenable
from sharding.picture import Fitter
from sharding.settings import Settings
from sharding.source import OF_ONE_FILE

KEY_FRAME_EVERY = 16
TIME_BASE = Fraction(1, 90000)  # whole steps for 24, 25, 30, 50, 60 and 30000/1001 frames a second
LONGEST_GAP = 600.0  # seconds between two frames; more is a damaged timestamp
DEMUXERS = (
    "aac,asf,avi,dv,flac,flv,gif,h264,hevc,ivf,jpeg_pipe,m4v,matroska,mjpeg,mov,mp3,mpeg,mpegts,mpegvideo,mxf,"
    "nsv,nut,ogg,png_pipe,rm,swf,vc1,wav,webp_pipe"
)
# A playlist (concat, hls, dash, …) would have FFmpeg read other files, or addresses.
ONE_FILE_ONLY = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}


class EncodeSettings(Settings):
    """How a source video is judged and stored.

    `crf` and `preset` are x264's. The defaults keep a structural similarity of 0.97 to the resized source on every
    video of tests/benchmarks/encoding.py; slower presets save few bytes and decode no faster.
    """

    short_edge: int = pydantic.Field(default=128, ge=16, le=1080, multiple_of=2)
    crf: int = pydantic.Field(default=18, ge=1, le=51)
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower"] = "veryfast"
    minimum_decoded: float = pydantic.Field(default=0.9, ge=0.0, le=1.0)
    decoder_threads: int = pydantic.Field(default=1, ge=1, le=16)


@dataclass(frozen=True)
class Clip:
    """A transcoded video: the bytes of its mp4, and the packet table to read them by.

    Packet i is frame i. `offset`, `size`, `key` are inside `data`; `pts` in TIME_BASE; `group_crc32` one a
    key-frame group, over its packets' bytes in order. `start`, `end` in seconds of the source.
    """

    data: bytes
    start: float
    end: float
    fps: float
    frames: int
    width: int
    height: int
    matrix: str
    range: str
    extradata: bytes
    packet_offset: np.ndarray
    packet_size: np.ndarray
    packet_pts: np.ndarray
    packet_key: np.ndarray
    group_crc32: np.ndarray


def transcode(path: Path, settings: EncodeSettings) -> Clip:
    """The video at `path` as a Clip; frames stream from decoder to encoder, never all in memory.

    Raises BadVideo with a reason a person understands if it is not a video, too little of it decodes, or the
    file is missing or forbidden; OSError if the disk does not answer.
    """
    head, size = _head(path)
    judge_bytes(head, size)
    try:
        source = av.open(f"file:{path}", metadata_errors="replace", container_options=ONE_FILE_ONLY)
    except av.error.FFmpegError as error:
        raise judge_unopenable(path, head, error.strerror or str(error)) from error
    with source:
        stream = _video_stream(source)
        stream.codec_context.thread_type = "AUTO"
        stream.codec_context.thread_count = settings.decoder_threads
        decoded = Decoded.of(stream, source.duration, source.format.name)
        encoder = _Encoder(settings, decoded.step, _pixel_aspect(stream))
        for frame in _frames(source, stream, decoded):
            encoder.add(frame)
        judge_frames(decoded, settings.minimum_decoded)
    return encoder.finish()


def packet_table(data: bytes) -> dict[str, Any]:
    """extradata, packet_offset, packet_size, packet_pts, packet_key and group_crc32 of an mp4's bytes."""
    offsets, sizes, times, keys, crcs = [], [], [], [], []
    with av.open(io.BytesIO(data), "r") as container:
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


class _Encoder:
    """Frames in, one mp4 out; opened by the first frame, whose shape decides the size."""

    def __init__(self, settings: EncodeSettings, step: float, aspect: float) -> None:
        self.settings = settings
        self.step = step
        self.sink = io.BytesIO()
        self.fitter = Fitter(settings.short_edge, aspect)
        self.frames = 0
        self.last_pts = -1
        self.last_time: float | None = None
        self.clock = 0.0  # seconds since the first frame

    def add(self, frame: VideoFrame) -> None:
        time = frame.time
        if time is None and frame.dts is not None and frame.time_base:
            time = float(frame.dts * frame.time_base)
        if self.frames:
            gap = self.step if time is None or self.last_time is None else time - self.last_time
            self.clock += gap if abs(gap) < LONGEST_GAP else self.step
        self.last_time = time
        picture = self.fitter.fit(frame)
        if not self.frames:
            self._open(picture)
        self.last_pts = max(round(self.clock / TIME_BASE), self.last_pts + 1)
        picture.pts = self.last_pts
        picture.time_base = TIME_BASE
        picture.pict_type = av.video.frame.PictureType.NONE
        self.container.mux(self.stream.encode(picture))
        self.frames += 1

    def finish(self) -> Clip:
        """Close the mp4 and read its packet table back."""
        self.container.mux(self.stream.encode(None))
        self.container.close()
        data = self.sink.getvalue()
        table = packet_table(data)
        assert len(table["packet_pts"]) == self.frames
        seconds = self.last_pts * float(TIME_BASE)
        fps = (self.frames - 1) / seconds
        return Clip(
            data=data,
            start=0.0,
            end=seconds + 1 / fps,
            fps=fps,
            frames=self.frames,
            width=self.stream.codec_context.width,
            height=self.stream.codec_context.height,
            matrix="bt601",
            range="tv",
            **table,
        )

    def _open(self, picture: VideoFrame) -> None:
        self.container = av.open(self.sink, "w", format="mp4", options={"fflags": "+bitexact"})
        rate = Fraction(1 / self.step).limit_denominator(1001)
        stream = self.container.add_stream("libx264", rate=rate, options=self._options())
        context = stream.codec_context
        context.width, context.height, context.pix_fmt = picture.width, picture.height, "yuv420p"
        context.time_base = stream.time_base = TIME_BASE
        context.gop_size, context.max_b_frames = KEY_FRAME_EVERY, 0
        context.thread_count = 1  # more threads make other bytes
        context.flags |= int(av.codec.context.Flags.bitexact | av.codec.context.Flags.closed_gop)
        context.color_range, context.colorspace = 1, 6  # limited ("tv"), SMPTE 170M ("bt601")
        self.stream = stream

    def _options(self) -> dict[str, str]:
        x264 = {
            "keyint": KEY_FRAME_EVERY,
            "min-keyint": KEY_FRAME_EVERY,
            "scenecut": 0,
            "open-gop": 0,
            "bframes": 0,
            "cabac": 0,
            "no-deblock": 1,
            "threads": 1,
        }
        return {
            "preset": self.settings.preset,
            "tune": "fastdecode",
            "crf": str(self.settings.crf),
            "x264-params": ":".join(f"{key}={value}" for key, value in x264.items()),
        }


def _frames(source: InputContainer, stream: VideoStream, decoded: Decoded) -> Iterator[VideoFrame]:
    """Every frame that decodes; what does not is counted, never raised."""
    packets = source.demux(stream)
    while True:
        try:
            packet = next(packets, None)
            frames = packet.decode() if packet is not None else []
        except av.error.FFmpegError as error:
            decoded.failed(error)
            if decoded.stuck:
                return
            continue
        if packet is None:
            return
        for frame in frames:
            if isinstance(frame, VideoFrame) and decoded.took(frame):
                yield frame


def _pixel_aspect(stream: VideoStream) -> float:
    return float(stream.sample_aspect_ratio or 1)


def _video_stream(source: Any) -> VideoStream:
    pictures = [s for s in source.streams.video if s.disposition & av.stream.Disposition.attached_pic]
    videos = [s for s in source.streams.video if s not in pictures]
    if not videos:
        if pictures:
            raise BadVideo("no_video", "no video stream (audio with a cover picture)")
        if source.streams.audio:
            raise BadVideo("no_video", "no video stream (audio only)")
        raise BadVideo("no_video", "no video stream", f"container {source.format.name}")
    best = source.streams.best("video")
    stream: VideoStream = best if best in videos else videos[0]
    if stream.codec_context is None:
        raise BadVideo("unsupported", "no decoder for its video codec", f"container {source.format.name}")
    return stream


def _head(path: Path) -> tuple[bytes, int]:
    try:
        with path.open("rb") as file:
            return file.read(4096), path.stat().st_size
    except OF_ONE_FILE as error:
        raise BadVideo("unreadable", "the file cannot be read", str(error.strerror or error)) from error
