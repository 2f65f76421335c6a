"""Reads a source video's packets: from the start or a key frame on, their times, and where the stream ends."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import av.error
import av.stream
from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from sharding.media.decoding.container import open_container, video_stream
from sharding.media.decoding.lengths import declared_stats
from sharding.media.input.bad_video import BadVideo
from sharding.media.input.segments import TOLERANCE
from sharding.media.input.source import Source, SourceFile, raise_read_error
from sharding.media.input.validity import DecodeStats

EARLIER = (0.0, 2.0, 8.0, 32.0, 128.0)  # seconds before the wanted time to seek to, one after the other
WHOLE_FILE = 0.9  # a file that lasts for this share of what its header says is not cut off
LONGEST = 7 * 86400.0  # seconds that a header is believed
HELD_BYTES = 32 * 2**20  # packets kept while the last key frame before a time is looked for


class StreamEnds(NamedTuple):
    """Seconds: when the last picture begins, when it ends, and when the last packet of any stream ends."""

    last_picture: float
    picture_end: float
    any_end: float


class PacketReader:
    """The packets of the video stream of `file`. Times are seconds since the stream's first frame, by its header.

    `alive` is called with the number of frames decoded so far, at every packet; errors are counted in `counting`.
    Raises BadVideo if the file is no video; an error of the store or disk, which FFmpeg hides, comes out as itself.
    """

    def __init__(
        self,
        source: Source,
        file: SourceFile,
        head: bytes,
        threads: int = 1,
        alive: Callable[[int], None] | None = None,
    ) -> None:
        self.source = source
        self.file = file
        self.head = head
        self.threads = threads
        self.alive = alive
        self.container: InputContainer | None = None
        self._open()
        self.declared, self._declared_of_picture = declared_stats(self._opened, self.stream, head)
        self.counting = self.declared

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def aspect(self) -> float:
        """A pixel's width over its height."""
        return float(self.stream.sample_aspect_ratio or 1)

    def seconds(self) -> float:
        """The duration of the video stream; where the header does not say, from the packets at the file's end.

        Raises BadVideo if it is longer than a week.
        """
        if not self._declared_of_picture or not 0 < self.declared.declared_seconds <= LONGEST:
            self._find_end()
        return self.declared.declared_seconds

    def measured(self) -> float:
        """The duration of the video stream by its packets' times, whatever the header says; raises as `seconds`."""
        return self.ends().picture_end

    def _find_end(self) -> None:
        """Correct the declared duration to the measured one, unless the file is cut: then no stream lasts that long."""
        ends, seconds = self.ends(), self.declared.declared_seconds
        if not 0 < seconds <= LONGEST or ends.any_end >= WHOLE_FILE * seconds:
            self.declared.correct_duration(ends.picture_end)
        self._declared_of_picture = True

    def ends(self) -> StreamEnds:
        """Where the streams end, by the packets near the file's end; the container is then at its beginning.

        Raises BadVideo if the video lasts longer than a week.
        """
        interval = self.declared.frame_interval
        counting, self.counting = self.counting, DecodeStats(0, 0.0, interval)
        length = self.declared.declared_seconds if self.declared.declared_seconds <= LONGEST else 0.0
        for before in (*EARLIER[1:], math.inf):
            if before < length or before == math.inf:
                ends, untimed = self._read_to_end(length - before)
                if ends.picture_end:
                    break
        self._open()
        self.counting = counting
        if not ends.picture_end:
            ends = StreamEnds((untimed - 1) * interval, untimed * interval, ends.any_end)
        if ends.picture_end > LONGEST:
            days = ends.picture_end / 86400
            raise BadVideo("undecodable", "its times cannot be true", f"it would last {days:.0f} days")
        return ends

    def _read_to_end(self, begin: float) -> tuple[StreamEnds, int]:
        """The ends by the packets from a time on, zeros if no picture is among them; and how many lack a time."""
        self._open()
        for stream in self._opened.streams:
            stream.discard = av.stream.Discard.default
        last_picture = picture_end = any_end = 0.0
        untimed = 0
        if begin > 0 and not self._seek_container(begin):
            return StreamEnds(0.0, 0.0, 0.0), 0
        for packet in self.packets(self._opened.demux()):
            stamp = packet.dts if packet.pts is None else packet.pts
            if packet.stream_index != self.stream.index:
                if stamp is not None and packet.time_base is not None:
                    end = float((stamp + (packet.duration or 0)) * packet.time_base) - self._begin
                    any_end = max(any_end, end)
            elif packet.size and (time := self.time(packet)) is not None:
                last_picture = max(last_picture, time)
                lasts = (packet.duration or 0) * self._tick or self.declared.frame_interval
                picture_end = max(picture_end, time + lasts)
            elif packet.size:
                untimed += 1
        return StreamEnds(last_picture, picture_end, max(any_end, picture_end)), untimed

    def _seek_container(self, time: float) -> bool:
        """Seek to the key frame that the container has at or before a time; False if it cannot."""
        try:
            self._opened.seek(int(time / self._tick) + self._first_pts, stream=self.stream)
        except av.error.FFmpegError:
            raise_read_error(self.file)
            return False
        return True

    def packets(self, packets: Iterator[Packet[Any]] | None = None) -> Iterator[Packet[VideoStream]]:
        """The video stream's packets from the current position on, in decode order, the last one empty.

        An error of the demuxer is counted and ends them. `packets`: others of this container, to be read so.
        """
        packets = self._opened.demux(self.stream) if packets is None else packets
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                raise_read_error(self.file)
                self.counting.count_error(error)
                return
            raise_read_error(self.file)
            if packet is None:
                return
            if self.alive is not None:
                self.alive(self.source.frames)
            yield packet

    def time(self, packet: Packet[VideoStream]) -> float | None:
        """The time at which a packet's picture is shown; None if it carries none."""
        return self._stamp_seconds(packet.dts if packet.pts is None or self.decoding_times_only else packet.pts)

    def from_key_frame(self, target: float) -> tuple[Iterator[Packet[VideoStream]], float | None]:
        """The packets from the last key frame at or before `target` on, and its time; None: there is none with a time.

        A container without an index may seek too far, or to no key frame: then it seeks to earlier times, and at last
        reads from the beginning.
        """
        for earlier in EARLIER:
            if target - earlier <= TOLERANCE:
                break
            if not self._seek_container(target - earlier + TOLERANCE):
                break
            packets = self.packets()
            held, key = self._last_key_frame(packets, target)
            if key is not None:
                return itertools.chain(held, packets), key
        self._open()
        packets = self.packets()
        held, key = self._last_key_frame(packets, target)
        return itertools.chain(held, packets), key

    def _last_key_frame(
        self, packets: Iterator[Packet[VideoStream]], target: float
    ) -> tuple[list[Packet[VideoStream]], float | None]:
        """Read packets until one is after `target`; returns those from the last key frame on, and its time."""
        held: list[Packet[VideoStream]] = []
        size, key = 0, None
        for packet in packets:
            time = self.time(packet)
            if packet.is_keyframe and time is not None and time <= target + TOLERANCE:
                held, size, key = [], 0, time
            held.append(packet)
            size += packet.size
            if time is None or time > target + TOLERANCE or size > HELD_BYTES:
                break
        return held, key

    def _stamp_seconds(self, stamp: int | None) -> float | None:
        return None if stamp is None else (stamp - self._first_pts) * self._tick

    @property
    def _opened(self) -> InputContainer:
        assert self.container is not None
        return self.container

    def _open(self) -> None:
        """Open the container, or open it again, at its beginning."""
        if self.container is not None:
            self.container.close()
        self.container = open_container(self.file, self.head)
        self.stream = video_stream(self.container, self.threads)
        assert self.stream.time_base is not None
        self._tick = float(self.stream.time_base)
        begin = self.stream.start_time
        if begin is None:
            begin = round((self.container.start_time or 0) / 1e6 / self._tick)
        self._first_pts = begin
        self._begin = begin * self._tick
        self.decoding_times_only = self.container.format.name == "avi"  # it has no others
