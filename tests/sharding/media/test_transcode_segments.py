"""Only the planned segments of a video are read and stored, from key frames or exactly."""

from __future__ import annotations

import struct
from pathlib import Path

import av
import numpy as np
import pytest

from sharding.corpora.manifest import Video
from sharding.media.clip import Clip
from sharding.media.encoder import EncodeSettings
from sharding.media.input.bad_video import BadVideo
from sharding.media.input.segments import SegmentSettings, segment_starts
from sharding.media.input.source import Source
from sharding.media.transcode import SegmentFailure, VideoSettings, transcode
from tests.sharding.conftest import FOOTAGE, frames_of
from tests.support.videos.odd_videos import loop_video, remux_video, write_video

ENCODE = EncodeSettings(short_edge=64, preset="ultrafast")


# What follows is cut out of 40 s of a man in a car, a key frame every 2 s; each second of it is numbered in its
# brightness, so that a picture tells its time.


@pytest.fixture(scope="session")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    return write_video(path, times=10, options={"g": "50", "sc_threshold": "0", "bf": "2"})


def made(
    path: Path,
    segments: SegmentSettings | None,
    start: float | None = None,
    end: float | None = None,
    numbers: tuple[int, ...] = (),
    encode: EncodeSettings = ENCODE,
) -> tuple[list[Clip | SegmentFailure], Source]:
    source = Source(str(path.parent), path.name)
    video = Video(path.name, (0,), "train", start, end, None, numbers)
    return list(transcode(source, video, VideoSettings(encode=encode, segments=segments))), source


def clips(*args: object, **named: object) -> list[Clip]:
    found = made(*args, **named)[0]  # type: ignore[arg-type]
    assert all(isinstance(clip, Clip) for clip in found)
    return found  # type: ignore[return-value]


def pictures(path: Path, encode: EncodeSettings = ENCODE) -> list[np.ndarray]:
    """The frames of the whole video as they would be stored, before any encoder."""
    from sharding.media.decoding.picture import FrameScaler

    fitter = FrameScaler(encode.short_edge, 1.0)
    with av.open(str(path)) as container:
        return [fitter.scale(frame).to_ndarray() for frame in container.decode(video=0)]


def shows(clip: Clip, source: list[np.ndarray], fps: float = 25.0) -> None:
    """Each stored frame is the source's at its time."""
    first = round(clip.start * fps)
    stored = frames_of(clip.data)
    for number, frame in enumerate(stored):
        expected = source[first + number].astype(int)
        others = [np.abs(frame - source[first + number + by].astype(int)).mean() for by in (-25, 25)
                  if 0 <= first + number + by < len(source)]  # fmt: skip
        assert np.abs(frame - expected).mean() < min(others)


