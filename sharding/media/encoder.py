"""Encodes frames into a stored segment: a small H.264 mp4 and its packet table."""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any, Literal, Self

import pydantic
from av.video.frame import PictureType, VideoFrame

from sharding.base.settings import Settings, unit
from sharding.media.clip import Clip
from sharding.media.decoding.picture import FrameScaler, luma_of
from sharding.media.flow import FlowEncoder
from sharding.media.h264 import TICKS, TIME_BASE, open_h264, packet_table, x264_options
from sharding.media.input.bad_video import BadVideo
from sharding.media.input.validity import MINIMUM_FRAMES

KEY_FRAME_EVERY = 16
SHORT_EDGE = 128
BURST, BURST_PIXELS = 64, 2**23  # pictures that are encoded together, at most
LONGEST_GAP = 600.0  # seconds between two frames; more is a damaged timestamp


class EncodeSettings(Settings):
    """How a source video is judged and stored.

    The defaults keep a structural similarity of 0.97 to the resized source on every video of
    tests/benchmarks/encoding.py; slower presets save few bytes and decode no faster.
    """

    model_config = pydantic.ConfigDict(populate_by_name=True, serialize_by_alias=True)  # of "copy", a method's name

    short_edge: int = pydantic.Field(
        json_schema_extra=unit("pixels"),
        default=SHORT_EDGE,
        ge=16,
        le=1080,
        multiple_of=2,
        description="longest that the shorter side may be, in square pixels; the aspect ratio is kept",
    )
    size: tuple[int, int] | None = pydantic.Field(
        json_schema_extra=unit("pixels"),
        default=None,
        description="width and height as shown, in pixels, the aspect ratio ignored; replaces short_edge",
    )
    fps: float | None = pydantic.Field(
        json_schema_extra=unit("frames a second"),
        default=None,
        ge=1.0,
        le=240.0,
        description="frames a second, reached by dropping or repeating frames; null: the source's own times",
    )
    key_frame_every: int = pydantic.Field(
        json_schema_extra=unit("frames"),
        default=KEY_FRAME_EVERY,
        ge=1,
        le=600,
        description="frames from one key frame to the next",
    )
    crf: int = pydantic.Field(
        default=18, ge=1, le=51, description="x264's constant rate factor: lower is better and larger"
    )
    preset: Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower"] = (
        pydantic.Field(default="veryfast", description="x264's preset: how much time the encoder takes")
    )
    minimum_decoded: float = pydantic.Field(
        json_schema_extra=unit("share"),
        default=0.9,
        ge=0.0,
        le=1.0,
        description="share from 0 to 1 of the declared frames that must decode",
    )
    maximum_concealed: float = pydantic.Field(
        json_schema_extra=unit("share"),
        default=0.02,
        ge=0.0,
        le=1.0,
        description="share from 0 to 1 of the frames that may show damage which the decoder concealed",
    )
    copy_packets: bool = pydantic.Field(
        default=False, alias="copy", description="store the source's packets untouched, without encoding them again"
    )

    @pydantic.model_serializer(mode="wrap")
    def _as_older_stores_say_it(self, handler: pydantic.SerializerFunctionWrapHandler) -> dict[str, Any]:
        """The settings without a default that older versions lack, so that the digests of their stores match."""
        tree: dict[str, Any] = handler(self)
        if self.maximum_concealed == type(self).model_fields["maximum_concealed"].default:
            tree.pop("maximum_concealed", None)
        return tree

    @pydantic.model_validator(mode="after")
    def _possible(self) -> Self:
        if self.size is not None:
            if any(edge < 16 or edge > 4096 or edge % 2 for edge in self.size):
                raise ValueError(f"size is {list(self.size)}; width and height must be even, from 16 to 4096")
            if self.short_edge != SHORT_EDGE:
                raise ValueError("short_edge and size are both given: leave one of them out")
        if self.copy_packets:
            defaults = {name: field.default for name, field in type(self).model_fields.items()}
            changing = ("short_edge", "size", "fps", "key_frame_every", "crf", "preset")
            changed = [name for name in changing if getattr(self, name) != defaults[name]]
            if changed:
                raise ValueError(f"copy stores the packets as they are: leave out {', '.join(changed)}, or copy")
        return self


