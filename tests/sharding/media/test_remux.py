"""Packets that are copied as the source has them."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from sharding.corpora.manifest import Video
from sharding.media.clip import Clip
from sharding.media.encoder import EncodeSettings
from sharding.media.input.bad_video import BadVideo
from sharding.media.input.segments import SegmentSettings
from sharding.media.input.source import Source
from sharding.media.transcode import SegmentFailure, VideoSettings, transcode
from tests.sharding.conftest import FOOTAGE, frames_of
from tests.support.videos.odd_videos import carphone, remux_video, write_video
from tests.support.videos.pictures import clip

# Packets stored as they are.

COPY = EncodeSettings(copy=True)


X265 = "log-level=none:keyint=25:pools=1"


SVT = {"g": "10", "preset": "12", "svtav1-params": "lp=1"}


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


def table(result: Clip) -> list[bytes]:
    rows = zip(result.packet_offset, result.packet_size, strict=True)
    return [result.data[offset : offset + size] for offset, size in rows]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    return {
        "h264": write_video(folder / "h264.mp4", options={"g": "25", "bf": "2", "sc_threshold": "0"}),
        "hevc": write_video(folder / "hevc.mkv", codec="libx265", options={"x265-params": X265}),
        "vp9": write_video(folder / "vp9.webm", codec="libvpx-vp9", options={"g": "25", "cpu-used": "8"}),
        "av1": write_video(folder / "av1.mkv", carphone(30), codec="libsvtav1", options=SVT),
        "mpeg4": write_video(folder / "mpeg4.avi", codec="mpeg4", options={"g": "25", "sc_threshold": "1000000000"}),
    }  # fmt: skip


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "av1", "mpeg4"])
def test_copied_packets_are_the_source_s(sources: dict[str, Path], codec: str) -> None:
    path = sources[codec]
    stored = clip(path, COPY)
    assert table(stored) == packets(path)
    assert stored.data == clip(path, COPY).data
    with av.open(str(path)) as container:
        theirs = [frame.to_ndarray(format="yuv420p") for frame in container.decode(video=0)]
        assert stored.codec == container.streams.video[0].codec_context.codec.name
    ours = frames_of(stored.data)
    assert len(ours) == len(theirs) and all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert stored.frames == len(theirs) == len(stored.packet_pts) and stored.fps == pytest.approx(25, rel=1e-3)
    assert (stored.width, stored.height, stored.matrix, stored.range) == (176, 144, "bt601", "tv")
    assert stored.packet_pts.min() == 0 and stored.packet_key[0]
    assert len(stored.group_crc32) == stored.packet_key.sum()


def test_a_reader_decodes_copied_packets_by_the_table(sources: dict[str, Path]) -> None:
    stored = clip(sources["h264"], COPY)
    decoder = av.CodecContext.create(stored.codec, "r")
    decoder.extradata = stored.extradata
    frames = []
    for payload, pts in zip(table(stored), stored.packet_pts, strict=True):
        packet = av.Packet(payload)
        packet.pts = int(pts)
        frames += decoder.decode(packet)
    frames += decoder.decode(None)
    assert sorted(stored.packet_pts) == [frame.pts for frame in frames]
    assert all(np.array_equal(a.to_ndarray(), b) for a, b in zip(frames, frames_of(stored.data), strict=True))


def test_copied_segments_are_cut_at_key_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "long.mp4", times=5, options={"g": "50", "bf": "2", "sc_threshold": "0"})
    settings = VideoSettings(encode=COPY, segments=SegmentSettings(seconds=3, per_video=3))
    clips = list(transcode(Source(str(tmp_path), "long.mp4"), Video("long.mp4", (0,), "train"), settings))
    with av.open(str(path)) as container:
        theirs = [frame.to_ndarray() for frame in container.decode(video=0)]
    assert [each.segment for each in clips] == [0, 1, 2]
    for each in clips:
        assert isinstance(each, Clip)
        assert each.start % 2 == pytest.approx(0) and each.packet_key[0]
        assert each.frames == (69 if each.segment == 0 else 75)  # the first begins late and ends where planned
        ours = frames_of(each.data)
        first = round(each.start * 25)
        assert len(ours) == each.frames
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs[first : first + len(ours)], strict=True))


def test_copied_segments_want_a_key_frame_near(tmp_path: Path) -> None:
    write_video(tmp_path / "one_key.mp4", times=3, options={"g": "1000", "sc_threshold": "0"})
    settings = VideoSettings(encode=COPY, segments=SegmentSettings(seconds=2, spacing=5))
    clips = list(transcode(Source(str(tmp_path), "one_key.mp4"), Video("one_key.mp4", (0,), "train"), settings))
    assert isinstance(clips[0], Clip) and clips[0].frames >= 48
    assert [type(each) for each in clips[1:]] == [SegmentFailure] * 2
    assert isinstance(clips[1], SegmentFailure) and clips[1].kind == "no_key_frame"


def test_a_codec_that_an_mp4_does_not_hold_is_refused() -> None:
    with pytest.raises(BadVideo, match=r"does not hold vp8 here; shard it without encode\.copy") as caught:
        clip(FOOTAGE / "lego.webm", COPY)
    assert caught.value.kind == "unsupported"


def test_a_video_whose_pixels_are_not_square_is_not_copied(tmp_path: Path) -> None:
    def widen(stream: Any) -> None:
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)

    wide = write_video(tmp_path / "wide.mp4", carphone(5), prepare=widen)
    with pytest.raises(BadVideo, match="not square") as caught:
        clip(wide, COPY)
    assert caught.value.kind == "unsupported" and clip(wide).width > 2 * clip(wide).height


def test_a_turned_video_is_not_copied(tmp_path: Path) -> None:
    """A reader of single packets would show it lying on its side."""
    turned = write_video(tmp_path / "turned.mp4", carphone(5), prepare=lambda stream: stream.set_display_rotation(90))
    with pytest.raises(BadVideo, match="to be shown turned") as caught:
        clip(turned, COPY)
    assert caught.value.kind == "unsupported" and clip(turned).height > clip(turned).width


def test_a_copy_keeps_colour_and_other_containers(tmp_path: Path, sources: dict[str, Path]) -> None:
    annex_b = remux_video(sources["h264"], tmp_path / "h264.ts")
    ours = frames_of(clip(annex_b, COPY).data)
    assert all(np.array_equal(a, b) for a, b in zip(ours, frames_of(clip(sources["h264"], COPY).data), strict=True))
    hd = clip(FOOTAGE / "bigbuckbunny.mp4", COPY)
    assert (hd.width, hd.height, hd.matrix, hd.frames) == (1280, 720, "bt709", 132)


def test_a_cut_file_is_noticed_though_its_packets_are_not_decoded(broken: dict[str, Path]) -> None:
    with pytest.raises(BadVideo, match="declared frames") as caught:
        clip(broken["cut_after_header"], COPY)
    assert caught.value.kind == "missing_frames"
