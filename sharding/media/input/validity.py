"""Judges whether a file is a usable video: where one is called bad (BadVideo), by its bytes and by what decoded."""

from __future__ import annotations

from dataclasses import dataclass

from sharding.media.input.bad_video import BadVideo
from sharding.media.input.source import SourceFile

MINIMUM_FRAMES = 2
STUCK_AFTER = 1000  # errors in a row without a frame: nothing more will come


@dataclass
class DecodeStats:
    """Statistics of decoding a video stream or one segment: what the header declares, what came. Times in seconds."""

    declared_frames: int  # 0: unknown
    declared_seconds: float  # 0: unknown
    frame_interval: float  # nominal time between frames
    frames: int = 0
    concealed: int = 0  # of the frames, those that show concealed damage; see media/decoding/concealment.py
    corrupt: int = 0  # damaged packets that are not copied
    errors: int = 0
    errors_in_row: int = 0
    first_time: float | None = None
    last_time: float | None = None
    last_error: str = ""
    segment_start: float | None = None  # None: the statistics are of the whole stream
    passed_end: bool = False  # something came that is shown after the segment's end
    latest_time: float | None = None  # of the frames that came, in the segment or before it
    latest_gap: float = 0.0  # from the frame before that one
    frames_counted: bool = True  # False: the declared frames are guessed, by the duration and a usual rate

    def count_frame(self, time: float | None, concealed: int = 0, stored: bool = True) -> None:
        """Count a frame shown at `time`, or a packet that is copied without decoding.

        `concealed`: by how many frames the number of those with concealed damage grows; also frames before this one.
        `stored`: False for a damaged packet that is not copied.
        """
        self.errors_in_row = 0
        self.corrupt += not stored
        self.frames += stored
        self.concealed = min(self.concealed + concealed, self.frames + self.corrupt)
        if time is not None:
            self.observe_time(time)
            self.first_time = time if self.first_time is None else min(self.first_time, time)
            self.last_time = time if self.last_time is None else max(self.last_time, time)

    def observe_time(self, time: float) -> None:
        """Note the time of a frame, in the segment or before it."""
        if self.latest_time is not None and time > self.latest_time:
            self.latest_gap = time - self.latest_time
        self.latest_time = time if self.latest_time is None else max(self.latest_time, time)

    def observe_past_end(self, time: float) -> None:
        """Note the time of a frame that is shown after the segment."""
        self.passed_end = True
        self.observe_time(time)

    def correct_duration(self, seconds: float) -> None:
        """Replace the declared duration; the declared frames change in proportion."""
        if self.declared_seconds:
            self.declared_frames = round(self.declared_frames * seconds / self.declared_seconds)
        self.declared_seconds = seconds

    def for_segment(self, begin: float, seconds: float) -> DecodeStats:
        """New statistics for `seconds` of the stream from `begin` on, with the frames declared for them."""
        rate = 1 / self.frame_interval
        if self.declared_frames and self.declared_seconds:
            rate = min(rate, self.declared_frames / self.declared_seconds)
        return DecodeStats(round(seconds * rate), seconds, self.frame_interval, segment_start=begin)

    def count_error(self, error: Exception) -> None:
        """Count an error of the demuxer or decoder."""
        self.errors += 1
        self.errors_in_row += 1
        self.last_error = str(error)

    @property
    def stuck(self) -> bool:
        """Whether nothing but errors comes any more."""
        return self.errors_in_row >= STUCK_AFTER

    @property
    def clean(self) -> bool:
        """Whether nothing went wrong."""
        return not self.errors and not self.corrupt and not self.concealed

    @property
    def covered(self) -> float:
        """Share of the declared seconds that the decoded frames cover; 0 if unknown.

        Of a segment, from its start on: where frames are far apart, the last one before it is shown till the first.
        """
        if self.segment_start is not None:
            if self.passed_end or self.latest_time is None or not self.declared_seconds:
                return float(self.passed_end)
            return (
                self.latest_time + max(self.frame_interval, self.latest_gap) - self.segment_start
            ) / self.declared_seconds
        if self.first_time is None or self.last_time is None or not self.declared_seconds:
            return 0.0
        return (self.last_time - self.first_time + self.frame_interval) / self.declared_seconds

    @property
    def share(self) -> float:
        """Share of the declared frames that were decoded.

        Where nothing went wrong, `covered` if that is more: headers count frames that are dropped or edited away, and
        say nothing of a part of a video whose frame rate varies. Where the frames were guessed and something went
        wrong, the share of them that decoded counts for as much of the duration as they cover.
        """
        if self.declared_frames:
            share = self.frames / self.declared_frames
        else:
            share = 1.0 if self.clean else self.frames / (self.frames + self.corrupt + self.errors)
        if self.clean:
            return max(share, self.covered)
        if self.frames_counted or not self.frames:
            return share
        return max(share, min(1.0, self.covered) * self.frames / (self.frames + self.corrupt + self.errors))


