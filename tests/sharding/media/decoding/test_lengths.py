"""How long a video is: the picture's own length, whatever else its file holds and its header says."""

from __future__ import annotations

import itertools
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
from sharding.media.transcode import SegmentFailure, VideoSettings, transcode
from tests.support.videos.odd_videos import add_silence, carphone, write_video

ENCODE = EncodeSettings(short_edge=64, preset="ultrafast")
PLAIN = {"g": "12", "sc_threshold": "0", "bf": "0"}


def made(path: Path, segments: SegmentSettings | None = None) -> list[Clip | SegmentFailure]:
    settings = VideoSettings(encode=ENCODE, segments=segments)
    return list(transcode(Source(str(path.parent), path.name), Video(path.name, (0,), "train"), settings))


def clips(path: Path, segments: SegmentSettings | None = None) -> list[Clip]:
    found = made(path, segments)
    assert all(isinstance(each, Clip) for each in found), found
    return found  # type: ignore[return-value]


def test_an_asf_that_is_cut_off_is_no_whole_video(tmp_path: Path) -> None:
    """Its header has the length that FFmpeg tells of whole files alone."""
    path = write_video(tmp_path / "cut.wmv", carphone(75), codec="wmv2", options={"g": "12"})
    assert len(made(path)) == 1 and len(clips(path, SegmentSettings(seconds=1))) == 3
    path.write_bytes(path.read_bytes()[: int(0.6 * path.stat().st_size)])
    with pytest.raises(BadVideo, match=r"of 7\d declared"):
        made(path)
    first, *others = made(path, SegmentSettings(seconds=1))
    assert isinstance(first, Clip) and [type(each) for each in others] == [SegmentFailure] * 2


@pytest.mark.parametrize("damaged", [False, True])
def test_damage_in_a_video_of_a_rate_that_varies(tmp_path: Path, damaged: bool) -> None:
    """How many frames it has nobody says: a second at 30 a second, then two a second."""
    times = iter([*range(30), *range(30, 30 + 15 * 60, 15)])

    def late(frame: av.VideoFrame) -> None:
        frame.pts = next(times)

    path = write_video(tmp_path / "varies.mkv", carphone(90), rate=30, options=PLAIN, change=late)
    if damaged:
        with av.open(str(path)) as container:
            packets = [packet for packet in container.demux(video=0) if packet.size]
        data = bytearray(path.read_bytes())
        data[packets[40].pos + 10 : packets[40].pos + packets[40].size] = bytes(packets[40].size - 10)
        path.write_bytes(data)
    encode = ENCODE.model_copy(update={"maximum_concealed": 0.2})
    source, video = Source(str(tmp_path), path.name), Video(path.name, (0,), "train")
    (clip,) = transcode(source, video, VideoSettings(encode=encode))
    assert isinstance(clip, Clip) and clip.frames >= 85


