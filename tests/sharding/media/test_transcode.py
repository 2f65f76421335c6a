"""One video: what is refused and with which words, and that the packet table reads back the same frames."""

from __future__ import annotations

import resource
import shutil
import struct
import zlib
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from sharding.corpora.manifest import Video
from sharding.media.clip import Clip
from sharding.media.decoding.container import DEMUXERS
from sharding.media.decoding.picture import fitted_size, pad_lines
from sharding.media.encoder import Encoder, EncodeSettings
from sharding.media.h264 import TIME_BASE
from sharding.media.input.bad_video import BadVideo
from sharding.media.input.source import Source
from sharding.media.input.validity import DecodeStats, judge_frames
from sharding.media.transcode import VideoSettings
from sharding.media.transcode import transcode as transcode_segments
from tests.sharding.conftest import FOOTAGE, frames_of
from tests.support.videos.odd_videos import carphone, write_video

SETTINGS = EncodeSettings(short_edge=64, preset="ultrafast")


def transcode(path: Path, settings: EncodeSettings) -> Clip:
    """The whole video as one clip."""
    source = Source(str(path.parent), path.name)
    (clip,) = transcode_segments(source, Video(path.name, (0,), "train"), VideoSettings(encode=settings))
    assert isinstance(clip, Clip)
    return clip


def decode_by_table(clip: Clip) -> list[np.ndarray]:
    """Frames from the table, the extradata and ranges of the bytes alone: no container is opened."""
    decoder = av.CodecContext.create("h264", "r")
    decoder.extradata = clip.extradata
    frames = []
    for offset, size, pts in zip(clip.packet_offset, clip.packet_size, clip.packet_pts, strict=True):
        packet = av.Packet(clip.data[offset : offset + size])
        packet.pts = packet.dts = int(pts)
        frames += decoder.decode(packet)
    frames += decoder.decode(None)
    assert [frame.pts for frame in frames] == list(clip.packet_pts)
    return [frame.to_ndarray(format="yuv420p") for frame in frames]


@pytest.mark.parametrize("name", ["carphone.mp4", "tree.avi", "cup.mp4", "lego.webm", "lego.flv", "lego.3gp"])
def test_table_decodes_the_identical_frames(name: str) -> None:
    clip = transcode(FOOTAGE / name, SETTINGS)
    ordinary = frames_of(clip.data)
    by_table = decode_by_table(clip)
    assert len(ordinary) == len(by_table) == clip.frames == len(clip.packet_pts)
    assert all(np.array_equal(a, b) for a, b in zip(ordinary, by_table, strict=True))
    assert list(np.flatnonzero(clip.packet_key)) == list(range(0, clip.frames, 16))
    groups = np.split(np.arange(clip.frames), np.flatnonzero(clip.packet_key)[1:])
    for group, crc in zip(groups, clip.group_crc32, strict=True):
        packets = [clip.data[clip.packet_offset[i] : clip.packet_offset[i] + clip.packet_size[i]] for i in group]
        assert zlib.crc32(b"".join(packets)) == crc
    assert (np.diff(clip.packet_pts) > 0).all() and clip.packet_pts[0] == 0


def test_what_the_stored_video_says_of_itself(tmp_path: Path) -> None:
    clip = transcode(FOOTAGE / "carphone.mp4", SETTINGS)
    path = tmp_path / "clip.mp4"
    path.write_bytes(clip.data)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        assert (context.width, context.height) == (clip.width, clip.height)
        assert min(clip.width, clip.height) == 64
        assert context.pix_fmt == "yuv420p" and context.color_range == 1 and context.colorspace == 6
        assert not context.has_b_frames and stream.time_base == TIME_BASE
    assert clip.frames == 120 and clip.fps == pytest.approx(30000 / 1001, abs=1e-3)
    assert clip.end == pytest.approx(120 * 1001 / 30000, abs=1e-3)


def test_the_picture_is_kept() -> None:
    clip = transcode(FOOTAGE / "carphone.mp4", EncodeSettings(crf=10))
    with av.open(str(FOOTAGE / "carphone.mp4")) as container:
        source = next(container.decode(video=0)).reformat(clip.width, clip.height, "yuv420p").to_ndarray()
    stored = frames_of(clip.data)[0]
    assert np.abs(source.astype(int) - stored.astype(int)).mean() < 2.5