def judge_bytes(head: bytes, size: int) -> None:
    """Raise BadVideo for a file whose first bytes cannot begin a video: none, zeros, text.

    Called before any demuxer sees it: text may be a playlist, which would make FFmpeg open other addresses.
    """
    if size == 0:
        raise BadVideo("empty", "the file is empty")
    if not any(head):
        raise BadVideo("not_video", "not a video file (its bytes are all zero)", f"{size} bytes")
    if _is_text(head):
        shown = head[:60].decode("utf-8", "replace").splitlines()[0]
        raise BadVideo("not_video", "not a video file (its bytes are plain text)", f"it begins {shown!r}")


def unopenable_error(file: SourceFile, head: bytes, error: str) -> BadVideo:
    """The BadVideo for a file that no demuxer opens; `error` is FFmpeg's."""
    if head[4:8] in (b"ftyp", b"mdat", b"moov", b"wide", b"free", b"skip"):
        if b"moov" not in _boxes(file):
            what = "the file is cut off or damaged: its header (moov) is missing"
            return BadVideo("truncated", what, error)
        return BadVideo("truncated", "the file is cut off or damaged: its header (moov) cannot be read", error)
    if head[:4] in (b"RIFF", b"\x1aE\xdf\xa3", b"OggS", b"FLV\x01", b"\x30\x26\xb2\x75"):
        return BadVideo("truncated", "the file is cut off or damaged: its header cannot be read", error)
    return BadVideo("not_video", "not a video file (no video format known here)", error)


def judge_frames(decoded: DecodeStats, minimum: float) -> None:
    """Raise BadVideo if too few frames were decoded: a smaller share than `minimum`, or fewer than MINIMUM_FRAMES."""
    detail = f"{decoded.errors} decoding errors, the last: {decoded.last_error}" if decoded.errors else ""
    if decoded.corrupt:
        detail = f"{decoded.corrupt} damaged packets" + (f"; {detail}" if detail else "")
    if decoded.frames < MINIMUM_FRAMES and decoded.clean:
        if decoded.segment_start is not None and decoded.covered >= minimum:
            end = decoded.segment_start + decoded.declared_seconds
            count = "only 1" if decoded.frames else "no"
            what = f"{count} frame is first shown from {decoded.segment_start:.3f} to {end:.3f} s"
            why = f"its frames are {decoded.latest_gap:.3g} s apart there; choose longer segments"
            raise BadVideo("too_short", f"{what}, and at least {MINIMUM_FRAMES} are needed: {why}")
        if decoded.segment_start is None and decoded.declared_frames <= max(decoded.frames, 1):
            if decoded.frames == 0:
                raise BadVideo("too_short", "the video stream has no frame")
            raise BadVideo("too_short", f"a still image: only 1 frame; at least {MINIMUM_FRAMES} are needed")
    if decoded.frames == 0:
        raise BadVideo("undecodable", "no frame of it decodes", detail)
    share = decoded.share
    if share < minimum or decoded.frames < MINIMUM_FRAMES:
        declared = decoded.declared_frames or decoded.frames + decoded.corrupt + decoded.errors
        what = (
            f"only {decoded.frames} of {declared} declared frames decode "
            f"({100 * decoded.frames / declared:.0f} %); at least {100 * minimum:.0f} % are needed"
        )
        raise BadVideo("missing_frames", what, detail)


def judge_concealed(decoded: DecodeStats, maximum: float) -> None:
    """Raise BadVideo if more than a share `maximum` of the frames shows damage that the decoder concealed."""
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
    """The types of an mp4's top-level boxes, as far as they follow each other."""
    types: list[bytes] = []
    position = 0
    while position + 8 <= file.size and len(types) < 1000:
        file.seek(position)
        header = file.read(16)
        size = int.from_bytes(header[:4], "big")
        types.append(header[4:8])
        if size == 1:
            size = int.from_bytes(header[8:16], "big")
        if size < 8:
            break
        position += size
    return types
