"""Which stream is read, at what times its frames are shown, and what a seek gives."""

from __future__ import annotations

import itertools
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from sharding.corpora.manifest import Video
from sharding.media.clip import Clip
from sharding.media.decoding.reader import Reader
from sharding.media.encoder import EncodeSettings
from sharding.media.h264 import TIME_BASE
from sharding.media.input.bad_video import BadVideo
from sharding.media.input.source import Source
from sharding.media.transcode import VideoSettings, transcode
from tests.sharding.conftest import FOOTAGE, cut
from tests.support.videos.odd_videos import carphone, write_video
from tests.support.videos.pictures import ENCODE, clip, luma


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
    assert luma(found).mean() == pytest.approx(luma(clip(write_video(tmp_path / "one.mp4", large)))[:8].mean(), abs=2)


@pytest.mark.parametrize("rate", [187, 1000])
def test_a_wrong_frame_rate_loses_no_frame(tmp_path: Path, rate: int) -> None:
    """As a camera's VP9 in AVI has it: the header's rate is the only time there is, and is taken as it is."""
    path = write_video(
        tmp_path / "fast.avi",
        carphone(60),
        codec="libvpx-vp9",
        rate=rate,
        options={"cpu-used": "8", "lag-in-frames": "0"},
    )
    stored = clip(path)
    assert stored.frames == 60
    assert (np.diff(stored.packet_pts) > 0).all()
    assert stored.end == pytest.approx(60 / rate, rel=0.05)


def test_variable_frame_rate_keeps_the_times(tmp_path: Path) -> None:
    steps = np.array([1, 3, 2, 7, 1] * 12)
    times = np.concatenate([[0], np.cumsum(steps)[:-1]])

    def late(frame: av.VideoFrame) -> None:
        assert frame.pts is not None
        frame.pts = int(times[frame.pts])

    found = clip(write_video(tmp_path / "varying.mp4", carphone(60), change=late))
    assert found.frames == 60
    assert np.allclose(found.packet_pts * float(TIME_BASE), times / 25, atol=1e-4)


def test_times_that_begin_anew_go_on(tmp_path: Path) -> None:
    """As where recordings were put together."""
    part = write_video(tmp_path / "part.ts", options={"g": "25", "bf": "2"}).read_bytes()
    (tmp_path / "both.ts").write_bytes(part + part)
    found = clip(tmp_path / "both.ts")
    assert found.frames == 200 and found.fps == pytest.approx(25, rel=1e-3) and found.end == pytest.approx(8, abs=0.01)
    assert np.allclose(np.diff(found.packet_pts), 3600)


def test_a_single_wrong_time_moves_no_other(tmp_path: Path) -> None:
    source, path = write_video(tmp_path / "sound.mp4", options={"bf": "0"}), tmp_path / "wrong.mp4"
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
    first = write_video(tmp_path / "first.h264", pictures[:10]).read_bytes()
    small = [np.ascontiguousarray(picture[::2, ::2]) for picture in pictures[10:]]
    second = write_video(tmp_path / "second.h264", small).read_bytes()
    (tmp_path / "both.h264").write_bytes(first + second)
    stored = clip(tmp_path / "both.h264")
    assert stored.frames == 20 and (stored.width, stored.height) == (78, 64)
    whole = luma(clip(write_video(tmp_path / "whole.mp4", pictures)))
    assert np.abs(luma(stored).astype(int) - whole).mean(axis=(1, 2)).max() < 10


def test_missing_times_are_steps(tmp_path: Path) -> None:
    path = write_video(tmp_path / "raw.h264", options={"bf": "0"})
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
    path = write_video(tmp_path / name, codec=codec, options=options)
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
