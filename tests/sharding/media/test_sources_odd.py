"""Sources as the world has them: turned, interlaced, deep, wide, wrongly timed; and packets copied as they are."""

from __future__ import annotations

import io
import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from sharding.corpora.manifest import Video
from sharding.media.clip import Clip
from sharding.media.decoding.reader import Reader
from sharding.media.encoder import EncodeSettings
from sharding.media.h264 import TIME_BASE
from sharding.media.input.bad_video import BadVideo
from sharding.media.input.segments import SegmentSettings
from sharding.media.input.source import Source
from sharding.media.transcode import SegmentFailure, VideoSettings, transcode
from tests.sharding.conftest import FOOTAGE, cut, frames_of
from tests.support.videos.odd_videos import carphone, copied, written

ENCODE = EncodeSettings(short_edge=64, preset="ultrafast", crf=6)
RED, GREEN, BLUE = (200, 30, 30), (30, 180, 40), (40, 40, 210)


def clip(path: Path, encode: EncodeSettings = ENCODE) -> Clip:
    (found,) = transcode(
        Source(str(path.parent), path.name), Video(path.name, (0,), "train"), VideoSettings(encode=encode)
    )
    assert isinstance(found, Clip)
    return found


def luma(found: Clip) -> NDArray[np.uint8]:
    """Frames × H × W."""
    return np.stack([frame[: found.height] for frame in frames_of(found.data)])


def rgb(found: Clip) -> NDArray[np.uint8]:
    """The first picture as a bt601 player shows it."""
    with av.open(io.BytesIO(found.data)) as container:
        frame = next(container.decode(video=0))
        return frame.to_ndarray(format="rgb24", src_colorspace=5, src_color_range=1, interpolation=16)


