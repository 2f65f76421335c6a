"""Transcodes one video: opens it, judges it, cuts it into segments, and encodes (or copies) each into a small mp4."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Self

import pydantic
from av.video.frame import VideoFrame

from sharding.base.settings import Settings
from sharding.corpora.manifest import Video
from sharding.media.clip import Clip
from sharding.media.decoding.reader import FramesLost, Reader
from sharding.media.encoder import Encoder, EncodeSettings
from sharding.media.flow import FlowEncoder, FlowSettings
from sharding.media.input.bad_video import BadVideo
from sharding.media.input.segments import WHOLE_VIDEO, PlannedSegment, SegmentSettings, planned_segments
from sharding.media.input.source import Source, SourceFile, raise_read_error
from sharding.media.input.validity import DecodeStats, judge_bytes, judge_concealed
from sharding.media.remux import copied_clip, require_copyable

HEAD_BYTES = 4096
_MOST_ABSENT = 300  # segments that are listed, of those that a header promises and the video does not have
MANY = 8  # segments that are tried one by one, though the first of them failed


@dataclass(frozen=True)
class TranscodeCost:
    """The cost of a video: how many frames were decoded, how many bytes read."""

    frames: int
    bytes_read: int


class VideoSettings(Settings):
    """What is stored of a video."""

    encode: EncodeSettings = pydantic.Field(
        default_factory=EncodeSettings, description="how its frames are judged and encoded"
    )
    segments: SegmentSettings | None = pydantic.Field(
        default=None, description="segments that are cut out of it; null: the whole video is one sample"
    )
    flow: FlowSettings | None = pydantic.Field(
        default=None, description="optical flow to store beside the pictures; null: none"
    )

    @pydantic.model_validator(mode="after")
    def _possible(self) -> Self:
        if self.encode.copy_packets and self.segments is not None and self.segments.exact:
            raise ValueError("encode.copy and segments.exact are both set: packets can only be cut at key frames")
        if self.encode.copy_packets and self.flow is not None:
            raise ValueError("encode.copy and flow are both set: flow is computed from frames that are stored anew")
        return self


@dataclass(frozen=True)
class SegmentFailure:
    """A segment that gives no sample, with the kind, reason and detail of its BadVideo."""

    segment: int
    kind: str
    reason: str
    detail: str


def transcode(
    source: Source,
    video: Video,
    settings: VideoSettings,
    threads: int = 1,
    alive: Callable[[int], None] | None = None,
) -> Iterator[Clip | SegmentFailure]:
    """A Clip for each segment of the video, or a SegmentFailure; never all frames in memory.

    Only `video.start` to `video.end` is read, and where `video.segments` names some, only those are made. `threads`
    decode and change no byte; `alive` is called with the number of frames decoded so far. Bytes read and frames
    decoded are counted in `source`.

    Raises BadVideo, with a reason a person understands, if it is not a video, is missing or forbidden, or not one
    segment is usable (unless they were named: then each gives its failure); UserError if the store cannot be used;
    OSError if the disk does not answer.
    """
    made = 0
    for count in (threads, 1):
        try:
            for clip in itertools.islice(_transcoded(source, video, settings, count, alive), made, None):
                made += 1
                yield clip
            return
        except FramesLost:  # by one thread they come
            continue


def _transcoded(
    source: Source, video: Video, settings: VideoSettings, threads: int, alive: Callable[[int], None] | None
) -> Iterator[Clip | SegmentFailure]:
    """As `transcode`. Raises FramesLost, too."""
    whole = settings.segments is None and video.start is None and video.end is None
    on_wait = None if alive is None else lambda: alive(source.frames)
    with source.opened(sequential=whole, on_wait=on_wait) as file:
        head = _head(file)
        judge_bytes(head, file.size)
        with Reader(source, file, head, threads, alive) as reader:
            if settings.encode.copy_packets:
                require_copyable(reader)
            if whole:
                yield _whole(reader, settings)
            else:
                yield from _segments(reader, video, settings)


def transcode_with_cost(
    source: Source,
    video: Video,
    settings: VideoSettings,
    threads: int = 1,
    alive: Callable[[int], None] | None = None,
) -> Iterator[Clip | SegmentFailure | TranscodeCost]:
    """As `transcode`, with the TranscodeCost at the end; `source`, which counts it, stays in the child process."""
    yield from transcode(source, video, settings, threads, alive)
    yield TranscodeCost(source.frames, source.bytes_read)


def _whole(reader: Reader, settings: VideoSettings) -> Clip:
    """The whole video, without a seek."""
    if settings.encode.copy_packets:
        return copied_clip(reader, WHOLE_VIDEO, settings.encode)
    return _encoded(reader, reader.all(reader.declared), reader.declared, settings, 0)


def _segments(reader: Reader, video: Video, settings: VideoSettings) -> Iterator[Clip | SegmentFailure]:
    """The segments one after the other; failures are held until one is good, and are the video's own if none is."""
    planned = planned_segments(reader.seconds(), video.start, video.end, settings.segments)
    numbers = {segment.number for segment in planned}
    failures = [
        SegmentFailure(number, "outside", f"there is no segment {number}", f"the video has {len(planned)}")
        for number in video.segments
        if number not in numbers
    ]
    good = bool(video.segments)
    wanted = [segment for segment in planned if not video.segments or segment.number in video.segments]
    ends: float | None = None  # where the video really ends, measured once a segment has failed
    for number, segment in enumerate(wanted):
        if ends is not None and segment.start > ends + segment.snap_limit:
            what = f"the video ends at {ends:.3f} s, though its header says {segment.video_seconds:.3f} s"
            # One by one, as each is to be tried again once the file has been mended.
            absent, reason = wanted[number:], "it is not in the video"
            failures += [SegmentFailure(each.number, "outside", reason, what) for each in absent[:_MOST_ABSENT]]
            if (unlisted := len(absent) - _MOST_ABSENT) > 0:
                reason = f"it and the {unlisted} after it are not in the video"
                failures[-1] = replace(failures[-1], reason=reason)
            break
        try:
            clip = _segment(reader, segment, settings)
        except BadVideo as error:
            if ends is None and len(wanted) - number > MANY:
                ends = reader.measured()
            failures.append(SegmentFailure(segment.number, error.kind, error.reason, error.detail))
            if good:
                yield from failures
                failures = []
            continue
        yield from failures
        failures, good = [], True
        yield clip
    if good:
        yield from failures
    else:
        first = failures[0]
        reason = first.reason
        if len(failures) > 1:
            reason = f"not one of its {len(failures)} segments is usable; the first: {reason}"
        raise BadVideo(first.kind, reason, first.detail)