def test_varying_frame_times_are_kept() -> None:
    clip = transcode(FOOTAGE / "tree.avi", SETTINGS)
    with av.open(str(FOOTAGE / "tree.avi")) as container:
        times = np.array([frame.time for frame in container.decode(video=0)])
    assert np.allclose(clip.packet_pts * float(TIME_BASE), times - times[0], atol=1e-4)


def test_full_range_and_turned_sources_are_made_upright_and_limited(tmp_path: Path) -> None:
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mjpeg", rate=25)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuvj420p"
        stream.codec_context.color_range = 2
        stream.set_display_rotation(90)
        for number in range(4):
            luma = np.full((96, 96), 128, np.uint8)
            luma[:64, :48], luma[:64, 48:] = 255, 0  # white left, black right
            frame = av.VideoFrame.from_ndarray(luma, format="yuvj420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with av.open(str(path)) as container:
        turn = next(container.decode(video=0)).rotation
    clip = transcode(path, EncodeSettings(short_edge=64, crf=4))
    assert (clip.width, clip.height) == (64, 96)
    luma = frames_of(clip.data)[0][:96]
    top, bottom = luma[:40].mean(), luma[56:].mean()
    # Turned counter-clockwise by 90 degrees, what was left is at the bottom.
    white, black = (bottom, top) if turn == 90 else (top, bottom)
    assert white == pytest.approx(235, abs=3) and black == pytest.approx(16, abs=3)


@pytest.mark.parametrize(
    ("name", "kind", "reason"),
    [
        ("empty", "empty", "the file is empty"),
        ("text", "not_video", "its bytes are plain text"),
        ("zeros", "not_video", "its bytes are all zero"),
        ("noise", "not_video", "no video format known here"),
        ("audio", "no_video", r"no video stream \(audio only\)"),
        ("still", "too_short", "only 1 frame; at least 2 are needed"),
        ("cut_before_header", "truncated", r"its header \(moov\) is missing"),
        ("cut_after_header", "missing_frames", r"only \d+ of 100 declared frames decode \(\d+ %\)"),
    ],
)
def test_reasons(broken: dict[str, Path], name: str, kind: str, reason: str) -> None:
    with pytest.raises(BadVideo, match=reason) as caught:
        transcode(broken[name], SETTINGS)
    assert caught.value.kind == kind


@pytest.mark.parametrize(
    "playlist",
    [
        b"ffconcat version 1.0\n#\xff\nfile other.mp4\n",
        b"#EXTM3U\n#\xff\n#EXT-X-VERSION:3\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nother.mp4\n#EXT-X-ENDLIST\n",
        b"<?xml version='1.0'?><!--\xff--><MPD xmlns='urn:mpeg:dash:schema:mpd:2011' type='static'><Period>"
        b"<AdaptationSet><Representation id='1' bandwidth='1'><BaseURL>other.mp4</BaseURL></Representation>"
        b"</AdaptationSet></Period></MPD>",
    ],
    ids=["concat", "hls", "dash"],
)
def test_a_playlist_is_no_video(tmp_path: Path, pieces: list[Path], playlist: bytes) -> None:
    shutil.copyfile(pieces[0], tmp_path / "other.mp4")
    for name in ("list.mp4", "list.ts", "list.mkv"):
        (tmp_path / name).write_bytes(playlist)
        with pytest.raises(BadVideo, match="not a video file"):
            transcode(tmp_path / name, SETTINGS)


def test_a_name_is_never_an_address(tmp_path: Path, pieces: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("concat:other.mp4", "http:other.mp4", "%03d.mp4", "-.mp4"):
        shutil.copyfile(pieces[0], name)
        assert transcode(Path(name), SETTINGS).frames == 20


def test_the_demuxers_that_may_open_a_file_exist() -> None:
    known = {name for listed in av.formats_available for name in listed.split(",")}
    assert [name for name in DEMUXERS.split(",") if name not in known] == []


def test_pictures_too_large_for_the_memory(tmp_path: Path) -> None:
    """A few bytes may announce a gigabyte."""
    path = write_video(tmp_path / "large.gif", carphone(3), codec="gif", pix_fmt="rgb8")
    data = bytearray(path.read_bytes())
    data[6:10] = struct.pack("<HH", 15000, 15000)
    path.write_bytes(data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadVideo) as caught:
        list(transcode_segments(Source(str(tmp_path), path.name), Video(path.name, (0,), "train"), VideoSettings()))
    assert caught.value.kind == "undecodable" and caught.value.detail
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


def test_a_missing_file_is_a_bad_video(tmp_path: Path) -> None:
    with pytest.raises(BadVideo, match="cannot be read"):
        transcode(tmp_path / "absent.mp4", SETTINGS)


def test_overwritten_middle_is_noticed(tmp_path: Path) -> None:
    data = bytearray((FOOTAGE / "carphone.mp4").read_bytes())
    start = len(data) // 4
    data[start : start + len(data) // 3] = np.random.default_rng(0).bytes(len(data) // 3)
    (tmp_path / "hurt.mp4").write_bytes(data)
    with pytest.raises(BadVideo) as caught:
        transcode(tmp_path / "hurt.mp4", SETTINGS)
    assert caught.value.kind in ("missing_frames", "undecodable") and caught.value.detail


def test_dropped_frames_are_no_damage() -> None:
    dropped = DecodeStats(
        declared_frames=444, declared_seconds=29.6, frame_interval=1 / 15, frames=68, first_time=0.0, last_time=29.5
    )
    judge_frames(dropped, 0.9)
    dropped.errors = 1
    with pytest.raises(BadVideo, match="68 of 444"):
        judge_frames(dropped, 0.9)


def test_half_an_avi_is_noticed_though_it_drops_frames(tmp_path: Path) -> None:
    data = (FOOTAGE / "tree.avi").read_bytes()
    (tmp_path / "half.avi").write_bytes(data[: len(data) // 2])
    with pytest.raises(BadVideo, match="of 444 declared frames"):
        transcode(tmp_path / "half.avi", SETTINGS)


def test_sizes_are_even_and_never_enlarged() -> None:
    assert fitted_size(640, 272, 1.0, 128) == (302, 128)
    assert fitted_size(1080, 1920, 1.0, 128) == (128, 228)
    assert fitted_size(90, 61, 1.0, 128) == (90, 60)
    assert fitted_size(720, 576, 16 / 15, 128) == (170, 128)


def test_the_memory_behind_a_line_does_not_matter() -> None:
    # 170 and 172 columns: no multiple of 16, so that x264 looks past the end of a line.
    for name in ("lego.3gp", "carphone.mp4"):
        expected = transcode(FOOTAGE / name, EncodeSettings(preset="ultrafast")).data
        for filler in (0, 255):
            litter = [bytes([filler]) * size for size in range(20_000, 60_000, 1000)]
            del litter
            assert transcode(FOOTAGE / name, EncodeSettings(preset="ultrafast")).data == expected


def test_every_processor_makes_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """As this one does without any of its faster instructions."""
    expected = transcode(FOOTAGE / "bikes.mp4", EncodeSettings(short_edge=64)).data
    options = Encoder._options

    def limited(self: Encoder) -> dict[str, str]:
        ours = options(self)
        return {**ours, "x264-params": f"{ours['x264-params']}:asm=0"}

    monkeypatch.setattr(Encoder, "_options", limited)
    assert transcode(FOOTAGE / "bikes.mp4", EncodeSettings(short_edge=64)).data == expected


def test_the_unused_part_of_every_line_is_written() -> None:
    frame = av.VideoFrame(170, 8, "yuv420p")
    for plane in frame.planes:
        plane.update(bytes(range(256)) * (plane.buffer_size // 256) + bytes(plane.buffer_size % 256))
    before = frame.to_ndarray()
    pad_lines(frame)
    assert np.array_equal(frame.to_ndarray(), before)
    for plane in frame.planes:
        lines = np.frombuffer(plane, np.uint8).reshape(plane.height, plane.line_size)
        assert (lines[:, plane.width :] == lines[:, plane.width - 1 : plane.width]).all()
