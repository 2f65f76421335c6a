"""Whether a file is a usable video, and if not, why, in words a person understands."""

from __future__ import annotations

from dataclasses import dataclass

from sharding.media.input.bad_video import BadVideo
from sharding.media.input.source import SourceFile

MINIMUM_FRAMES = 2
STUCK_AFTER = 1000  # errors in a row without a frame: nothing more will come


@dataclass
class DecodeStats:
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
    begin: float | None = None  # of a stretch; None: the whole stream is meant
    passed_end: bool = False  # something came that is shown after the stretch
    latest: float | None = None  # time of a frame that came, in the stretch or before it
    gap: float = 0.0  # from the one before that

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
            self.saw(time)
            self.first_time = time if self.first_time is None else min(self.first_time, time)
            self.last_time = time if self.last_time is None else max(self.last_time, time)

    def saw(self, time: float) -> None:
        """A frame shown at `time` came, in the stretch or before it."""
        if self.latest is not None and time > self.latest:
            self.gap = time - self.latest
        self.latest = time if self.latest is None else max(self.latest, time)

    def passed(self, time: float) -> None:
        """A frame came that is shown after the stretch, at `time`."""
        self.passed_end = True
        self.saw(time)

    def lasts(self, seconds: float) -> None:
        """The stream lasts so long, whatever was declared; of the declared frames, as large a share."""
        if self.seconds:
            self.declared = round(self.declared * seconds / self.seconds)
        self.seconds = seconds

    def for_stretch(self, begin: float, seconds: float) -> DecodeStats:
        """What the header says of so many seconds of the stream."""
        rate = min(1 / self.step, self.declared / self.seconds) if self.declared and self.seconds else 1 / self.step
        return DecodeStats(round(seconds * rate), seconds, self.step, begin=begin)

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
    def clean(self) -> bool:
        """Whether nothing went wrong."""
        return not self.errors and not self.corrupt and not self.concealed

    @property
    def covered(self) -> float:
        """Share of the declared seconds in which a frame is shown that came; 0 if unknown.

        Of a stretch, from its begin on: where frames are far apart, the last one before it is shown till the first.
        """
        if self.begin is not None:
            if self.passed_end or self.latest is None or not self.seconds:
                return float(self.passed_end)
            return (self.latest + max(self.step, self.gap) - self.begin) / self.seconds
        if self.first_time is None or self.last_time is None or not self.seconds:
            return 0.0
        return (self.last_time - self.first_time + self.step) / self.seconds

    @property
    def share(self) -> float:
        """Share of the declared frames that came.

        Where nothing went wrong, of the declared seconds if that is more: headers count frames that are dropped or
        edited away, and know no single part of a video whose frame rate varies.
        """
        if self.declared:
            share = self.frames / self.declared
        else:
            share = 1.0 if self.clean else self.frames / (self.frames + self.corrupt + self.errors)
        return max(share, self.covered) if self.clean else share


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


def judge_frames(decoded: DecodeStats, minimum: float) -> None:
    """Raises BadVideo if too few frames decoded: a smaller share than `minimum`, or fewer than a video has."""
    detail = f"{decoded.errors} decoding errors, the last: {decoded.last_error}" if decoded.errors else ""
    if decoded.corrupt:
        detail = f"{decoded.corrupt} damaged packets" + (f"; {detail}" if detail else "")
    if decoded.frames < MINIMUM_FRAMES and decoded.clean:
        if decoded.begin is not None and decoded.covered >= minimum:
            end = decoded.begin + decoded.seconds
            what = (
                f"{'only 1' if decoded.frames else 'no'} frame is first shown from {decoded.begin:.3f} to {end:.3f} s"
            )
            why = f"its frames are {decoded.gap:.3g} s apart there; choose longer segments"
            raise BadVideo("too_short", f"{what}, and at least {MINIMUM_FRAMES} are needed: {why}")
        if decoded.begin is None and decoded.declared <= max(decoded.frames, 1):
            if decoded.frames == 0:
                raise BadVideo("too_short", "the video stream has no frame")
            raise BadVideo("too_short", f"a still image: only 1 frame; at least {MINIMUM_FRAMES} are needed")
    if decoded.frames == 0:
        raise BadVideo("undecodable", "no frame of it decodes", detail)
    share = decoded.share
    if share < minimum or decoded.frames < MINIMUM_FRAMES:
        declared = decoded.declared or decoded.frames + decoded.corrupt + decoded.errors
        what = (
            f"only {decoded.frames} of {declared} declared frames decode "
            f"({100 * decoded.frames / declared:.0f} %); at least {100 * minimum:.0f} % are needed"
        )
        raise BadVideo("missing_frames", what, detail)


def judge_concealed(decoded: DecodeStats, maximum: float) -> None:
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