def _segment(reader: Reader, segment: PlannedSegment, settings: VideoSettings) -> Clip:
    if settings.encode.copy_packets:
        return copied_clip(reader, segment, settings.encode)
    begin = reader.seek(segment.start, segment.snap_limit)
    decoded = reader.declared.for_segment(begin, segment.available_seconds(begin))
    frames = reader.until(begin, segment.end(begin), decoded)
    return _encoded(reader, frames, decoded, settings, segment.number)


def _encoded(
    reader: Reader,
    frames: Iterator[tuple[VideoFrame, float]],
    decoded: DecodeStats,
    settings: VideoSettings,
    segment: int,
) -> Clip:
    """The Clip that the frames make. Raises BadVideo by `decoded`, which counts them while they are taken."""
    encode = settings.encode
    flow = FlowEncoder(settings.flow, encode.key_frame_every) if settings.flow else None
    encoder = Encoder(encode, reader.declared.frame_interval, reader.aspect, flow)
    start: float | None = None
    for frame, time in frames:
        start = time if start is None else start
        encoder.add(frame, time)
    reader.judge(decoded, encode.minimum_decoded)
    judge_concealed(decoded, encode.maximum_concealed)
    assert start is not None
    return replace(encoder.finish(segment, start), concealed=decoded.concealed)


def _head(file: SourceFile) -> bytes:
    """The first HEAD_BYTES of the file, or all of a short one."""
    parts: list[bytes] = []
    while (missing := HEAD_BYTES - sum(map(len, parts))) and (data := file.read(missing)):
        parts.append(data)
    raise_read_error(file)
    return b"".join(parts)