def quarters(height: int, width: int) -> NDArray[np.uint8]:
    """Red, green, blue and grey, from the upper left to the lower right."""
    picture = np.full((height, width, 3), 128, np.uint8)
    picture[: height // 2, : width // 2] = RED
    picture[: height // 2, width // 2 :] = GREEN
    picture[height // 2 :, : width // 2] = BLUE
    return picture


def corners(picture: NDArray[np.uint8]) -> list[tuple[int, ...]]:
    """The colours in the middle of the four quarters."""
    height, width = picture.shape[:2]
    return [tuple(int(value) for value in picture[height * y // 4, width * x // 4]) for y in (1, 3) for x in (1, 3)]


def close(ours: list[tuple[int, ...]], theirs: list[tuple[int, ...]], by: int = 6) -> bool:
    return bool(np.abs(np.array(ours) - np.array(theirs)).max() <= by)


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
@pytest.mark.parametrize("size", [None, (80, 60)])
def test_turned_videos_are_stored_upright(tmp_path: Path, turn: int, size: tuple[int, int] | None) -> None:
    path = written(
        tmp_path / "turned.mp4",
        [quarters(144, 176)] * 4,
        options={"qp": "4"},
        prepare=lambda stream: stream.set_display_rotation(turn),
    )
    found = clip(path, ENCODE if size is None else EncodeSettings(size=size, crf=6))
    if size is not None:
        assert (found.width, found.height) == size
    else:
        assert (found.width > found.height) == (turn in (0, 180)) and min(found.width, found.height) == 64
    upright = np.rot90(quarters(144, 176), turn // 90)  # a display matrix of 90 turns counter-clockwise
    assert close(corners(rgb(found)), corners(upright), 10)


@pytest.mark.parametrize(
    ("number", "height"),
    [(1, 144), (6, 720), (5, 144), (9, 144), (2, 144), (2, 720)],
    ids=["bt709", "bt601", "bt601 of 625 lines", "bt2020", "unmarked", "unmarked HD"],
)
@pytest.mark.parametrize("full", [False, True])
def test_every_matrix_and_range_gives_the_same_colours(tmp_path: Path, number: int, height: int, full: bool) -> None:
    """An unmarked video is bt709 if it is 720 lines high."""
    meant = {1: 1, 5: 5, 6: 5, 9: 9, 2: 1 if height >= 720 else 5}[number]
    width = height * 11 // 9 // 2 * 2
    source = av.VideoFrame.from_ndarray(quarters(height, width), format="rgb24").reformat(
        format="yuv420p", dst_colorspace=meant, dst_color_range=2 if full else 1, interpolation=16
    )

    def mark(stream: object) -> None:
        context = stream.codec_context  # type: ignore[attr-defined]
        context.colorspace, context.color_range = number, 2 if full else 1

    def mark_frame(frame: av.VideoFrame) -> None:
        frame.colorspace, frame.color_range = number, 2 if full else 1

    path = written(tmp_path / "coloured.mp4", [source] * 3, options={"qp": "2"}, prepare=mark, change=mark_frame)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        assert frame.colorspace == number and (frame.color_range == 2) == full
    found = clip(path)
    assert close(corners(rgb(found)), corners(quarters(height, width)), 8)
    assert (found.matrix, found.range) == ("bt601", "tv")


@pytest.mark.parametrize(
    ("codec", "pix_fmt"), [("libx265", "yuv420p10le"), ("libx264", "yuv422p"), ("libx264rgb", "rgb24")]
)
def test_deeper_and_finer_pixels(tmp_path: Path, codec: str, pix_fmt: str) -> None:
    options = {"x265-params": "log-level=none:pools=1:qp=4"} if codec == "libx265" else {"qp": "4"}
    path = written(tmp_path / "deep.mp4", [quarters(144, 176)] * 4, codec=codec, pix_fmt=pix_fmt, options=options)
    found = clip(path)
    with av.open(io.BytesIO(found.data)) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p"
    assert close(corners(rgb(found)), corners(quarters(144, 176)), 10)


def test_odd_sizes_become_even(tmp_path: Path) -> None:
    picture = quarters(145, 177)
    path = written(tmp_path / "odd.mp4", [picture] * 4, pix_fmt="yuv444p", options={"qp": "4"})
    found = clip(path, EncodeSettings(short_edge=128, crf=6))
    assert (found.width, found.height) == (156, 128)
    assert close(corners(rgb(found)), corners(picture), 10)
    assert (clip(path, EncodeSettings(short_edge=400)).width, clip(path, EncodeSettings(short_edge=400)).height) == (
        176,
        144,
    )


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    def prepare(stream: object) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(12, 11)  # type: ignore[attr-defined]

    path = written(tmp_path / "wide.mp4", [quarters(144, 176)] * 4, prepare=prepare)
    found = clip(path)
    assert (found.width, found.height) == (86, 64)
    with av.open(io.BytesIO(found.data)) as container:
        assert container.streams.video[0].sample_aspect_ratio in (None, 0, 1)


def test_interlaced_video_keeps_no_comb(tmp_path: Path) -> None:
    """Two pictures far apart woven into one: only the upper lines' is stored."""
    pictures = carphone(60)
    woven = []
    for number in range(0, 30, 2):
        weave = pictures[number].copy()
        weave[1::2] = 255 - pictures[number][1::2]  # what is later is quite another
        woven.append(weave)
    options = {"qmin": "1", "qmax": "2"}
    weaving = {**options, "flags": "+ildct+ilme", "top": "1"}
    path = written(tmp_path / "woven.mkv", woven, codec="mpeg2video", options=weaving)
    with av.open(str(path)) as container:
        assert all(frame.interlaced_frame for frame in container.decode(video=0))
    found = luma(clip(path))
    calm = luma(clip(written(tmp_path / "calm.mkv", pictures[0:30:2], codec="mpeg2video", options=options)))
    assert len(found) == len(calm) == 15
    assert np.abs(found.astype(int) - calm).mean() < 8


def test_the_best_of_several_video_streams_is_taken(tmp_path: Path) -> None:
    path = tmp_path / "several.mkv"
    small, large = [picture[::2, ::2] // 4 for picture in carphone(8)], carphone(8)
    with av.open(str(path), "w") as out:
        streams = []
        for pictures in (small, large):
            stream = out.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = pictures[0].shape[1], pictures[0].shape[0], "yuv420p"
            streams.append((stream, pictures))
        streams[0][0].disposition, streams[1][0].disposition = 0, av.stream.Disposition.default
        cover = out.add_stream("mjpeg", rate=25)
        cover.width, cover.height, cover.pix_fmt = 640, 480, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        frame = av.VideoFrame.from_ndarray(np.full((480, 640, 3), 200, np.uint8), format="rgb24").reformat(
            format="yuvj420p"
        )
        out.mux(cover.encode(frame))
        out.mux(cover.encode(None))
        for number in range(8):
            for stream, pictures in streams:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pictures[number]), format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                out.mux(stream.encode(frame))
        for stream, _ in streams:
            out.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert len(container.streams.video) == 3
    found = clip(path)
    assert found.frames == 8 and (found.width, found.height) == (78, 64)
    assert luma(found).mean() == pytest.approx(luma(clip(written(tmp_path / "one.mp4", large)))[:8].mean(), abs=2)


@pytest.mark.parametrize("rate", [187, 1000])
def test_a_wrong_frame_rate_loses_no_frame(tmp_path: Path, rate: int) -> None:
    """As a camera's VP9 in AVI has it: the header's rate is the only time there is, and is taken as it is."""
    path = written(
        tmp_path / "fast.avi",
        carphone(60),
        codec="libvpx-vp9",
        rate=rate,
        options={"cpu-used": "8", "lag-in-frames": "0"},
    )
    found = clip(path)
    assert found.frames == 60
    assert (np.diff(found.packet_pts) > 0).all()
    assert found.end == pytest.approx(60 / rate, rel=0.05)


def test_variable_frame_rate_keeps_the_times(tmp_path: Path) -> None:
    steps = np.array([1, 3, 2, 7, 1] * 12)
    times = np.concatenate([[0], np.cumsum(steps)[:-1]])

    def late(frame: av.VideoFrame) -> None:
        assert frame.pts is not None
        frame.pts = int(times[frame.pts])

    found = clip(written(tmp_path / "varying.mp4", carphone(60), change=late))
    assert found.frames == 60
    assert np.allclose(found.packet_pts * float(TIME_BASE), times / 25, atol=1e-4)


def test_times_that_begin_anew_go_on(tmp_path: Path) -> None:
    """As where recordings were put together."""
    part = written(tmp_path / "part.ts", options={"g": "25", "bf": "2"}).read_bytes()
    (tmp_path / "both.ts").write_bytes(part + part)
    found = clip(tmp_path / "both.ts")
    assert found.frames == 200 and found.fps == pytest.approx(25, rel=1e-3) and found.end == pytest.approx(8, abs=0.01)
    assert np.allclose(np.diff(found.packet_pts), 3600)


def test_a_single_wrong_time_moves_no_other(tmp_path: Path) -> None:
    source, path = written(tmp_path / "sound.mp4", options={"bf": "0"}), tmp_path / "wrong.mp4"
    with av.open(str(source)) as container, av.open(str(path), "w") as out:
        stream = container.streams.video[0]
        target = out.add_stream_from_template(stream, opaque=True)
        for number, packet in enumerate(packet for packet in container.demux(stream) if packet.size):
            assert packet.pts is not None and packet.time_base is not None
            packet.pts += round(70 / packet.time_base) if number == 50 else 0
            packet.stream = target
            out.mux_one(packet)
    with av.open(str(path)) as container:
        assert max(frame.time or 0 for frame in container.decode(video=0)) > 70
    found = clip(path)
    assert found.frames == 100 and np.allclose(np.diff(found.packet_pts), 3600, atol=1)


@pytest.mark.parametrize("frames", [2, 3])
def test_two_frames_are_a_video(tmp_path: Path, frames: int) -> None:
    path = cut(FOOTAGE / "carphone.mp4", tmp_path / "short.mp4", 0, frames)
    found = clip(path)
    assert found.frames == frames and found.end == pytest.approx(frames / 25)
    with pytest.raises(BadVideo, match="at 5 frames a second it has") as caught:
        clip(path, EncodeSettings(fps=5))
    assert caught.value.kind == "too_short"


def test_a_size_that_changes_midway(tmp_path: Path) -> None:
    pictures = carphone(20)
    first = written(tmp_path / "first.h264", pictures[:10]).read_bytes()
    second = written(tmp_path / "second.h264", [np.ascontiguousarray(p[::2, ::2]) for p in pictures[10:]]).read_bytes()
    (tmp_path / "both.h264").write_bytes(first + second)
    found = clip(tmp_path / "both.h264")
    assert found.frames == 20 and (found.width, found.height) == (78, 64)
    whole = luma(clip(written(tmp_path / "whole.mp4", pictures)))
    assert np.abs(luma(found).astype(int) - whole).mean(axis=(1, 2)).max() < 10


def test_missing_times_are_steps(tmp_path: Path) -> None:
    path = written(tmp_path / "raw.h264", options={"bf": "0"})
    with av.open(str(path)) as container:
        assert all(packet.pts is None for packet in container.demux(video=0))
    found = clip(path)
    assert found.frames == 100 and np.allclose(np.diff(found.packet_pts), 3600)
    (segment,) = transcode(
        Source(str(tmp_path), "raw.h264"),
        Video("raw.h264", (0,), "train", 1.0, 3.0),
        VideoSettings(encode=ENCODE),
    )
    assert isinstance(segment, Clip) and segment.frames == 50 and segment.start == pytest.approx(1.0)
    with pytest.raises(BadVideo, match="no times"):
        clip(path, EncodeSettings(copy=True))


# Packets stored as they are.

COPY = EncodeSettings(copy=True)
X265 = "log-level=none:keyint=25:pools=1"
SVT = {"g": "10", "preset": "12", "svtav1-params": "lp=1"}


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def table(found: Clip) -> list[bytes]:
    rows = zip(found.packet_offset, found.packet_size, strict=True)
    return [found.data[offset : offset + size] for offset, size in rows]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {
        "h264": written(folder / "h264.mp4", options={"g": "25", "bf": "2", "sc_threshold": "0"}),
        "hevc": written(folder / "hevc.mkv", codec="libx265", options={"x265-params": X265}),
        "vp9": written(folder / "vp9.webm", codec="libvpx-vp9", options={"g": "25", "cpu-used": "8"}),
        "av1": written(folder / "av1.mkv", carphone(30), codec="libsvtav1", options=SVT),
        "mpeg4": written(folder / "mpeg4.avi", codec="mpeg4", options={"g": "25", "sc_threshold": "1000000000"}),
    }  # fmt: skip


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "av1", "mpeg4"])
def test_copied_packets_are_the_source_s(sources: dict[str, Path], codec: str) -> None:
    path = sources[codec]
    found = clip(path, COPY)
    assert table(found) == packets(path)
    assert found.data == clip(path, COPY).data
    with av.open(str(path)) as container:
        theirs = [frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)]
        assert found.codec == container.streams.video[0].codec_context.codec.name
    ours = frames_of(found.data)
    assert len(ours) == len(theirs) and all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert found.frames == len(theirs) == len(found.packet_pts) and found.fps == pytest.approx(25, rel=1e-3)
    assert (found.width, found.height, found.matrix, found.range) == (176, 144, "bt601", "tv")
    assert found.packet_pts.min() == 0 and found.packet_key[0]
    assert len(found.group_crc32) == found.packet_key.sum()


def test_a_reader_decodes_copied_packets_by_the_table(sources: dict[str, Path]) -> None:
    found = clip(sources["h264"], COPY)
    decoder = av.CodecContext.create(found.codec, "r")
    decoder.extradata = found.extradata
    frames = []
    for payload, pts in zip(table(found), found.packet_pts, strict=True):
        packet = av.Packet(payload)
        packet.pts = int(pts)
        frames += decoder.decode(packet)
    frames += decoder.decode(None)
    assert sorted(found.packet_pts) == [frame.pts for frame in frames]
    assert all(np.array_equal(a.to_ndarray(), b) for a, b in zip(frames, frames_of(found.data), strict=True))


def test_copied_segments_are_cut_at_key_frames(tmp_path: Path) -> None:
    path = written(tmp_path / "long.mp4", times=5, options={"g": "50", "bf": "2", "sc_threshold": "0"})
    settings = VideoSettings(encode=COPY, segments=SegmentSettings(seconds=3, per_video=3))
    found = list(transcode(Source(str(tmp_path), "long.mp4"), Video("long.mp4", (0,), "train"), settings))
    with av.open(str(path)) as container:
        theirs = [frame.to_ndarray() for frame in container.decode(video=0)]
    assert [each.segment for each in found] == [0, 1, 2]
    for each in found:
        assert isinstance(each, Clip)
        assert each.start % 2 == pytest.approx(0) and each.packet_key[0]
        assert each.frames == (69 if each.segment == 0 else 75)  # the first begins late and ends where planned
        ours = frames_of(each.data)
        first = round(each.start * 25)
        assert len(ours) == each.frames
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs[first : first + len(ours)], strict=True))


def test_copied_segments_want_a_key_frame_near(tmp_path: Path) -> None:
    written(tmp_path / "one_key.mp4", times=3, options={"g": "1000", "sc_threshold": "0"})
    settings = VideoSettings(encode=COPY, segments=SegmentSettings(seconds=2, spacing=5))
    found = list(transcode(Source(str(tmp_path), "one_key.mp4"), Video("one_key.mp4", (0,), "train"), settings))
    assert isinstance(found[0], Clip) and found[0].frames >= 48
    assert [type(each) for each in found[1:]] == [SegmentFailure] * 2
    assert isinstance(found[1], SegmentFailure) and found[1].kind == "no_key_frame"


def test_a_codec_that_an_mp4_does_not_hold_is_refused() -> None:
    with pytest.raises(BadVideo, match=r"does not hold vp8 here; shard it without encode\.copy") as caught:
        clip(FOOTAGE / "lego.webm", COPY)
    assert caught.value.kind == "unsupported"


def test_a_turned_video_is_not_copied(tmp_path: Path) -> None:
    """A reader of single packets would show it lying on its side."""
    turned = written(tmp_path / "turned.mp4", carphone(5), prepare=lambda stream: stream.set_display_rotation(90))
    with pytest.raises(BadVideo, match="to be shown turned") as caught:
        clip(turned, COPY)
    assert caught.value.kind == "unsupported" and clip(turned).height > clip(turned).width


def test_a_copy_keeps_colour_and_other_containers(tmp_path: Path, sources: dict[str, Path]) -> None:
    annex_b = copied(sources["h264"], tmp_path / "h264.ts")
    ours = frames_of(clip(annex_b, COPY).data)
    assert all(np.array_equal(a, b) for a, b in zip(ours, frames_of(clip(sources["h264"], COPY).data), strict=True))
    hd = clip(FOOTAGE / "bigbuckbunny.mp4", COPY)
    assert (hd.width, hd.height, hd.matrix, hd.frames) == (1280, 720, "bt709", 132)


def test_a_cut_file_is_noticed_though_its_packets_are_not_decoded(broken: dict[str, Path]) -> None:
    with pytest.raises(BadVideo, match="declared frames") as caught:
        clip(broken["cut_after_header"], COPY)
    assert caught.value.kind == "missing_frames"


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("open.mp4", "libx264", {"bf": "3", "x264-params": "open-gop=1:keyint=30:min-keyint=30:scenecut=0"}),
        ("open.mkv", "libx265", {"x265-params": "log-level=none:pools=1:open-gop=1:keyint=30:min-keyint=30:bframes=3"}),
        ("open.ts", "mpeg2video", {"bf": "2", "g": "15"}),
        ("hidden.webm", "libvpx-vp9", {"g": "30", "cpu-used": "8", "lag-in-frames": "10", "auto-alt-ref": "1"}),
    ],
)
def test_what_is_seeked_to_decodes_as_from_the_beginning(
    tmp_path: Path, name: str, codec: str, options: dict[str, str]
) -> None:
    path = written(tmp_path / name, codec=codec, options=options)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.time_base is not None
        whole = {frame.pts: frame.to_ndarray() for frame in container.decode(stream)}
        step = round(Fraction(1, 25) / stream.time_base)
    source = Source(str(tmp_path), name)
    with source.opened(sequential=False) as file, Reader(source, file, file.read(4096)) as reader:
        for target, limit in ((3.0, 0.0), (1.5, 0.0), (2.42, 0.0), (2.4, 0.5), (0.0, 0.0), (3.6, 1.0), (1.0, 0.9)):
            begin = reader.seek(target, limit)
            assert target - limit - 1e-3 <= begin <= target
            frames = [frame for frame, _ in reader.until(begin, begin + 0.4, reader.declared)]
            assert len(frames) == 10 and all(b.pts - a.pts <= step + 1 for a, b in itertools.pairwise(frames))
            assert all(np.array_equal(frame.to_ndarray(), whole[frame.pts]) for frame in frames)
