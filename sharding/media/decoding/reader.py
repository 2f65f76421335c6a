"""Reads a source video's frames with their times: all of them, or those of a segment after a seek."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import av.error
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from sharding.media.decoding.concealment import ConcealmentDetector
from sharding.media.decoding.lengths import shown_frames
from sharding.media.decoding.matroska_crc import MatroskaClusters
from sharding.media.decoding.packet_reader import LONGEST, WHOLE_FILE, PacketReader
from sharding.media.decoding.timestamps import DtsOnlyTimes, with_rising_times
from sharding.media.input.segments import TOLERANCE
from sharding.media.input.source import Source, SourceFile, raise_read_error
from sharding.media.input.validity import DecodeStats, judge_frames

NEAR = 1.0  # seconds that are decoded rather than seeked over


class FramesLost(Exception):
    """At the stream's end fewer frames came than packets: where one is damaged, several threads take others along."""


Shown = tuple[VideoFrame, int]  # a frame, and by how much it adds to the number of frames with concealed damage


class Reader(PacketReader):
    """The frames of the video stream of `file`; times, `alive` and errors as in PacketReader."""

    _waiting: tuple[Shown, float] | None  # the first frame after the last segment

    def __init__(
        self,
        source: Source,
        file: SourceFile,
        head: bytes,
        threads: int = 1,
        alive: Callable[[int], None] | None = None,
    ) -> None:
        super().__init__(source, file, head, threads, alive)
        self._delay: int | None = None
        self._held = 0  # packets given since the last seek whose frames have not come
        self._running: Iterator[tuple[Shown, float]] | None = None
        self._concealment = self.new_concealment_detector()

    def judge(self, decoded: DecodeStats, minimum: float) -> None:
        """Raise as `judge_frames`; if too few frames of a whole video came, its header is checked first.

        It may count frames that edits leave out, and declare the audio's duration, or that of a still last picture.
        """
        if decoded is self.declared and decoded.share < minimum:
            decoded.declared_frames = shown_frames(self._opened, self.stream) or decoded.declared_frames
            if decoded.share < minimum and 0 < decoded.declared_seconds <= LONGEST:
                ends = self.ends()
                if ends.any_end >= WHOLE_FILE * decoded.declared_seconds:
                    decoded.correct_duration(ends.last_picture + decoded.frame_interval)
        judge_frames(decoded, minimum)

    def pictures(self, packet: Packet[VideoStream] | None) -> list[VideoFrame]:
        """The frames that the decoder returns for one more packet, or at the end (None); an error is counted.

        Raises FramesLost.
        """
        if packet is not None:
            self._concealment.feed_packet(packet)
        try:
            frames = self.stream.decode(packet)
        except av.error.FFmpegError as error:
            raise_read_error(self.file)
            self.counting.count_error(error)
            self._concealment.decoder_failed()
            return []
        self._held += (1 if packet is not None and packet.size else 0) - len(frames)
        if self.threads > 1 and self._held > 0 and packet is not None and not packet.size:
            raise FramesLost
        self.source.frames += len(frames)
        if self.alive is not None and frames:
            self.alive(self.source.frames)
        return frames

    def all(self, decoded: DecodeStats) -> Iterator[tuple[VideoFrame, float]]:
        """Every frame that decodes, with its time; errors are counted in `decoded`, not raised."""
        self.counting = decoded
        for (frame, concealed), time in self._decode(self.packets()):
            decoded.count_frame(time, concealed)
            yield frame, time

    def seek(self, target: float, limit: float) -> float:
        """Go to a time; returns the start of a segment that is planned to begin there.

        That is the last key frame at or before `target` if it is at most `limit` seconds before it, else `target`.
        """
        waiting, self._waiting = self._waiting, None
        if not limit and waiting is not None and 0 <= target - waiting[1] + TOLERANCE <= NEAR:
            self._waiting = waiting
            return target
        if self.decoding_times_only and self._delay is None and self.stream.codec_context.has_b_frames:
            next(self._timed(self.packets()), None)  # only the stream's first frame shows how late frames come
        packets, key = self.from_key_frame(target)
        self._running = self._decode(packets)
        return target if key is None or key < target - limit - TOLERANCE else key

    def until(self, start: float, end: float, decoded: DecodeStats) -> Iterator[tuple[VideoFrame, float]]:
        """After `seek`: the frames in [start, end) seconds, counted in `decoded`; the iterator must be exhausted."""
        assert self._running is not None
        self.counting = decoded
        while (shown := self._waiting or next(self._running, None)) is not None:
            self._waiting = None
            (frame, concealed), time = shown
            if time < start - TOLERANCE:
                decoded.observe_time(time)
                continue
            if time >= end - TOLERANCE:
                decoded.observe_past_end(time)
                self._waiting = shown
                return
            decoded.count_frame(time, concealed)
            yield frame, time

    def _decode(self, packets: Iterator[Packet[VideoStream]]) -> Iterator[tuple[Shown, float]]:
        """Every frame of the packets, with rising times."""
        return with_rising_times(self._timed(packets), self.declared.frame_interval)

    def _timed(self, packets: Iterator[Packet[VideoStream]]) -> Iterator[tuple[Shown, float | None, bool]]:
        """(frame, its time, whether the next packets prove that a later one follows) of the packets.

        A first frame without a time gets that of the first packet.
        """
        self._concealment, self._held = self.new_concealment_detector(), 0
        stamps = DtsOnlyTimes(self._delay) if self.decoding_times_only else None
        coming: list[int] = []  # pts of the packets whose frames the decoder has not returned yet
        begin: float | None = None
        begun = False
        for packet, following in itertools.pairwise(itertools.chain(packets, [None])):
            assert packet is not None
            begin = begin if begun or begin is not None else self.time(packet)
            if stamps is not None:
                stamps.packet(packet.dts)
            elif packet.pts is not None and not packet.is_discard:
                coming.append(packet.pts)
            for frame in self.pictures(packet):
                concealed = self._concealment.count_concealed(frame)
                sure = True
                if stamps is not None:
                    stamp, self._delay = stamps.frame(frame.dts), stamps.delay
                elif (stamp := frame.dts if frame.pts is None else frame.pts) is not None:
                    if stamp in coming:
                        coming.remove(stamp)
                    after = following.pts if following is not None else None
                    sure = (after is None or after > stamp) and all(each > stamp for each in coming)
                    coming = [each for each in coming if each > stamp]
                time = self._stamp_seconds(stamp)
                yield (frame, concealed), begin if time is None and not begun else time, sure
                begun = True
            if self.counting.stuck:
                return

    def new_concealment_detector(self) -> ConcealmentDetector:
        """A new detector of concealed damage, for decoding from the current position on."""
        container = self._opened.format.name
        clusters = MatroskaClusters(self.file) if "matroska" in container else None
        return ConcealmentDetector(self.stream.codec_context.codec.canonical_name, container, self.threads, clusters)

    def _open(self) -> None:
        super()._open()
        self._waiting = None