class Encoder:
    """Encodes frames into one Clip, of a size that the first frame decides.

    `step`: nominal seconds between frames; `aspect`: a source pixel's width over its height; `flow`: the encoder that
    gets the luma of every stored frame.
    """

    def __init__(self, settings: EncodeSettings, step: float, aspect: float, flow: FlowEncoder | None = None) -> None:
        self.settings = settings
        self.step = step
        self.flow = flow
        self.sink = io.BytesIO()
        self.scaler = FrameScaler(settings.short_edge, aspect, settings.size)
        self.rate = Resampler(settings.fps) if settings.fps else None
        self.frames = 0
        self.last_pts = -1
        self._waiting: list[tuple[VideoFrame, int]] = []
        self._last_time: float | None = None
        self._clock: float | None = None  # seconds since the first frame

    def add(self, frame: VideoFrame, time: float | None) -> None:
        """Add the next frame, shown at `time` seconds; None if the source does not say."""
        if self._clock is None:
            self._clock = 0.0
        else:
            gap = self.step if time is None or self._last_time is None else time - self._last_time
            self._clock += gap if abs(gap) < LONGEST_GAP else self.step
        self._last_time = time
        ticks = round(self._clock * TICKS)
        if self.rate is None:
            self._store(self.scaler.scale(frame), ticks)
        else:
            self._repeat(self.rate.add(frame, ticks))

    def finish(self, segment: int, start: float) -> Clip:
        """Close the mp4; returns the Clip. `start`: the first frame's time in the source."""
        if self.rate is not None:
            self._repeat(self.rate.finish(round(self.step * TICKS)))
            if self.frames < MINIMUM_FRAMES:
                what = f"at {self.settings.fps:g} frames a second it has {self.frames} frame"
                raise BadVideo("too_short", f"{what}; at least {MINIMUM_FRAMES} are needed")
        self._encode()
        self.container.mux(self.stream.encode(None))
        self.container.close()
        data = self.sink.getvalue()
        table = packet_table(data)
        assert len(table["packet_pts"]) == self.frames
        seconds = self.last_pts / TICKS
        fps = self.settings.fps or (self.frames - 1) / seconds
        return Clip(
            data=data,
            segment=segment,
            start=start,
            end=start + seconds + 1 / fps,
            fps=fps,
            frames=self.frames,
            width=self.stream.codec_context.width,
            height=self.stream.codec_context.height,
            matrix="bt601",
            range="tv",
            codec="h264",
            flow=self.flow.finish() if self.flow else None,
            **table,
        )

    def _repeat(self, pictures: tuple[VideoFrame, range] | None) -> None:
        if pictures is None or not pictures[1]:
            return
        assert self.rate is not None
        small = self.scaler.scale(pictures[0])
        for number in pictures[1]:
            self._store(small, self.rate.ticks(number))

    def _store(self, picture: VideoFrame, ticks: int) -> None:
        """Add a picture to those that wait to be encoded, once for each time it is shown."""
        if not self.frames:
            self._open(picture)
        self.last_pts = max(ticks, self.last_pts + 1)
        if self.flow is not None:
            self.flow.add(luma_of(picture), self.last_pts)
        self._waiting.append((picture, self.last_pts))
        self.frames += 1
        if len(self._waiting) * picture.width * picture.height >= BURST_PIXELS or len(self._waiting) == BURST:
            self._encode()

    def _encode(self) -> None:
        """Encode the waiting pictures together: decoder and encoder drive each other out of the processor's caches."""
        for picture, pts in self._waiting:
            picture.pts = pts
            picture.time_base = TIME_BASE
            picture.pict_type = PictureType.NONE
            for packet in self.stream.encode(picture):
                self.container.mux_one(packet)
        self._waiting.clear()

    def _open(self, picture: VideoFrame) -> None:
        rate = Fraction(self.settings.fps or 1 / self.step).limit_denominator(1001)
        every = self.settings.key_frame_every
        self.container, self.stream = open_h264(self.sink, picture, rate, every, self._options())
        context = self.stream.codec_context
        context.color_range, context.colorspace = 1, 6  # limited ("tv"), SMPTE 170M ("bt601")

    def _options(self) -> dict[str, str]:
        return x264_options(self.settings.key_frame_every, self.settings.preset, self.settings.crf)


class Resampler:
    """Drops and repeats frames to a constant rate, rounding times as FFmpeg's fps filter does by default."""

    def __init__(self, fps: float) -> None:
        self.fps = Fraction(fps).limit_denominator(1001)
        self._held: tuple[VideoFrame, int, int] | None = None  # frame, its number, its ticks

    def ticks(self, number: int) -> int:
        """The time of picture `number`, in TIME_BASE."""
        return round(number * TICKS / self.fps)

    def add(self, frame: VideoFrame, ticks: int) -> tuple[VideoFrame, range] | None:
        """The frame before this one, and the numbers of the pictures that repeat it; None for the first frame."""
        number = self._number(ticks)
        shown = None
        if self._held is not None:
            held, first, _ = self._held
            number = max(number, first)
            shown = (held, range(first, number))
        self._held = (frame, number, ticks)
        return shown

    def finish(self, last_ticks: int) -> tuple[VideoFrame, range] | None:
        """The last frame, shown for `last_ticks`, and the numbers of its pictures; None if no frame came."""
        if self._held is None:
            return None
        held, first, ticks = self._held
        return held, range(first, self._number(ticks + last_ticks))

    def _number(self, ticks: int) -> int:
        return (2 * ticks * self.fps.numerator + TICKS * self.fps.denominator) // (2 * TICKS * self.fps.denominator)
