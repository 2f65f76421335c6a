"""Detects concealed damage: frames that a decoder patched up, or predicted from such frames."""

from __future__ import annotations

from av.packet import Packet
from av.video.frame import PictureType, VideoFrame
from av.video.stream import VideoStream

from sharding.media.decoding.matroska_crc import MatroskaClusters

# FFmpeg's decoders of these begin at any frame, on grey; the others return nothing before a key frame.
BEGIN_ANYWHERE = ("mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "h263", "h263p", "flv1", "wmv1", "wmv2")
B_IS_NO_REFERENCE = ("mpeg1video", "mpeg2video", *BEGIN_ANYWHERE)
# FFmpeg's decoders of these go on over damaged data without an error; no intact packet has so many zeros in a row.
SILENT = ("hevc", "vp8", "vp9", "av1")
ZERO_RUN = bytes(256)
REMEMBERED = 128  # packets whose frames may still come


class ConcealmentDetector:
    """Finds the frames of a stream, from where its decoding begins, that show concealed damage.

    A *sign* of damage is a packet that the demuxer says is damaged (mpeg-ts: packets are missing; any container: the
    file ends inside it), one that the decoder refuses, a frame that the decoder says is damaged (slices concealed,
    references missing), and a beginning without a key frame where the decoder shows that; where decoders are silent,
    also a packet with a run of zeros (`has_zero_run`), and all of a Matroska cluster whose checksum is wrong.
    Concealed is the frame of that packet, if it is shown, and every frame decoded after it until a key frame is shown
    (in a stream that is refreshed bit by bit, until its second recovery point). A damaged B frame alone reaches only
    to the next frame that is none, and where B frames are no references, only itself.

    What nothing tells is not noticed: other damage inside a packet of HEVC, VP8, VP9, AV1 or MJPEG that leaves its
    syntax whole. `codec`: FFmpeg's canonical name, as `container`'s; `threads` of the decoder; `clusters`: those of a
    Matroska file.
    """

    def __init__(self, codec: str, container: str, threads: int = 1, clusters: MatroskaClusters | None = None) -> None:
        self.codec = codec
        self.clusters = clusters
        self.damaged = False  # whether the last packet is itself; in a damaged cluster, nobody knows which are
        # FFmpeg's parser gives a packet out when it meets the next one, and with that one's flags.
        self._flagged_early = container == "mpegts"
        self._refused_late = threads - 1
        self._fed = -1  # number of the last packet, in decode order
        self._by_pts: dict[int, tuple[int, bool]] = {}  # the last packets: number, key frame
        self._signs = [-1] if codec in BEGIN_ANYWHERE else []  # numbers of packets, since the last key frame
        self._b_sign: int | None = None  # of a damaged B frame, since the last frame that is none
        self._b_shown: list[tuple[int, bool]] = []  # the B frames since then: number, concealed
        self._recovering = False  # a recovery point was shown since the first sign
        self._leading: tuple[int, bool] = (0, False)  # of packets copied: the last key frame's pts; signs before it

    def feed_packet(self, packet: Packet[VideoStream]) -> None:
        """Note the next packet, before it is decoded."""
        self._fed += 1
        if packet.pts is not None:
            self._by_pts[packet.pts] = self._fed, packet.is_keyframe
            if len(self._by_pts) > REMEMBERED:
                del self._by_pts[next(iter(self._by_pts))]
        if packet.is_corrupt:
            self._signs.append(self._fed + self._flagged_early)
        silent = self.codec in SILENT
        self.damaged = self._fed in self._signs or (silent and has_zero_run(bytes(packet)))
        if self.damaged or (silent and self._in_damaged_cluster(packet)):
            self._signs.append(self._fed)

    def decoder_failed(self) -> None:
        """Note that the decoder gave an error for the last packet."""
        self._signs.append(max(0, self._fed - self._refused_late))

    def count_concealed(self, frame: VideoFrame) -> int:
        """By how much the next frame, in the order shown, adds to the number of concealed frames.

        More than one where it shows that B frames before it were predicted from damage, too.
        """
        last = self._fed, frame.key_frame
        number, key = last if frame.pts is None else self._by_pts.pop(frame.pts, last)
        is_b = frame.pict_type == PictureType.B
        # A workaround: after an error, FFmpeg marks all frames from libdav1d (AV1) as key frames.
        if (frame.key_frame and self.codec != "av1") or (
            key and (frame.key_frame or frame.pict_type == PictureType.I or self._recovering)
        ):
            self._signs = [sign for sign in self._signs if sign >= number]
            self._recovering = False
        elif key:
            self._recovering = any(sign < number for sign in self._signs)
        before = 0
        if frame.is_corrupt and not (is_b and self.codec in B_IS_NO_REFERENCE):
            if not is_b:
                self._signs.append(number)
            elif self._b_sign is None or number < self._b_sign:
                self._b_sign = number
            before = sum(other > number and not concealed for other, concealed in self._b_shown)
            self._b_shown = [(other, concealed or other > number) for other, concealed in self._b_shown]
        concealed = (
            frame.is_corrupt or self._signed(number) or (is_b and self._b_sign is not None and self._b_sign <= number)
        )
        if is_b:
            self._b_shown.append((number, concealed))
        elif self._b_shown or self._b_sign is not None:
            self._b_shown, self._b_sign = [], None
        return before + concealed

    def is_packet_concealed(self, packet: Packet[VideoStream]) -> bool:
        """Note the next packet, which is not decoded; returns whether its frame is concealed, by packets alone."""
        if packet.is_keyframe:
            self._leading = packet.pts or 0, self._signed(self._fed)
            self._signs = [sign for sign in self._signs if sign > self._fed]
        self.feed_packet(packet)
        if self.codec not in SILENT and has_zero_run(bytes(packet)):  # of which their decoders would tell
            self._signs.append(self._fed)
        key_pts, before = self._leading
        return self._signed(self._fed) or (before and packet.pts is not None and packet.pts < key_pts)

    def _in_damaged_cluster(self, packet: Packet[VideoStream]) -> bool:
        return self.clusters is not None and packet.size > 0 and self.clusters.is_damaged(packet.pos)

    def _signed(self, number: int) -> bool:
        return any(sign <= number for sign in self._signs)


def has_zero_run(data: bytes) -> bool:
    """Whether a packet has a long run of zeros before its end, which no encoder writes.

    As they are where a download or a disk lost a block: entropy coding leaves no such run, but some pad.
    """
    at = data.find(ZERO_RUN)
    return at >= 0 and any(data[at:])
