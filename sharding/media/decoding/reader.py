"""One container open for reading: its video stream, frame by frame from the start or from a key frame on."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Self

import av
import av.error
import av.stream
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from sharding.media.decoding.concealment import ConcealmentDetector
from sharding.media.decoding.lengths import declared, shown
from sharding.media.decoding.matroska_crc import MatroskaClusters
from sharding.media.decoding.timestamps import DtsOnlyTimes, with_rising_times
from sharding.media.input.bad_video import BadVideo
from sharding.media.input.segments import TOLERANCE
from sharding.media.input.source import Source, SourceFile, raise_read_error
from sharding.media.input.validity import DecodeStats, judge_frames, judge_unopenable

DEMUXERS = (
    "aac,asf,avi,dv,flac,flv,gif,h264,hevc,ivf,jpeg_pipe,m4v,matroska,mjpeg,mov,mp3,mpeg,mpegts,mpegvideo,mxf,"
    "nsv,nut,ogg,png_pipe,rm,swf,vc1,wav,webp_pipe"
)
# A playlist (concat, hls, dash, …) would have FFmpeg read other files, or addresses.
ONE_FILE_ONLY = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
EARLIER = (0.0, 2.0, 8.0, 32.0, 128.0)  # seconds before the wanted time to seek to, one after the other
WHOLE_FILE = 0.9  # a file that lasts for this share of what its header says is not cut off
NEAR = 1.0  # seconds that are decoded rather than seeked over
BUFFER = 2**16
LARGEST = 2**26  # pixels of a picture: twice those of 8K. A few bytes may announce a gigabyte
LONGEST = 7 * 86400.0  # seconds that a header is believed
HELD_BYTES = 32 * 2**20  # packets kept while the last key frame before a time is looked for


class Ends(NamedTuple):
    """Seconds: when the picture's last packet is shown, until when, and when the last one of any stream ends."""

    last: float
    picture: float
    latest: float


Shown = tuple[VideoFrame, int]  # and how many frames it adds to those that show concealed damage