def test_segments_snap_to_key_frames_and_say_where_they_begin(long: Path) -> None:
    clips, source = made(long, SegmentSettings(seconds=3, per_video=3))
    assert [clip.segment for clip in clips] == [0, 1, 2]
    whole = pictures(long)
    for clip, planned in zip(clips, segment_starts(40, SegmentSettings(seconds=3, per_video=3)), strict=True):
        assert isinstance(clip, Clip)
        assert clip.start == pytest.approx(2 * (planned // 2) if planned % 2 <= 1.5 else planned, abs=0.04)
        assert clip.frames == 75 and clip.end == pytest.approx(clip.start + 3)
        shows(clip, whole)
    assert source.frames < 3 * (75 + 50)


def test_exact_segments_begin_where_planned(long: Path) -> None:
    settings = SegmentSettings(seconds=2, spacing=9.7, exact=True)
    whole = pictures(long)
    for number, clip in enumerate(clips(long, settings)):
        assert 0 <= clip.start - number * 9.7 < 0.04 + 1e-6
        assert clip.frames == 50
        shows(clip, whole)


def test_back_to_back_segments_hold_every_frame_once(long: Path) -> None:
    found, source = made(long, SegmentSettings(seconds=3))
    assert [clip.start for clip in found if isinstance(clip, Clip)] == pytest.approx([3 * n for n in range(13)])
    assert {clip.frames for clip in found if isinstance(clip, Clip)} == {75}
    assert source.frames <= 40 * 25 + 5  # decoded once, without going back to a key frame


def test_a_segment_made_alone_is_the_same(long: Path) -> None:
    for settings in (SegmentSettings(seconds=2, per_video=4), SegmentSettings(seconds=5)):
        among = clips(long, settings)
        (alone,) = clips(long, settings, numbers=(2,))
        assert alone.data == among[2].data and alone.start == among[2].start
        assert (alone.packet_offset == among[2].packet_offset).all()


def test_a_stretch_is_decoded_from_its_first_frame_to_its_last(long: Path) -> None:
    (clip,) = clips(long, None, start=11.0, end=14.0)
    assert clip.start == pytest.approx(11.0) and clip.end == pytest.approx(14.0) and clip.frames == 75
    shows(clip, pictures(long))
    (rest,) = clips(long, None, start=38.0)
    assert rest.frames == 50
    with pytest.raises(BadVideo, match="is not in the video"):
        clips(long, None, start=41.0, end=44.0)


def test_a_short_video_is_one_segment(pieces: list[Path]) -> None:
    for settings in (SegmentSettings(seconds=10, per_video=3), SegmentSettings(seconds=10, spacing=0.1)):
        (clip,) = clips(pieces[0], settings)
        assert (clip.segment, clip.start, clip.frames) == (0, 0.0, 20)
    assert clip.data == clips(pieces[0], None)[0].data


@pytest.mark.parametrize("name", ["long.mkv", "long.ts", "long.avi", "long.flv", "long.webm", "live.webm", "long.h264"])
def test_containers_that_seek_badly_or_not_at_all(long: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("webm"):
        options = {"live": "1"} if name.startswith("live") else {}
        path = write_video(
            path, codec="libvpx", times=10, muxer=options, options={"g": "50", "cpu-used": "16", "deadline": "realtime"}
        )
    elif name.endswith("avi"):
        path = write_video(path, codec="mpeg4", times=10, options={"g": "50", "sc_threshold": "0"})
    else:
        remux_video(long, path)
    settings = SegmentSettings(seconds=2, spacing=11)
    whole = pictures(path)
    found = clips(path, settings)
    assert [clip.segment for clip in found] == [0, 1, 2, 3]
    for clip in found:
        assert 49 <= clip.frames <= 51 and 11 * clip.segment - 1.001 <= clip.start <= 11 * clip.segment + 0.05
        shows(clip, whole)


def test_a_video_that_begins_at_another_time_than_zero(long: Path, tmp_path: Path) -> None:
    late = remux_video(long, tmp_path / "late.mkv", shift=7.0)
    with av.open(str(late)) as container:
        assert container.streams.video[0].start_time != 0
    ours, theirs = (clips(path, SegmentSettings(seconds=3, per_video=2)) for path in (late, long))
    assert [clip.start for clip in ours] == pytest.approx([clip.start for clip in theirs], abs=1e-2)
    for a, b in zip(ours, theirs, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(frames_of(a.data), frames_of(b.data), strict=True))


def test_segments_that_are_not_there_are_told_one_by_one(long: Path, tmp_path: Path) -> None:
    whole = remux_video(long, tmp_path / "whole.mp4", muxer={"movflags": "+faststart"}).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    clips, _ = made(tmp_path / "cut.mp4", SegmentSettings(seconds=2, spacing=12))
    assert [type(each) for each in clips] == [Clip, Clip, SegmentFailure, SegmentFailure]
    assert isinstance(clips[3], SegmentFailure) and clips[3].segment == 3
    assert clips[3].kind in ("undecodable", "missing_frames") and clips[3].reason
    with pytest.raises(BadVideo, match="not one of its 2 segments is usable; the first: "):
        made(tmp_path / "cut.mp4", SegmentSettings(seconds=2, spacing=12), start=24.0)
    (named,), _ = made(tmp_path / "cut.mp4", SegmentSettings(seconds=2, spacing=12), numbers=(3,))
    assert named == clips[3]


def lying(path: Path, long: Path, seconds: float) -> Path:
    """The video in a file whose header says that it lasts so long."""
    data = bytearray(remux_video(long, path).read_bytes())
    at = data.index(b"\x44\x89\x88") + 3  # Matroska's Duration, in milliseconds
    assert struct.unpack(">d", data[at : at + 8])[0] == pytest.approx(40_000, abs=100)
    data[at : at + 8] = struct.pack(">d", 1000 * seconds)
    assert data.count(b"DURATION") == 1
    path.write_bytes(data.replace(b"DURATION", b"DURATIOX"))  # which would tell the truth of the stream
    return path


@pytest.mark.parametrize("seconds", [1e3, 5e5, 1e12])
def test_a_header_that_promises_more(long: Path, tmp_path: Path, seconds: float) -> None:
    """What exists is stored; what does not costs nothing, and is listed, so that it can be tried again: to a bound."""
    path = lying(tmp_path / "lying.mkv", long, seconds)
    items, _ = made(path, SegmentSettings(seconds=5))
    good = [clip for clip in items if isinstance(clip, Clip)]
    assert [round(clip.start) for clip in good] == [0, 5, 10, 15, 20, 25, 30, 35]
    failures = [failure for failure in items if isinstance(failure, SegmentFailure)]
    numbers = [failure.segment for failure in failures]
    assert numbers == list(range(8, 8 + len(numbers))) and len(numbers) <= 310
    if seconds < 1e6:
        assert len(numbers) == 192 or (seconds > 1e3 and len(numbers) >= 300)
    if seconds < 1e6:
        assert failures[-1].kind == "outside" and "40.000 s" in failures[-1].detail


def test_frames_are_counted_while_they_are_decoded(long: Path) -> None:
    counts: list[int] = []
    source = Source(str(long.parent), long.name)
    video = Video(long.name, (0,), "train")
    settings = VideoSettings(encode=ENCODE, segments=SegmentSettings(seconds=1, per_video=2))
    running = transcode(source, video, settings, alive=counts.append)
    next(running)
    assert counts and counts == sorted(counts) and counts[-1] == source.frames < 150
    running.close()
    assert source.bytes_read > 0


def test_threads_change_no_byte(long: Path) -> None:
    def data(threads: int) -> list[bytes]:
        source, video = Source(str(long.parent), long.name), Video(long.name, (0,), "train")
        settings = VideoSettings(encode=ENCODE, segments=SegmentSettings(seconds=2, spacing=13))
        return [clip.data for clip in transcode(source, video, settings, threads) if isinstance(clip, Clip)]

    assert data(1) == data(1) == data(3)


def test_threads_change_no_byte_of_a_video_that_is_cut_off(tmp_path: Path) -> None:
    muxer = {"movflags": "faststart"}
    path = write_video(tmp_path / "damaged.mp4", options={"g": "25", "bf": "2", "sc_threshold": "0"}, muxer=muxer)
    data = path.read_bytes()
    path.write_bytes(data[: int(0.97 * len(data))])

    def stored(threads: int) -> Clip:
        source, video = Source(str(tmp_path), path.name), Video(path.name, (0,), "train")
        encode = ENCODE.model_copy(update={"maximum_concealed": 0.1})
        (clip,) = transcode(source, video, VideoSettings(encode=encode), threads)
        assert isinstance(clip, Clip)
        return clip

    assert stored(1).data == stored(4).data and stored(1).concealed == stored(4).concealed
    assert stored(1).frames > 90


@pytest.mark.parametrize(
    ("name", "fps"), [("cup.mp4", 10.0), ("cup.mp4", 29.97), ("carphone.mp4", 24.0), ("carphone.mp4", 50.0)]
)
def test_a_frame_rate_is_reached_as_ffmpeg_reaches_it(name: str, fps: float) -> None:
    encode = EncodeSettings(short_edge=64, preset="ultrafast", crf=4, fps=fps)
    (clip,) = clips(FOOTAGE / name, None, encode=encode)
    with av.open(str(FOOTAGE / name)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        graph.link_nodes(graph.add_buffer(template=stream), graph.add("fps", str(fps)), graph.add("buffersink"))
        graph.configure()
        shown = []
        for frame in [*container.decode(stream), None]:
            graph.push(frame)
            while True:
                try:
                    shown.append(graph.pull())
                except (av.error.BlockingIOError, av.error.EOFError):
                    break
    assert abs(clip.frames - len(shown)) <= 1  # how long the last frame lasts is a guess
    assert np.allclose(np.diff(clip.packet_pts), 90000 / fps, atol=1)
    assert clip.fps == pytest.approx(fps) and clip.end == pytest.approx(clip.frames / fps, abs=0.05)
    stored = frames_of(clip.data)
    for frame, there in list(zip(stored, shown, strict=False))[::7]:
        expected = there.reformat(clip.width, clip.height, "yuv420p").to_ndarray()
        assert np.abs(frame[: clip.height].astype(int) - expected[: clip.height]).mean() < 3


def test_key_frames_come_as_often_as_asked(pieces: list[Path]) -> None:
    encode = EncodeSettings(short_edge=64, key_frame_every=5)
    (clip,) = clips(pieces[0], None, encode=encode)
    assert list(np.flatnonzero(clip.packet_key)) == [0, 5, 10, 15]
    assert len(clip.group_crc32) == 4


def test_an_exact_size(pieces: list[Path]) -> None:
    (clip,) = clips(pieces[0], None, encode=EncodeSettings(size=(172, 100)))
    assert (clip.width, clip.height) == (172, 100) and frames_of(clip.data)[0].shape == (150, 172)


def test_looping_keeps_every_packet(tmp_path: Path) -> None:
    path = loop_video(FOOTAGE / "carphone.mp4", tmp_path / "looped.mp4", 3)
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 360
