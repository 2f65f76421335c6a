"""Whether a file is a usable video, and if not, why, in words a person understands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from av.video.stream import VideoStream

if TYPE_CHECKING:
    from sharding.source import SourceFile

MINIMUM_FRAMES = 2
STUCK_AFTER = 1000  # errors in a row without a frame: nothing more will come


class BadVideo(Exception):
    """A source video that gives no sample. `kind` is one of few words (for counters), `reason` a sentence."""

    def __init__(self, kind: str, reason: str, detail: str = "") -> None:
        super().__init__(kind, reason, detail)
        self.kind = kind
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason} ({self.detail})" if self.detail else self.reason


@dataclass
class Decoded:
    """What a container declares of its video stream, and what came out of the decoder. Times in seconds."""

    declared: int  # frames; 0: unknown
    seconds: float  # 0: unknown
    step: float  # nominal time between frames
    frames: int = 0
    concealed: int = 0  # of the frames, those that show concealed damage; see media/concealment.py
    corrupt: int = 0  # damaged packets that are not copied
    errors: int = 0
    errors_in_row: int = 0
    first_time: float | None = None
    last_time: float | None = None
    last_error: str = ""

    @classmethod
    def of(cls, stream: VideoStream, container_duration: int | None, format_name: str) -> Decoded:
        """What the stream's header says, before anything is decoded."""
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        durations = [container_duration / 1e6] if container_duration and container_duration > 0 else []
        if stream.duration and stream.duration > 0 and stream.time_base:
            durations.append(float(stream.duration * stream.time_base))
        # The shorter one: a container lasts as long as its audio, a stream as long as before an edit.
        seconds = min(durations, default=0.0)
        if "matroska" in format_name and stream.start_time and stream.time_base:
            seconds = max(0.0, seconds - float(stream.start_time * stream.time_base))  # it counts from zero
        step = 1 / rate if 1 <= rate <= 240 else 1 / 25
        declared = stream.frames or (round(seconds / step) if 1 <= rate <= 240 else 0)
        if format_name == "avi" and stream.frames:
            seconds = stream.frames * step  # of a file cut off, the demuxer's duration is that of the rest
        return cls(declared, seconds, step)

    def took(self, time: float | None, concealed: int = 0, stored: bool = True) -> None:
        """Count a frame shown at `time`, or the packet of one that is not decoded.

        `concealed`: how many frames it adds to those that show concealed damage; it may tell of frames before it.
        `stored`: False for a damaged packet that is not copied.
        """
        self.errors_in_row = 0
        self.corrupt += not stored
        self.frames += stored
        self.concealed = min(self.concealed + concealed, self.frames + self.corrupt)
        if time is not None:
            self.first_time = time if self.first_time is None else min(self.first_time, time)
            self.last_time = time if self.last_time is None else max(self.last_time, time)

    def of_stretch(self, seconds: float) -> Decoded:
        """What the header says of so many seconds of the stream."""
        return Decoded(round(seconds / self.step), seconds, self.step)

    def failed(self, error: Exception) -> None:
        """Count an error of the demuxer or decoder."""
        self.errors += 1
        self.errors_in_row += 1
        self.last_error = str(error)

    @property
    def stuck(self) -> bool:
        """Whether the stream only gives errors."""
        return self.errors_in_row >= STUCK_AFTER

    @property
    def covered(self) -> float:
        """Share of the declared seconds between the first and the last frame; 0 if unknown."""
        if self.first_time is None or self.last_time is None or not self.seconds:
            return 0.0
        return (self.last_time - self.first_time + self.step) / self.seconds


def judge_bytes(head: bytes, size: int) -> None:
    """Raises BadVideo for a file whose first bytes already say that it is none.

    Before any demuxer sees it: text may be a playlist, which would make FFmpeg open other addresses.
    """
    if size == 0:
        raise BadVideo("empty", "the file is empty")
    if not any(head):
        raise BadVideo("not_video", "not a video file (its bytes are all zero)", f"{size} bytes")
    if _is_text(head):
        shown = head[:60].decode("utf-8", "replace").splitlines()[0]
        raise BadVideo("not_video", "not a video file (its bytes are plain text)", f"it begins {shown!r}")


