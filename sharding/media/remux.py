"""Copies a segment's packets from the source, without encoding them anew, into an mp4 of the video stream alone."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Iterator

import av
import av.error
import numpy as np
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream

from sharding.media.clip import Clip
from sharding.media.decoding.orientation import UPRIGHT, orientation_of
from sharding.media.decoding.picture import MATRIX_NAMES, is_full_range, source_matrix
from sharding.media.decoding.reader import Reader
from sharding.media.encoder import EncodeSettings
from sharding.media.h264 import TICKS, packet_table
from sharding.media.input.bad_video import BadVideo
from sharding.media.input.segments import TOLERANCE, WHOLE_VIDEO, PlannedSegment
from sharding.media.input.validity import DecodeStats, judge_concealed

COPYABLE = ("h264", "hevc", "av1", "vp9", "mpeg4")
MOST_REORDERED = 32
PACKED = re.compile(rb"\x00\x00\x01\xb2DivX\d+(?:Build|b)\d+p")  # the user data by which DivX marks such a stream
_SQUARE = 0.01  # by which a square pixel's width may differ from its height
MUXER = {"fflags": "+bitexact", "video_track_timescale": str(TICKS)}


def require_copyable(reader: Reader) -> None:
    """Raise BadVideo if packets of the source's codec cannot be in an mp4, or do not say when they are shown."""
    context = reader.stream.codec_context
    name = context.codec.canonical_name
    if name not in COPYABLE:
        what = f"its packets cannot be copied: an mp4 does not hold {name} here; shard it without encode.copy"
        raise BadVideo("unsupported", what, f"those that can be copied: {', '.join(COPYABLE)}")
    # MPEG-4 says of each picture how it is reordered, which makes FFmpeg's guesses right.
    if reader.decoding_times_only and context.has_b_frames and name != "mpeg4":
        what = "its pictures are not shown in the order of its packets, which carry no times for showing"
        raise BadVideo("unsupported", f"{what}; shard it without encode.copy", f"{name} in AVI")


def copied_clip(reader: Reader, segment: PlannedSegment, settings: EncodeSettings) -> Clip:
    """The Clip with a segment's own packets, from a key frame on.

    Begins at the key frame at most `snap_limit` before the planned start, else at the first one after it. In decode
    order up to the first packet that is shown after the end, so that all that is stored can be decoded. Only the
    first picture is decoded, so of concealed damage only what packets tell is noticed. Raises BadVideo if there is no
    such key frame, if too few packets or too many damaged ones come, or if the pictures are to be turned or mirrored,
    which only the mp4's header says: readers fetch packets by the record.
    """
    packets, begin = _from_key_frame(reader, segment)
    # What begins late ends where it was planned to end.
    end = min(segment.end(begin), segment.end(segment.start)) if begin > segment.start else segment.end(begin)
    declared = reader.declared
    if math.isfinite(segment.video_seconds):
        declared = declared.for_segment(begin, max(0.0, min(end, segment.video_seconds) - begin))
    reader.counting = declared
    sink = io.BytesIO()
    try:
        picture = _muxed(sink, reader, _until(reader, packets, begin, end, declared), declared)
    except av.error.FFmpegError as error:
        what = "its packets cannot be copied into an mp4; shard it without encode.copy"
        raise BadVideo("unsupported", what, error.strerror or str(error)) from error
    reader.judge(declared, settings.minimum_decoded)
    judge_concealed(declared, settings.maximum_concealed)
    if picture is None:
        raise BadVideo("undecodable", "its first key frame does not decode", declared.last_error)
    if (orientation := orientation_of(picture)) != UPRIGHT:
        what = "it is to be shown turned or mirrored, which who reads its packets alone is not told"
        raise BadVideo("unsupported", f"{what}; shard it without encode.copy", f"its display matrix: {orientation}")
    if abs(reader.aspect - 1) > _SQUARE:
        what = "its pixels are not square, which who reads its packets alone is not told"
        shape = f"a pixel is {reader.aspect:.3f} times as wide as high"
        raise BadVideo("unsupported", f"{what}; shard it without encode.copy", shape)
    return _clip(sink.getvalue(), reader, segment.number, begin, picture, declared.concealed)


def _from_key_frame(reader: Reader, segment: PlannedSegment) -> tuple[Iterator[Packet[VideoStream]], float]:
    """The packets from the segment's key frame on, and its time."""
    packets, key = reader.from_key_frame(segment.start)
    if segment is WHOLE_VIDEO and key is not None and key < -TOLERANCE:
        raise _edited(f"its first picture is shown from a key frame on that comes {-key:.3f} s before it")
    timed = False
    if key is None or key < segment.start - segment.snap_limit - TOLERANCE:
        for packet in packets:
            time = reader.time(packet)
            timed = timed or time is not None
            if packet.is_keyframe and time is not None and time > segment.start:
                packets, key = itertools.chain([packet], packets), time
                break
        else:
            if not timed:
                raise BadVideo("unsupported", "its packets carry no times; shard it without encode.copy")
            raise BadVideo("no_key_frame", f"no key frame comes after {segment.start:.3f} s, so nothing can be copied")
    latest = min(segment.start + segment.length / 2, segment.latest_end)
    if math.isfinite(latest) and key > latest:
        what = f"its next key frame, at {key:.3f} s, is too late for a segment planned at {segment.start:.3f} s"
        raise BadVideo("no_key_frame", f"{what}; shard it without encode.copy")
    return packets, key


