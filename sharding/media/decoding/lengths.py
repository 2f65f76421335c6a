"""The duration and number of frames of a video stream that a file's header and index declare."""

from __future__ import annotations

import re
import struct

from av.container import InputContainer
from av.video.stream import VideoStream

from sharding.media.input.validity import DecodeStats

COMMON_STEP = 1 / 25  # seconds from frame to frame where no header tells
_ASF_PROPERTIES = bytes.fromhex("A1DCAB8C47A9CF118EE400C00C205365")  # the GUID of their object
_CLOCK = re.compile(r"(\d+):(\d\d):(\d\d(?:\.\d*)?)")


def declared_stats(container: InputContainer, stream: VideoStream, head: bytes) -> tuple[DecodeStats, bool]:
    """Statistics with what the header declares, and whether it declares it of the video stream itself.

    If not, the duration is that of the container, which lasts as long as its audio or subtitles. `head`: the first
    bytes of the file.
    """
    name, tick = container.format.name, float(stream.time_base or 0)
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    frames = stream.frames
    whole = max(0.0, (container.duration or 0) / 1e6)
    own = max(0.0, (stream.duration or 0) * tick)
    if name == "avi" and frames:
        own = whole = frames * tick  # of a file cut off, the demuxer's durations are those of the rest
        if 0 < (chunks := _avi_chunks(stream)) < frames:  # the others are empty: the picture stays
            frames, rate = chunks, min(rate, float(stream.guessed_rate or rate))
    elif name == "asf":
        # The header's, of all its streams together; FFmpeg leaves it out for a file that is not as long as it says.
        own, whole = 0.0, whole or _asf_seconds(head)
    elif "matroska" in name:
        begin = max(0.0, (stream.start_time or 0) * tick)
        own, whole = _matroska(container, stream, begin), max(0.0, whole - begin)
    # The shorter one: a stream may last as long as before an edit.
    seconds = min(own, whole) if own and whole else own or whole
    usual = 1 <= rate <= 240
    step = 1 / rate if usual else COMMON_STEP
    declared = frames or (round(seconds / step) if usual else 0)
    stats = DecodeStats(declared, seconds, step, frames_counted=bool(frames))
    return stats, bool(own or len(container.streams) == 1)


def shown_frames(container: InputContainer, stream: VideoStream) -> int:
    """How many frames of an mp4's index no edit list leaves out; 0 if that is not known."""
    if "mov" not in container.format.name or not stream.frames:
        return 0
    return sum(not entry.is_discard for entry in stream.index_entries)


def _avi_chunks(stream: VideoStream) -> int:
    """How many chunks with a picture an AVI's index has; 0 if there is no index, or it ends early."""
    index = stream.index_entries
    if not len(index) or index[len(index) - 1].timestamp < 0.9 * stream.frames:
        return 0
    return len(index)


def _asf_seconds(head: bytes) -> float:
    """How long an ASF's file properties say that it plays; 0 for a broadcast, which does not know."""
    begin = head.find(_ASF_PROPERTIES)
    if begin < 0 or len(head) < begin + 92:
        return 0.0
    played, _, preroll, flags = struct.unpack_from("<QQQI", head, begin + 64)
    return 0.0 if flags & 1 else max(0.0, played / 1e7 - preroll / 1e3)


def _matroska(container: InputContainer, stream: VideoStream, begin: float) -> float:
    """The seconds in a Matroska stream's DURATION tag, from its begin on; 0 if it has none.

    FFmpeg's muxer counts them from zero, others from the stream's begin.
    """
    for key in ("DURATION", "DURATION-eng"):
        if clock := _CLOCK.fullmatch(stream.metadata.get(key, "").strip()):
            hours, minutes, seconds = map(float, clock.groups())
            total = 3600 * hours + 60 * minutes + seconds
            return max(0.0, total - begin if container.metadata.get("ENCODER", "").startswith("Lavf") else total)
    return 0.0
