"""Edit lists, reordered AVI, packed MPEG-4: what is shown is stored, or a copy is refused with the reason."""

from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from sharding.corpora.manifest import Video
from sharding.media.clip import Clip
from sharding.media.encoder import EncodeSettings
from sharding.media.input.bad_video import BadVideo
from sharding.media.input.segments import SegmentSettings
from sharding.media.input.source import Source
from sharding.media.transcode import VideoSettings, transcode
from tests.sharding.conftest import frames_of
from tests.support.videos.odd_videos import carphone, write_video

COPY = EncodeSettings(copy=True)
ENCODE = EncodeSettings(short_edge=144, preset="ultrafast", crf=4)
REORDERED = {"g": "20", "sc_threshold": "0", "bf": "2", "qp": "10"}
SCALE = 1000  # of an mp4's movie header as FFmpeg writes it


def clips(path: Path, encode: EncodeSettings = ENCODE, segments: SegmentSettings | None = None) -> list[Clip]:
    settings = VideoSettings(encode=encode, segments=segments)
    found = list(transcode(Source(str(path.parent), path.name), Video(path.name, (0,), "train"), settings))
    assert all(isinstance(each, Clip) for each in found), found
    return found  # type: ignore[return-value]


def numbers(clip: Clip, source: list[np.ndarray]) -> list[int]:
    """Which of the source's frames each stored frame is."""
    small = np.stack([picture[::4, ::4].astype(int) for picture in source])
    return [int(np.abs(small - frame[:144:4, ::4]).mean((1, 2)).argmin()) for frame in frames_of(clip.data)]


@pytest.fixture(scope="module")
def reordered(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    """100 frames of 25 a second, a key frame every 20, some of the others reordered; and their luma."""
    path = write_video(tmp_path_factory.mktemp("reordered") / "source.mp4", options=REORDERED)
    with av.open(str(path)) as container:
        return path, [frame.to_ndarray(format="yuv420p")[:144] for frame in container.decode(video=0)]


def edited(source: Path, path: Path, *edits: tuple[float, float | None]) -> Path:
    """The mp4 with another edit list: (seconds that are shown, from which of the media; None: nothing is shown)."""
    data = source.read_bytes()
    with av.open(str(source)) as container:
        media = container.streams.video[0].time_base
        assert media is not None
    at = data.index(b"elst") - 4
    size = int.from_bytes(data[at : at + 4], "big")
    first = struct.unpack(">i", data[at + 20 : at + 24])[0]  # where FFmpeg's own edit begins: after the reordering
    entries = b"".join(
        struct.pack(">iihh", round(lasts * SCALE), -1 if begin is None else first + round(begin / media), 1, 0)
        for lasts, begin in edits
    )
    box = struct.pack(">I4sII", 16 + len(entries), b"elst", 0, len(edits)) + entries
    data = data[:at] + box + data[at + size :]
    for name in (b"moov", b"trak", b"edts"):
        place = data.index(name) - 4
        grown = int.from_bytes(data[place : place + 4], "big") + len(box) - size
        data = data[:place] + struct.pack(">I", grown) + data[place + 4 :]
    path.write_bytes(data)
    return path


def test_frames_that_an_edit_cuts_off_are_not_stored(reordered: tuple[Path, list[np.ndarray]], tmp_path: Path) -> None:
    path = edited(reordered[0], tmp_path / "cut.mp4", (2.0, 0.4))
    (clip,) = clips(path)
    assert numbers(clip, reordered[1]) == list(range(10, 60)) and clip.start == 0
    with pytest.raises(BadVideo, match=r"an edit leaves out .* shard it without encode\.copy") as caught:
        clips(path, COPY)
    assert caught.value.kind == "unsupported"


def test_a_copy_of_what_an_edit_cuts_at_key_frames(reordered: tuple[Path, list[np.ndarray]], tmp_path: Path) -> None:
    for begin, lasts in ((0.0, 2.0), (0.8, 1.2), (0.8, 3.2)):
        path = edited(reordered[0], tmp_path / "cut.mp4", (lasts, begin))
        right = list(range(round(25 * begin), round(25 * (begin + lasts))))
        (clip,) = clips(path)
        assert numbers(clip, reordered[1]) == right
        (copy,) = clips(path, COPY)
        assert numbers(copy, reordered[1]) == right and copy.start == 0
        assert np.allclose(np.diff(np.sort(copy.packet_pts)), 3600)


def test_an_edit_that_waits_delays_nothing(reordered: tuple[Path, list[np.ndarray]], tmp_path: Path) -> None:
    path = edited(reordered[0], tmp_path / "late.mp4", (1.5, None), (4.0, 0.0))
    for encode in (ENCODE, COPY):
        (clip,) = clips(path, encode)
        assert numbers(clip, reordered[1]) == list(range(100)) and clip.start == 0
    found = clips(path, segments=SegmentSettings(seconds=1, per_video=2, exact=True))
    assert [numbers(clip, reordered[1])[0] for clip in found] == [13, 63]
    path = edited(reordered[0], tmp_path / "both.mp4", (1.5, None), (2.0, 0.4))
    (clip,) = clips(path)
    assert numbers(clip, reordered[1]) == list(range(10, 60))
    with pytest.raises(BadVideo, match="an edit leaves out"):
        clips(path, COPY)


def test_several_edits(reordered: tuple[Path, list[np.ndarray]], tmp_path: Path) -> None:
    path = edited(reordered[0], tmp_path / "several.mp4", (1.0, 0.0), (1.0, 2.0))
    (clip,) = clips(path)
    shown = numbers(clip, reordered[1])
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="yuv420p")[:144] for frame in container.decode(video=0)]
    assert len(shown) == len(frames) and set(range(50, 75)) <= set(shown) and not set(range(30, 48)) & set(shown)
    assert (np.diff(clip.packet_pts) > 0).all()
    with pytest.raises(BadVideo, match="an edit leaves out"):
        clips(path, COPY)


