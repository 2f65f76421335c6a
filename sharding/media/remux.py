"""A segment's packets as the source has them, in an mp4 of the video stream alone."""

from __future__ import annotations

import io
import itertools
import math
from collections.abc import Iterator

import av
import av.error
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream

from sharding.media.encoder import TICKS, Clip, packet_table
from sharding.media.judge import BadVideo, Decoded, judge_frames
from sharding.media.orientation import UPRIGHT, orientation_of
from sharding.media.picture import MATRIX_NAMES, is_full_range, source_matrix
from sharding.media.reader import Reader
from sharding.media.segments import TOLERANCE, Stretch

COPYABLE = ("h264", "hevc", "av1", "vp9", "mpeg4")
MOST_REORDERED = 32
MUXER = {"fflags": "+bitexact", "video_track_timescale": str(TICKS)}


def require_copyable(reader: Reader) -> None:
    """Raises BadVideo if the source's codec has no place in an mp4."""
    name = reader.stream.codec_context.codec.canonical_name
    if name not in COPYABLE:
        what = f"its packets cannot be copied: an mp4 does not hold {name} here; shard it without encode.copy"
        raise BadVideo("unsupported", what, f"those that can be copied: {', '.join(COPYABLE)}")


def copied(reader: Reader, stretch: Stretch, minimum: float) -> Clip:
    """The stretch's packets, from a key frame on.

    Begins at the key frame at most `limit` before the planned start, else at the first one after it. Taken in decode
    order up to the first packet that is shown after the end, so that all that is stored can be decoded. Only the
    first picture is decoded. Raises BadVideo if there is no such key frame or too few packets, or if the
    pictures are to be turned or mirrored, which only the mp4's header says: readers fetch packets by the record.
    """
    packets, begin = _from_key_frame(reader, stretch)
    # What begins late ends where it was planned to end.
    end = min(stretch.end(begin), stretch.end(stretch.start)) if begin > stretch.start else stretch.end(begin)
    declared = reader.declared
    if math.isfinite(stretch.known):
        declared = declared.of_stretch(max(0.0, min(end, stretch.known) - begin))
    reader.counting = declared
    sink = io.BytesIO()
    try:
        picture = _muxed(sink, reader, _until(reader, packets, begin, end, declared), declared)
    except av.error.FFmpegError as error:
        what = "its packets cannot be copied into an mp4; shard it without encode.copy"
        raise BadVideo("unsupported", what, error.strerror or str(error)) from error
    judge_frames(declared, minimum)
    if picture is None:
        raise BadVideo("undecodable", "its first key frame does not decode", declared.last_error)
    if (orientation := orientation_of(picture)) != UPRIGHT:
        what = "it is to be shown turned or mirrored, which who reads its packets alone is not told"
        raise BadVideo("unsupported", f"{what}; shard it without encode.copy", f"its display matrix: {orientation}")
    return _clip(sink.getvalue(), reader, stretch.segment, begin, picture)


def _from_key_frame(reader: Reader, stretch: Stretch) -> tuple[Iterator[Packet[VideoStream]], float]:
    packets, key = reader.from_key_frame(stretch.start)
    timed = False
    if key is None or key < stretch.start - stretch.limit - TOLERANCE:
        for packet in packets:
            time = reader.time(packet)
            timed = timed or time is not None
            if packet.is_keyframe and time is not None and time > stretch.start:
                packets, key = itertools.chain([packet], packets), time
                break
        else:
            if not timed:
                raise BadVideo("unsupported", "its packets carry no times; shard it without encode.copy")
            raise BadVideo("no_key_frame", f"no key frame comes after {stretch.start:.3f} s, so nothing can be copied")
    latest = min(stretch.start + stretch.length / 2, stretch.latest)
    if math.isfinite(latest) and key > latest:
        what = f"its next key frame, at {key:.3f} s, is too late for a segment planned at {stretch.start:.3f} s"
        raise BadVideo("no_key_frame", f"{what}; shard it without encode.copy")
    return packets, key


def _until(
    reader: Reader, packets: Iterator[Packet[VideoStream]], begin: float, end: float, decoded: Decoded
) -> Iterator[Packet[VideoStream]]:
    for packet in packets:
        time = reader.time(packet)
        if not packet.size or (time is not None and time < begin - TOLERANCE):
            continue  # pictures shown before the key frame need the group before it
        if time is not None and time >= end - TOLERANCE:
            return
        if decoded.took(packet, time):
            yield packet


def _muxed(
    sink: io.BytesIO, reader: Reader, packets: Iterator[Packet[VideoStream]], decoded: Decoded
) -> VideoFrame | None:
    """Write the mp4; returns the first picture, None if it does not decode."""
    picture: VideoFrame | None = None
    first: int | None = None
    with av.open(sink, "w", format="mp4", options=MUXER) as container:
        out = container.add_stream_from_template(reader.stream, opaque=True)
        for packet in _with_decoding_times(packets):
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


def _with_decoding_times(packets: Iterator[Packet[VideoStream]]) -> Iterator[Packet[VideoStream]]:
    """The packets, the first of which may lack a decoding time: a container need not have them.

    Those that lack one come a duration each before the first that has one.
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


def _clip(data: bytes, reader: Reader, segment: int, begin: float, picture: VideoFrame) -> Clip:
    table = packet_table(data)
    times = table["packet_pts"]
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
        **table,
    )