def judge_unopenable(file: SourceFile, head: bytes, error: str) -> BadVideo:
    """Why a demuxer refused the file."""
    if head[4:8] in (b"ftyp", b"mdat", b"moov", b"wide", b"free", b"skip"):
        if b"moov" not in _boxes(file):
            what = "the file is cut off or damaged: its header (moov) is missing"
            return BadVideo("truncated", what, error)
        return BadVideo("truncated", "the file is cut off or damaged: its header (moov) cannot be read", error)
    if head[:4] in (b"RIFF", b"\x1aE\xdf\xa3", b"OggS", b"FLV\x01", b"\x30\x26\xb2\x75"):
        return BadVideo("truncated", "the file is cut off or damaged: its header cannot be read", error)
    return BadVideo("not_video", "not a video file (no video format known here)", error)


def judge_frames(decoded: Decoded, minimum: float) -> None:
    """Raises BadVideo if too few frames decoded.

    A share of the declared frames below `minimum` is accepted where the frames that came cover the
    declared time without an error: headers count frames that are dropped or edited away.
    """
    detail = f"{decoded.errors} decoding errors, the last: {decoded.last_error}" if decoded.errors else ""
    if decoded.corrupt:
        detail = f"{decoded.corrupt} damaged packets" + (f"; {detail}" if detail else "")
    clean = not decoded.errors and not decoded.corrupt and not decoded.concealed
    if decoded.frames < MINIMUM_FRAMES and decoded.declared <= max(decoded.frames, 1) and clean:
        if decoded.frames == 0:
            raise BadVideo("too_short", "the video stream has no frame")
        raise BadVideo("too_short", f"a still image: only 1 frame; at least {MINIMUM_FRAMES} are needed")
    if decoded.frames == 0:
        raise BadVideo("undecodable", "no frame of it decodes", detail)
    share = decoded.frames / decoded.declared if decoded.declared else 1.0
    if not decoded.declared and not clean:
        share = decoded.frames / (decoded.frames + decoded.corrupt + decoded.errors)
    if clean:
        share = max(share, decoded.covered)
    if share < minimum or decoded.frames < MINIMUM_FRAMES:
        declared = decoded.declared or decoded.frames + decoded.corrupt + decoded.errors
        what = (
            f"only {decoded.frames} of {declared} declared frames decode "
            f"({100 * decoded.frames / declared:.0f} %); at least {100 * minimum:.0f} % are needed"
        )
        raise BadVideo("missing_frames", what, detail)


def judge_concealed(decoded: Decoded, maximum: float) -> None:
    """Raises BadVideo if more than a share `maximum` of the frames shows damage that the decoder concealed."""
    frames = decoded.frames + decoded.corrupt
    if decoded.concealed <= maximum * frames:
        return
    what = (
        f"{decoded.concealed} of {frames} frames show damage that the decoder concealed "
        f"({100 * decoded.concealed / frames:.1f} %); at most {100 * maximum:g} % may"
    )
    detail = f"{decoded.errors} decoding errors, the last: {decoded.last_error}" if decoded.errors else ""
    raise BadVideo("concealed", what, detail)


def _is_text(head: bytes) -> bool:
    if b"\0" in head:
        return False
    for cut in range(4):  # the last character may be cut in two
        try:
            text = head[: len(head) - cut].decode("utf-8")
        except UnicodeDecodeError:
            continue
        return all(character.isprintable() or character in "\r\n\t\f\x1b\ufeff" for character in text)
    return False


def _boxes(file: SourceFile) -> list[bytes]:
    """Types of the top-level boxes of an mp4, as far as they follow each other."""
    found: list[bytes] = []
    position = 0
    while position + 8 <= file.size and len(found) < 1000:
        file.seek(position)
        header = file.read(16)
        size = int.from_bytes(header[:4], "big")
        found.append(header[4:8])
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        if size < 8:
            break
        position += size
    return found