class Reader:
    """The video stream of `file`. Times are seconds since the stream's first frame, as its header tells it.

    `alive` is called with the number of frames decoded so far, at every packet and frame; `counting` takes the errors.
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
        self.declared, self._own = declared(self._opened, self.stream)
        self.counting = self.declared
        self._delay: int | None = None
        self._running: Iterator[tuple[Shown, float]] | None = None
        self._waiting: tuple[Shown, float] | None = None  # the first frame after a segment
        self._concealment = self.concealment()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def aspect(self) -> float:
        """A pixel's width over its height."""
        return float(self.stream.sample_aspect_ratio or 1)

    def seconds(self) -> float:
        """How long the picture lasts; where its header does not say, by packets from the file's end, none decoded.

        Raises BadVideo if it were longer than a week.
        """
        if not self._own or not 0 < self.declared.seconds <= LONGEST:
            self._find_end()
        return self.declared.seconds

    def measured(self) -> float:
        """How long the picture lasts by its packets' times, whatever its header says; as `seconds`."""
        return self._ends().picture

    def judge(self, decoded: DecodeStats, minimum: float) -> None:
        """As judge_frames; if too few came of the whole video, its header is doubted first.

        It may count what edits leave out, and last as long as the audio, or as a last picture that stays.
        """
        if decoded is self.declared and decoded.share < minimum:
            decoded.declared = shown(self._opened, self.stream) or decoded.declared
            if decoded.share < minimum and 0 < decoded.seconds <= LONGEST:
                ends = self._ends()
                if ends.latest >= WHOLE_FILE * decoded.seconds:
                    decoded.lasts(ends.last + decoded.step)
        judge_frames(decoded, minimum)

    def _find_end(self) -> None:
        """Takes the picture's own length for the header's, unless no stream lasts that long: then the file is cut."""
        ends = self._ends()
        if not 0 < self.declared.seconds <= LONGEST or ends.latest >= WHOLE_FILE * self.declared.seconds:
            self.declared.lasts(ends.picture)
        self._own = True

    def _ends(self) -> Ends:
        """Where the streams end, read near the file's end if it is known; the container then stands at its beginning.

        Raises BadVideo if the picture lasted longer than a week.
        """
        counting, self.counting = self.counting, DecodeStats(0, 0.0, self.declared.step)
        self._waiting = None
        length = self.declared.seconds if self.declared.seconds <= LONGEST else 0.0
        for before in (*EARLIER[1:], math.inf):
            if before < length or before == math.inf:
                ends, untimed = self._read_to_end(length - before)
                if ends.picture:
                    break
        self._open()
        self.counting = counting
        if not ends.picture:
            ends = Ends((untimed - 1) * self.declared.step, untimed * self.declared.step, ends.latest)
        if ends.picture > LONGEST:
            days = ends.picture / 86400
            raise BadVideo("undecodable", "its times cannot be true", f"it would last {days:.0f} days")
        return ends

    def _read_to_end(self, begin: float) -> tuple[Ends, int]:
        """As `_ends`, of the packets from a time on, zero if the picture has none; and how many of its have no time."""
        self._open()
        for stream in self._opened.streams:
            stream.discard = av.stream.Discard.default
        last = end = latest = 0.0
        untimed = 0
        if begin > 0 and not self._sought(begin):
            return Ends(0.0, 0.0, 0.0), 0
        for packet in self.packets(self._opened.demux()):
            stamp = packet.dts if packet.pts is None else packet.pts
            if packet.stream_index != self.stream.index:
                if stamp is not None and packet.time_base is not None:
                    latest = max(latest, float((stamp + (packet.duration or 0)) * packet.time_base) - self._begin)
            elif packet.size and (time := self.time(packet)) is not None:
                last = max(last, time)
                end = max(end, time + ((packet.duration or 0) * self._tick or self.declared.step))
            elif packet.size:
                untimed += 1
        return Ends(last, end, max(latest, end)), untimed

    def _sought(self, time: float) -> bool:
        """Go to the key frame at or before a time, as the container finds it; False if it cannot."""
        try:
            self._opened.seek(int(time / self._tick) + self._first_pts, stream=self.stream)
        except av.error.FFmpegError:
            raise_read_error(self.file)
            return False
        return True

    def packets(self, packets: Iterator[Packet[Any]] | None = None) -> Iterator[Packet[VideoStream]]:
        """The stream's packets from where the container stands, in decode order, the last one empty; or those given.

        An error of the demuxer ends them and is counted.
        """
        packets = self._opened.demux(self.stream) if packets is None else packets
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                raise_read_error(self.file)
                self.counting.failed(error)
                return
            raise_read_error(self.file)
            if packet is None:
                return
            if self.alive is not None:
                self.alive(self.source.frames)
            yield packet

    def time(self, packet: Packet[VideoStream]) -> float | None:
        """When a packet is shown; None if nothing says."""
        return self._seconds(packet.dts if packet.pts is None or self.decoding_times_only else packet.pts)

    def pictures(self, packet: Packet[VideoStream] | None) -> list[VideoFrame]:
        """What the decoder gives for one more packet, or at the end (None); an error is counted."""
        if packet is not None:
            self._concealment.feed(packet)
        try:
            frames = self.stream.decode(packet)
        except av.error.FFmpegError as error:
            raise_read_error(self.file)
            self.counting.failed(error)
            self._concealment.refused()
            return []
        self.source.frames += len(frames)
        if self.alive is not None and frames:
            self.alive(self.source.frames)
        return frames

    def all(self, decoded: DecodeStats) -> Iterator[tuple[VideoFrame, float]]:
        """Every frame that decodes, with its time; what does not is counted, never raised."""
        self.counting = decoded
        for (frame, concealed), time in self._decode(self.packets()):
            decoded.took(time, concealed)
            yield frame, time

    def from_key_frame(self, target: float) -> tuple[Iterator[Packet[VideoStream]], float | None]:
        """The packets from the last key frame at or before `target` on, and its time; None: it is not known.

        A container without an index may seek too far, or to no key frame: then once more, to earlier, and at last
        from the beginning.
        """
        for earlier in EARLIER:
            if target - earlier <= TOLERANCE:
                break
            if not self._sought(target - earlier + TOLERANCE):
                break
            packets = self.packets()
            held, key = self._last_key_frame(packets, target)
            if key is not None:
                return itertools.chain(held, packets), key
        self._open()
        packets = self.packets()
        held, key = self._last_key_frame(packets, target)
        return itertools.chain(held, packets), key

    def seek(self, target: float, limit: float) -> float:
        """Go to a time; returns where a segment that is to begin there begins.

        That is the last key frame at or before `target` if it is at most `limit` seconds before it, else `target`.
        """
        waiting, self._waiting = self._waiting, None
        if not limit and waiting is not None and 0 <= target - waiting[1] + TOLERANCE <= NEAR:
            self._waiting = waiting
            return target
        if self.decoding_times_only and self._delay is None and self.stream.codec_context.has_b_frames:
            next(self._timed(self.packets()), None)  # only the first frame of all tells how late frames come
        packets, key = self.from_key_frame(target)
        self._running = self._decode(packets)
        return target if key is None or key < target - limit - TOLERANCE else key

    def until(self, start: float, end: float, decoded: DecodeStats) -> Iterator[tuple[VideoFrame, float]]:
        """After `seek`: the frames in [start, end) seconds, counted in `decoded`; to be taken to the last."""
        assert self._running is not None
        self.counting = decoded
        while (found := self._waiting or next(self._running, None)) is not None:
            self._waiting = None
            (frame, concealed), time = found
            if time < start - TOLERANCE:
                decoded.saw(time)
                continue
            if time >= end - TOLERANCE:
                decoded.passed(time)
                self._waiting = found
                return
            decoded.took(time, concealed)
            yield frame, time

    def _last_key_frame(
        self, packets: Iterator[Packet[VideoStream]], target: float
    ) -> tuple[list[Packet[VideoStream]], float | None]:
        """Packets read until one is after `target`: those from its last key frame on, and that one's time."""
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

    def _decode(self, packets: Iterator[Packet[VideoStream]]) -> Iterator[tuple[Shown, float]]:
        """Every frame, with times that rise."""
        return with_rising_times(self._timed(packets), self.declared.step)

    def _timed(self, packets: Iterator[Packet[VideoStream]]) -> Iterator[tuple[Shown, float | None, bool]]:
        """Every frame, the time that it is given, and whether by the packets a later one follows.

        A first frame without a time has that of the first packet.
        """
        self._concealment = self.concealment()
        stamps = DtsOnlyTimes(self._delay) if self.decoding_times_only else None
        coming: list[int] = []  # when those are shown that went into the decoder and did not come out
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
                concealed = self._concealment.shown(frame)
                sure = True
                if stamps is not None:
                    stamp, self._delay = stamps.frame(frame.dts), stamps.delay
                elif (stamp := frame.dts if frame.pts is None else frame.pts) is not None:
                    if stamp in coming:
                        coming.remove(stamp)
                    after = following.pts if following is not None else None
                    sure = (after is None or after > stamp) and all(each > stamp for each in coming)
                    coming = [each for each in coming if each > stamp]
                time = self._seconds(stamp)
                yield (frame, concealed), begin if time is None and not begun else time, sure
                begun = True
            if self.counting.stuck:
                return

    def concealment(self) -> ConcealmentDetector:
        """What notices concealed damage from where the container stands."""
        container = self._opened.format.name
        clusters = MatroskaClusters(self.file) if "matroska" in container else None
        return ConcealmentDetector(self.stream.codec_context.codec.canonical_name, container, self.threads, clusters)

    def _seconds(self, stamp: int | None) -> float | None:
        return None if stamp is None else (stamp - self._first_pts) * self._tick

    @property
    def _opened(self) -> InputContainer:
        assert self.container is not None
        return self.container

    def _open(self) -> None:
        """Open the container, or open it again, at its beginning."""
        if self.container is not None:
            self.container.close()
        self.file.seek(0)
        try:
            self.container = av.open(
                self.file,
                "r",
                metadata_errors="replace",
                options={"max_pixels": str(LARGEST)},
                container_options=ONE_FILE_ONLY,
                buffer_size=BUFFER,
            )
        except av.error.FFmpegError as error:
            raise_read_error(self.file)
            raise judge_unopenable(self.file, self.head, error.strerror or str(error)) from error
        raise_read_error(self.file)
        self.stream = _video_stream(self.container)
        for other in self.container.streams:
            if other.index != self.stream.index:
                other.discard = av.stream.Discard.all
        width, height = self.stream.codec_context.width, self.stream.codec_context.height
        if width * height > LARGEST:
            raise BadVideo("unsupported", f"its pictures are too large: {width} x {height} pixels")
        self.stream.codec_context.options = {"max_pixels": str(LARGEST)}
        self.stream.codec_context.thread_type = "AUTO"
        self.stream.codec_context.thread_count = self.threads
        assert self.stream.time_base is not None
        self._tick = float(self.stream.time_base)
        begin = self.stream.start_time
        if begin is None:
            begin = round((self.container.start_time or 0) / 1e6 / self._tick)
        self._first_pts = begin
        self._begin = begin * self._tick
        self.decoding_times_only = self.container.format.name == "avi"  # it has no others


def _video_stream(container: Any) -> VideoStream:
    pictures = [s for s in container.streams.video if s.disposition & av.stream.Disposition.attached_pic]
    videos = [s for s in container.streams.video if s not in pictures]
    if not videos:
        if pictures:
            raise BadVideo("no_video", "no video stream (audio with a cover picture)")
        if container.streams.audio:
            raise BadVideo("no_video", "no video stream (audio only)")
        raise BadVideo("no_video", "no video stream", f"container {container.format.name}")
    best = container.streams.best("video")
    stream: VideoStream = best if best in videos else videos[0]
    if stream.codec_context is None:
        raise BadVideo("unsupported", "no decoder for its video codec", f"container {container.format.name}")
    return stream