@pytest.fixture(scope="module")
def short(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """2.4 s of a man in a car, by codec."""
    folder, pictures = tmp_path_factory.mktemp("short"), carphone(60)
    return {
        "h264": write_video(folder / "h264.mp4", pictures, options={"g": "12", "sc_threshold": "0", "bf": "2"}),
        "vp8": write_video(folder / "vp8.webm", pictures, codec="libvpx", options={"g": "12", "cpu-used": "16"}),
        "wmv2": write_video(folder / "wmv2.asf", pictures, codec="wmv2", options={"g": "12"}),
        "mpeg4": write_video(folder / "mpeg4.avi", pictures, codec="mpeg4", options={"g": "12"}),
    }


def untold(path: Path) -> Path:
    """A Matroska file without the statistics of its streams."""
    path.write_bytes(path.read_bytes().replace(b"DURATION", b"DURATIOX"))
    return path


CONTAINERS = [
    ("outlasted.mkv", "h264", "aac"),
    ("untold.mkv", "h264", "aac"),
    ("outlasted.webm", "vp8", "libopus"),
    ("untold.webm", "vp8", "libopus"),
    ("outlasted.flv", "h264", "aac"),
    ("outlasted.wmv", "wmv2", "wmav2"),
    ("outlasted.ts", "h264", "aac"),
    ("outlasted.mp4", "h264", "aac"),
    ("outlasted.mov", "h264", "aac"),
    ("outlasted.avi", "mpeg4", "mp2"),
]


@pytest.mark.parametrize(("name", "codec", "sound"), CONTAINERS)
def test_sound_that_goes_on_makes_no_video_longer(
    tmp_path: Path, short: dict[str, Path], name: str, codec: str, sound: str
) -> None:
    path = add_silence(short[codec], tmp_path / name, 8.0, sound)
    if name.startswith("untold"):
        untold(path)
    (whole,) = clips(path)
    assert whole.frames == 60
    found = clips(path, SegmentSettings(seconds=1, per_video=3, exact=True))
    assert [clip.segment for clip in found] == [0, 1] and all(24 <= clip.frames <= 26 for clip in found)
    assert found[-1].end <= 2.5


@pytest.mark.parametrize("name", ["cut.mkv", "untold.mkv", "cut.flv"])
def test_a_file_that_is_cut_off_is_still_noticed(tmp_path: Path, name: str) -> None:
    """Its streams end before its header says, all of them."""
    long = write_video(tmp_path / "long.mp4", times=2, options={"g": "12"})
    path = add_silence(long, tmp_path / name, 8.0, "aac")
    if name.startswith("untold"):
        untold(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(BadVideo, match=r"only \d+ of 20\d declared frames decode"):
        made(path)


def test_a_last_picture_that_stays(tmp_path: Path) -> None:
    """As a recording of a screen ends: its last frame lasts for half of it."""
    source = write_video(tmp_path / "source.mp4", carphone(50), options=PLAIN)
    path = tmp_path / "stays.mkv"
    with av.open(str(source)) as container, av.open(str(path), "w") as out:
        stream = container.streams.video[0]
        target = out.add_stream_from_template(stream, opaque=True)
        packets = [packet for packet in container.demux(stream) if packet.size]
        packets[-1].duration = 25 * (packets[-1].duration or 0)
        for packet in packets:
            packet.stream = target
            out.mux_one(packet)
    (whole,) = clips(path)
    assert whole.frames == 50


def null_chunks(path: Path, every: int) -> Path:
    """60 frames of 25 a second in an AVI of a rate so many times higher: chunks without a picture lie between."""

    def apart(frame: av.VideoFrame) -> None:
        assert frame.pts is not None
        frame.pts *= every

    return write_video(path, carphone(60), codec="mpeg4", rate=25 * every, options={"g": "12"}, change=apart)


@pytest.mark.parametrize("every", [2, 24])
def test_an_avi_with_empty_chunks(tmp_path: Path, every: int) -> None:
    path = null_chunks(tmp_path / "chunks.avi", every)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames >= 59 * every
    (whole,) = clips(path)
    assert whole.frames == 60 and np.allclose(np.diff(whole.packet_pts), 3600, atol=1)
    assert whole.start == 0 and whole.end == pytest.approx(2.4, abs=0.01)
    found = clips(path, SegmentSettings(seconds=1, per_video=2, exact=True))
    assert [clip.frames for clip in found] == [25, 25] and found[1].end <= 2.4
    data = path.read_bytes()
    (tmp_path / "cut.avi").write_bytes(data[: data.rindex(b"idx1") * 3 // 5])
    with pytest.raises(BadVideo) as caught:
        made(tmp_path / "cut.avi")
    assert caught.value.kind in ("missing_frames", "undecodable")


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A frame every 0.04 s up to 0.8 s, then one every 0.16 s up to 2.4 s."""
    times = [*range(20), *range(20, 60, 4)]

    def late(frame: av.VideoFrame) -> None:
        assert frame.pts is not None
        frame.pts = times[frame.pts]

    folder = tmp_path_factory.mktemp("slow")
    return write_video(folder / "slow.mp4", carphone(len(times)), options=PLAIN, change=late)


def test_a_stretch_where_frames_are_far_apart(slow: Path) -> None:
    found = clips(slow, SegmentSettings(seconds=0.8, per_video=2, exact=True))
    assert [clip.frames for clip in found] == [17, 5]  # from 0.2 and from 1.4 s on
    assert np.allclose(np.diff(found[1].packet_pts), 0.16 * 90000, atol=2)
    for segments in (SegmentSettings(seconds=0.8), SegmentSettings(seconds=1, per_video=2)):
        assert len(clips(slow, segments)) == 2


def test_a_stretch_in_which_no_two_frames_begin(tmp_path: Path) -> None:
    path = write_video(tmp_path / "still.mp4", carphone(12), rate=1, options=PLAIN)
    between = Video(path.name, (0,), "train", 10.1, 10.9)
    with pytest.raises(BadVideo, match=r"no frame is first shown from .* its frames are 1 s apart there") as caught:
        list(transcode(Source(str(tmp_path), path.name), between, VideoSettings(encode=ENCODE)))
    assert caught.value.kind == "too_short"
    with pytest.raises(BadVideo, match=r"only 1 frame is first shown .* choose longer segments"):
        made(path, SegmentSettings(seconds=0.8, spacing=5))
    assert [clip.frames for clip in clips(path, SegmentSettings(seconds=4))] == [4, 4, 4]


def test_a_stretch_that_is_not_there_is_no_slow_part(tmp_path: Path) -> None:
    path = write_video(tmp_path / "sound.mp4", times=2, options=PLAIN, muxer={"movflags": "+faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    clips = made(path, SegmentSettings(seconds=1, spacing=1.5))
    told = [each for each in clips if isinstance(each, SegmentFailure)]
    assert told and {failure.kind for failure in told} <= {"missing_frames", "undecodable", "outside"}
    assert list(itertools.dropwhile(lambda each: isinstance(each, Clip), clips)) == told
