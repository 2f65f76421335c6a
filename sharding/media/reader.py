"""One container open for reading: its video stream, frame by frame from the start or from a key frame on."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any, Self

import av
import av.error
import av.stream
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from sharding.media.clusters import Clusters
from sharding.media.concealment import Concealment
from sharding.media.judge import BadVideo, Decoded, judge_unopenable
from sharding.media.segments import TOLERANCE
from sharding.source import Source, SourceFile, raise_hidden

DEMUXERS = (
    "aac,asf,avi,dv,flac,flv,gif,h264,hevc,ivf,jpeg_pipe,m4v,matroska,mjpeg,mov,mp3,mpeg,mpegts,mpegvideo,mxf,"
    "nsv,nut,ogg,png_pipe,rm,swf,vc1,wav,webp_pipe"
)
# A playlist (concat, hls, dash, …) would have FFmpeg read other files, or addresses.
ONE_FILE_ONLY = {"format_whitelist": DEMUXERS, "protocol_whitelist": "file"}
EARLIER = (0.0, 2.0, 8.0, 32.0, 128.0)  # seconds before the wanted time to seek to, one after the other
NEAR = 1.0  # seconds that are decoded rather than seeked over
BUFFER = 2**16
LARGEST = 2**26  # pixels of a picture: twice those of 8K. A few bytes may announce a gigabyte
LONGEST = 7 * 86400.0  # seconds that a header is believed
HELD_BYTES = 32 * 2**20  # packets kept while the last key frame before a time is looked for


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
        self.declared = Decoded.of(self.stream, self._opened.duration, self._opened.format.name)
        self.counting = self.declared
        self._running: Iterator[tuple[VideoFrame, float]] | None = None
        self._waiting: tuple[VideoFrame, float] | None = None  # the first frame after a segment
        self._concealment = self.concealment()
        self._concealed = 0  # as `Concealment.shown` says of the last frame that came

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    @property
    def aspect(self) -> float:
        """A pixel's width over its height."""
        return float(self.stream.sample_aspect_ratio or 1)

    def seconds(self) -> float:
        """How long the video is; where its header does not say, all packets are read, and none decoded.

        Raises BadVideo if it were longer than a week.
        """
        if 0 < self.declared.seconds <= LONGEST:
            return self.declared.seconds
        return self.measured()

    def measured(self) -> float:
        """How long the video is by its packets' times, whatever its header says; as `seconds`."""
        self._waiting = None
        self._open()
        last, count = 0.0, 0
        for packet in self.packets():
            if packet.size:
                count += 1
                last = max(last, self.time(packet) or 0.0)
        self._open()
        seconds = (last or (count - 1) * self.declared.step) + self.declared.step
        if seconds > LONGEST:
            raise BadVideo("undecodable", "its times cannot be true", f"it would last {seconds / 86400:.0f} days")
        return seconds

    def packets(self) -> Iterator[Packet[VideoStream]]:
        """The stream's packets from where the container stands, in decode order, the last one empty.

        An error of the demuxer ends them and is counted.
        """
        packets = self._opened.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                raise_hidden(self.file)
                self.counting.failed(error)
                return
            raise_hidden(self.file)
            if packet is None:
                return
            if self.alive is not None:
                self.alive(self.source.frames)
            yield packet

    def time(self, timed: Packet[VideoStream] | VideoFrame) -> float | None:
        """When a packet or frame is shown; None if nothing says."""
        pts = timed.dts if timed.pts is None else timed.pts
        return None if pts is None else (pts - self._first_pts) * self._tick

    def pictures(self, packet: Packet[VideoStream] | None) -> list[VideoFrame]:
        """What the decoder gives for one more packet, or at the end (None); an error is counted."""
        if packet is not None:
            self._concealment.feed(packet)
        try:
            frames = self.stream.decode(packet)
        except av.error.FFmpegError as error:
            raise_hidden(self.file)
            self.counting.failed(error)
            self._concealment.refused()
            return []
        self.source.frames += len(frames)
        if self.alive is not None and frames:
            self.alive(self.source.frames)
        return frames

    def all(self, decoded: Decoded) -> Iterator[tuple[VideoFrame, float]]:
        """Every frame that decodes, with its time; what does not is counted, never raised."""
        self.counting = decoded
        for frame, time in self._decode(self.packets()):
            decoded.took(time, self._concealed)
            yield frame, time

    def from_key_frame(self, target: float) -> tuple[Iterator[Packet[VideoStream]], float | None]:
        """The packets from the last key frame at or before `target` on, and its time; None: it is not known.

        A container without an index may seek too far, or to no key frame: then once more, to earlier, and at last
        from the beginning.
        """
        for earlier in EARLIER:
            if target - earlier <= TOLERANCE:
                break
            try:
                aim = int((target - earlier + TOLERANCE) / self._tick) + self._first_pts
                self._opened.seek(aim, stream=self.stream)
            except av.error.FFmpegError:
                raise_hidden(self.file)
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
        packets, key = self.from_key_frame(target)
        self._running = self._decode(packets)
        return target if key is None or key < target - limit - TOLERANCE else key

    def until(self, start: float, end: float, decoded: Decoded) -> Iterator[tuple[VideoFrame, float]]:
        """After `seek`: the frames in [start, end) seconds, counted in `decoded`; to be taken to the last."""
        assert self._running is not None
        self.counting = decoded
        while (found := self._waiting or next(self._running, None)) is not None:
            self._waiting = None
            frame, time = found
            if time < start - TOLERANCE:
                continue
            if time >= end - TOLERANCE:
                self._waiting = found
                return
            decoded.took(time, self._concealed)
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

    def _decode(self, packets: Iterator[Packet[VideoStream]]) -> Iterator[tuple[VideoFrame, float]]:
        """Every frame; one without a time comes a step after the one before it.

        So does one from which on times begin anew, as where recordings were put together: those after it follow it.
        """
        last, shift, begun = -self.declared.step, 0.0, False
        self._concealment = self.concealment()
        for packet in packets:
            for frame in self.pictures(packet):
                self._concealed = self._concealment.shown(frame)
                time = self.time(frame)
                if time is not None and shift and abs(time - last) <= NEAR:
                    shift = 0.0  # it was a single wrong time
                if time is not None and begun and time + shift < last - NEAR:
                    shift = last + self.declared.step - time
                last = last + self.declared.step if time is None else time + shift
                begun = True
                yield frame, last
            if self.counting.stuck:
                return

    def concealment(self) -> Concealment:
        """What notices concealed damage from where the container stands."""
        container = self._opened.format.name
        clusters = Clusters(self.file) if "matroska" in container else None
        return Concealment(self.stream.codec_context.codec.canonical_name, container, self.threads, clusters)

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
            raise_hidden(self.file)
            raise judge_unopenable(self.file, self.head, error.strerror or str(error)) from error
        raise_hidden(self.file)
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