def test_reordered_pictures_in_avi(reordered: tuple[Path, list[np.ndarray]], tmp_path: Path) -> None:
    """Whose packets have no times for showing."""
    path = write_video(tmp_path / "reordered.avi", options=REORDERED)
    (clip,) = clips(path)
    assert numbers(clip, reordered[1]) == list(range(100)) and clip.start == 0
    assert np.allclose(np.diff(clip.packet_pts), 3600, atol=1)
    found = clips(path, segments=SegmentSettings(seconds=1, spacing=1.4, exact=True))
    for clip, begin in zip(found, (0, 35, 70), strict=True):
        assert numbers(clip, reordered[1]) == list(range(begin, begin + 25))
    with pytest.raises(BadVideo, match="carry no times for showing") as caught:
        clips(path, COPY)
    assert caught.value.kind == "unsupported"


def packed(path: Path, source: Path) -> Path:
    """MPEG-4 as DivX packs it: each reordered picture together with the one before it, then nothing."""
    with av.open(str(source)) as container:
        stream = container.streams.video[0]
        extradata = bytes(stream.codec_context.extradata or b"")
        pictures = [bytes(packet) for packet in container.demux(stream) if packet.size]
    chunks: list[tuple[bytes, bool]] = []
    for data in pictures:
        at = data.index(b"\0\0\1\xb6")
        kind = data[at + 4] >> 6
        if kind == 2:
            chunks[-1] = (chunks[-1][0] + data, chunks[-1][1])
            chunks.append((b"\0\0\1\xb6\x51\x9b", False))  # a picture that is not coded
        else:
            named = b"\0\0\1\xb2DivX503b1393p" if kind == 0 else b""
            chunks.append((data[:at] + named + data[at:], kind == 0))
    with av.open(str(path), "w") as out:
        target = out.add_stream("mpeg4", rate=25)
        target.width, target.height, target.pix_fmt = 176, 144, "yuv420p"
        target.codec_context.extradata = extradata
        for number, (data, key) in enumerate(chunks):
            packet = av.Packet(data)
            packet.pts = packet.dts = number
            packet.time_base, packet.stream, packet.is_keyframe = Fraction(1, 25), target, key
            out.mux_one(packet)
    return path


@pytest.mark.parametrize("name", ["packed.avi", "packed.mp4"])
def test_a_packed_bitstream(tmp_path: Path, name: str) -> None:
    options = {"g": "20", "bf": "1", "b_strategy": "0", "sc_threshold": "1000000000", "qmin": "2", "qmax": "3"}
    source = write_video(tmp_path / "source.avi", carphone(100), codec="mpeg4", options=options)
    path = packed(tmp_path / name, source)
    with av.open(str(source)) as container:
        frames = [frame.to_ndarray(format="yuv420p")[:144] for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        times = [frame.pts for frame in container.decode(video=0)]
    assert len(frames) == len(times) == 100 and times != sorted(times)
    (clip,) = clips(path)
    assert numbers(clip, frames) == list(range(100))
    assert np.allclose(np.diff(clip.packet_pts), 3600, atol=1) and clip.start == 0
    with pytest.raises(BadVideo, match=r"two pictures or none .* shard it without encode\.copy"):
        clips(path, COPY)


def test_doubled_times(tmp_path: Path) -> None:
    """Every two frames at one time become as even as the others; a reader of packets would not know their order."""

    def change(packet: av.Packet) -> None:
        assert packet.pts is not None and packet.dts is not None and packet.time_base is not None
        step = round(Fraction(1, 25) / packet.time_base)
        packet.pts = packet.dts = packet.pts // (2 * step) * 2 * step

    source = write_video(tmp_path / "source.mp4", carphone(60), options={"bf": "0", "g": "20"})
    for name in ("doubled.mkv", "doubled.ts"):
        with av.open(str(source)) as container, av.open(str(tmp_path / name), "w") as out:
            stream = container.streams.video[0]
            target = out.add_stream_from_template(stream, opaque=True)
            for number, packet in enumerate(p for p in container.demux(stream) if p.size):
                change(packet)
                if name.endswith("ts"):
                    packet.dts = number * round(Fraction(1, 25) / packet.time_base) - 10**6
                packet.stream = target
                out.mux_one(packet)
        (clip,) = clips(tmp_path / name)
        assert clip.frames == 60 and np.allclose(np.diff(clip.packet_pts), 3600, atol=1)
        with pytest.raises(BadVideo) as caught:
            clips(tmp_path / name, COPY)
        assert caught.value.kind == "unsupported"