def _until(
    reader: Reader, packets: Iterator[Packet[VideoStream]], begin: float, end: float, decoded: DecodeStats
) -> Iterator[Packet[VideoStream]]:
    """The packets up to the one that is shown at `end`, without damaged ones; counted in `decoded`."""
    concealment = reader.new_concealment_detector()
    left_out: float | None = None
    zero: float | None = None  # when a packet of pts 0 is shown
    tick = float(reader.stream.time_base or 0)
    for packet in packets:
        time = reader.time(packet) if zero is None or packet.pts is None else zero + packet.pts * tick
        concealed = concealment.is_packet_concealed(packet)
        if packet.is_discard:
            left_out = time
            continue
        if not packet.size or (time is not None and time < begin - TOLERANCE):
            continue  # pictures shown before the key frame need the group before it
        if time is not None and time >= end - TOLERANCE:
            decoded.observe_past_end(time)
            return
        if left_out is not None:
            raise _edited(f"its pictures after {left_out:.3f} s are decoded from some that are not shown")
        if zero is None and packet.pts is not None:
            zero = begin - packet.pts * tick
        decoded.count_frame(time, concealed, stored=not concealment.damaged)
        if not concealment.damaged:
            yield packet


def _edited(detail: str) -> BadVideo:
    what = "an edit leaves out pictures that those shown are decoded from; shard it without encode.copy"
    return BadVideo("unsupported", what, detail)


def _muxed(
    sink: io.BytesIO, reader: Reader, packets: Iterator[Packet[VideoStream]], decoded: DecodeStats
) -> VideoFrame | None:
    """Write the packets as an mp4 into `sink`; returns the first picture, None if it does not decode."""
    picture: VideoFrame | None = None
    first: int | None = None
    with av.open(sink, "w", format="mp4", options=MUXER) as container:
        out = container.add_stream_from_template(reader.stream, opaque=True)
        for packet in _with_decoding_times(packets):
            if first is None:
                _require_one_picture_each(reader, packet)
            if picture is None and not decoded.errors:
                picture = next(iter(reader.pictures(packet)), None)
            assert packet.pts is not None and packet.dts is not None
            first = packet.pts if first is None else first
            packet.pts -= first
            packet.dts -= first
            packet.stream = out
            container.mux_one(packet)
        if picture is None and not decoded.errors:
            picture = next(iter(reader.pictures(None)), None)
    return picture


def _require_one_picture_each(reader: Reader, packet: Packet[VideoStream]) -> None:
    """Raise BadVideo for MPEG-4 as DivX packs it: two pictures in one packet, none in the next.

    Readers decode by packets, and would take one picture for the other.
    """
    context = reader.stream.codec_context
    if context.name == "mpeg4" and PACKED.search(bytes(context.extradata or b"") + bytes(packet)):
        what = "its packets hold two pictures or none (a packed bitstream); shard it without encode.copy"
        raise BadVideo("unsupported", what, "ffmpeg -bsf:v mpeg4_unpack_bframes unpacks it")


def _with_decoding_times(packets: Iterator[Packet[VideoStream]]) -> Iterator[Packet[VideoStream]]:
    """The packets, with decoding times for the first ones, which may lack them.

    Those that lack one get times a duration apart, before the first packet that has one.
    """
    waiting: list[Packet[VideoStream]] = []
    for packet in packets:
        packet.pts = packet.dts if packet.pts is None else packet.pts
        waiting.append(packet)
        if packet.dts is None:
            if len(waiting) > MOST_REORDERED:
                break
            continue
        for number, earlier in enumerate(reversed(waiting)):
            if earlier.dts is None:
                earlier.dts = packet.dts - number * max(1, earlier.duration or 1)
        yield from waiting
        waiting = []
    for packet in waiting:
        packet.dts = packet.pts
    yield from waiting


def _clip(data: bytes, reader: Reader, segment: int, begin: float, picture: VideoFrame, concealed: int) -> Clip:
    table = packet_table(data)
    times = table["packet_pts"]
    if len(np.unique(times)) < len(times):
        what = "two of its pictures are to be shown at one time; shard it without encode.copy"
        raise BadVideo("unsupported", what, f"{len(times) - len(np.unique(times))} of {len(times)}")
    seconds = int(times.max() - times.min()) / TICKS
    fps = (len(times) - 1) / seconds
    full = picture.color_range == ColorRange.JPEG or is_full_range(picture.format.name)
    matrix = source_matrix(picture.colorspace, min(picture.width, picture.height))
    return Clip(
        data=data,
        segment=segment,
        start=begin,
        end=begin + seconds + 1 / fps,
        fps=fps,
        frames=len(times),
        width=picture.width,
        height=picture.height,
        matrix=MATRIX_NAMES[matrix],
        range="pc" if full else "tv",
        codec=reader.stream.codec_context.codec.name,
        concealed=concealed,
        **table,
    )
