"""Which stretches of a video become segments, and that only those are read and stored."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import av
import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import settings as trying
from hypothesis import strategies as st

from sharding.corpora.manifest import Video
from sharding.media.clip import Clip
from sharding.media.encoder import EncodeSettings
from sharding.media.input.bad_video import BadVideo
from sharding.media.input.segments import TOLERANCE, SegmentSettings, planned_segments, segment_starts, snap_limits
from sharding.media.input.source import Source
from sharding.media.transcode import SegmentFailure, VideoSettings, transcode
from tests.sharding.conftest import FOOTAGE, frames_of
from tests.support.videos.odd_videos import copied, looped, written

ENCODE = EncodeSettings(short_edge=64, preset="ultrafast")
SETTINGS = st.builds(
    SegmentSettings,
    seconds=st.floats(0.5, 600),
    per_video=st.none() | st.integers(1, 50),
    spacing=st.none() | st.floats(0.5, 600),
    exact=st.booleans(),
)


@trying(deadline=None)
@given(duration=st.floats(0, 2000), settings=SETTINGS)
def test_starts_lie_in_the_video_in_order(duration: float, settings: SegmentSettings) -> None:
    starts = segment_starts(duration, settings)
    assert starts == segment_starts(duration, settings) == sorted(set(starts))
    assert 1 <= len(starts) <= (settings.per_video or math.inf)
    assert starts[0] >= 0
    if duration < settings.seconds:
        assert starts == [0.0]
    else:
        assert starts[-1] + settings.seconds <= duration + 2 * TOLERANCE
    gaps = np.diff(starts)
    if settings.spacing is None:
        assert (gaps >= settings.seconds - 2 * TOLERANCE).all()
    else:
        assert np.allclose(gaps, settings.spacing)


@trying(deadline=None)
@given(duration=st.floats(0, 2000), settings=SETTINGS, lowest=st.floats(0, 100), moves=st.lists(st.floats(0, 1)))
def test_wherever_segments_snap_to_they_overlap_no_more_than_planned(
    duration: float, settings: SegmentSettings, lowest: float, moves: list[float]
) -> None:
    planned = [lowest + start for start in segment_starts(duration, settings)]
    limits = snap_limits(planned, settings, lowest)
    if settings.exact:
        assert not any(limits)
    moves += [1.0] * len(planned)
    begins = [start - limit * move for start, limit, move in zip(planned, limits, moves, strict=False)]
    assert begins[0] >= lowest - 1e-9
    for number in range(1, len(planned)):
        overlap = max(0.0, planned[number - 1] + settings.seconds - planned[number])
        assert begins[number - 1] + settings.seconds - begins[number] <= overlap + 2 * TOLERANCE
        assert begins[number] > begins[number - 1]


def test_starts_by_example() -> None:
    def starts(duration: float, **settings: object) -> list[float]:
        return segment_starts(duration, SegmentSettings.model_validate(settings))

    assert starts(300, seconds=10, per_video=3) == [45, 145, 245]
    assert starts(300, seconds=10, per_video=1) == [145]
    assert starts(35, seconds=10) == [0, 10, 20]
    assert starts(30, seconds=10) == [0, 10, 20]
    assert starts(25, seconds=10, per_video=5) == [1.25, 13.75]
    assert starts(7, seconds=10, per_video=5, spacing=1) == [0]
    assert starts(30, seconds=10, spacing=5) == [0, 5, 10, 15, 20]
    assert starts(30, seconds=10, spacing=5, per_video=2) == [0, 5]


def test_a_stretch_bounds_its_segments() -> None:
    settings = SegmentSettings(seconds=4, per_video=2)
    found = planned_segments(100.0, 20.0, 32.0, settings)
    assert [(s.start, s.end(s.start)) for s in found] == [(21, 25), (27, 31)]
    assert found[0].snap_limit == 1.0  # not before 20
    (rest,) = planned_segments(25.0, 20.0, 32.0, None)
    assert (rest.start, rest.snap_limit, rest.end(20.0), rest.available_seconds(20.0)) == (20.0, 0.0, 32.0, 5.0)
    with pytest.raises(BadVideo, match="from 20 to 32 s, is not in the video"):
        planned_segments(19.0, 20.0, 32.0, None)


@pytest.mark.parametrize(
    ("tree", "told"),
    [
        ({"encode": {"copy": True, "fps": 10, "crf": 20}}, "leave out fps, crf, or copy"),
        ({"encode": {"copy": True}, "segments": {"seconds": 5, "exact": True}}, "cut at key frames"),
        ({"encode": {"size": [171, 128]}}, "must be even"),
        ({"encode": {"size": [172, 128], "short_edge": 64}}, "leave one of them out"),
        ({"segments": {"seconds": 0}}, "greater than 0"),
    ],
)
def test_impossible_settings_are_refused(tree: dict[str, object], told: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=told):
        VideoSettings.model_validate(tree)


def test_settings_survive_being_written_down() -> None:
    for encode in (EncodeSettings(copy=True), EncodeSettings(size=(172, 128), fps=12.5)):
        settings = VideoSettings(encode=encode, segments=SegmentSettings(seconds=2))
        assert VideoSettings.model_validate(settings.model_dump(mode="json")) == settings


# What follows is cut out of 40 s of a man in a car, a key frame every 2 s; each second of it is numbered in its
# brightness, so that a picture tells its time.


@pytest.fixture(scope="session")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("long") / "long.mp4"
    return written(path, times=10, options={"g": "50", "sc_threshold": "0", "bf": "2"})


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
        there = source[first + number].astype(int)
        others = [np.abs(frame - source[first + number + by].astype(int)).mean() for by in (-25, 25)
                  if 0 <= first + number + by < len(source)]  # fmt: skip
        assert np.abs(frame - there).mean() < min(others)


def test_segments_snap_to_key_frames_and_say_where_they_begin(long: Path) -> None:
    found, source = made(long, SegmentSettings(seconds=3, per_video=3))
    assert [clip.segment for clip in found] == [0, 1, 2]
    whole = pictures(long)
    for clip, planned in zip(found, segment_starts(40, SegmentSettings(seconds=3, per_video=3)), strict=True):
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
        path = written(
            path, codec="libvpx", times=10, muxer=options, options={"g": "50", "cpu-used": "16", "deadline": "realtime"}
        )
    elif name.endswith("avi"):
        path = written(path, codec="mpeg4", times=10, options={"g": "50", "sc_threshold": "0"})
    else:
        copied(long, path)
    settings = SegmentSettings(seconds=2, spacing=11)
    whole = pictures(path)
    found = clips(path, settings)
    assert [clip.segment for clip in found] == [0, 1, 2, 3]
    for clip in found:
        assert 49 <= clip.frames <= 51 and 11 * clip.segment - 1.001 <= clip.start <= 11 * clip.segment + 0.05
        shows(clip, whole)


def test_a_video_that_begins_at_another_time_than_zero(long: Path, tmp_path: Path) -> None:
    late = copied(long, tmp_path / "late.mkv", shift=7.0)
    with av.open(str(late)) as container:
        assert container.streams.video[0].start_time != 0
    ours, theirs = (clips(path, SegmentSettings(seconds=3, per_video=2)) for path in (late, long))
    assert [clip.start for clip in ours] == pytest.approx([clip.start for clip in theirs], abs=1e-2)
    for a, b in zip(ours, theirs, strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(frames_of(a.data), frames_of(b.data), strict=True))


def test_segments_that_are_not_there_are_told_one_by_one(long: Path, tmp_path: Path) -> None:
    whole = copied(long, tmp_path / "whole.mp4", muxer={"movflags": "+faststart"}).read_bytes()
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    found, _ = made(tmp_path / "cut.mp4", SegmentSettings(seconds=2, spacing=12))
    assert [type(each) for each in found] == [Clip, Clip, SegmentFailure, SegmentFailure]
    assert isinstance(found[3], SegmentFailure) and found[3].segment == 3
    assert found[3].kind in ("undecodable", "missing_frames") and found[3].reason
    with pytest.raises(BadVideo, match="not one of its 2 segments is usable; the first: "):
        made(tmp_path / "cut.mp4", SegmentSettings(seconds=2, spacing=12), start=24.0)
    (named,), _ = made(tmp_path / "cut.mp4", SegmentSettings(seconds=2, spacing=12), numbers=(3,))
    assert named == found[3]


def lying(path: Path, long: Path, seconds: float) -> Path:
    """The video in a file whose header says that it lasts so long."""
    data = bytearray(copied(long, path).read_bytes())
    at = data.index(b"\x44\x89\x88") + 3  # Matroska's Duration, in milliseconds
    assert struct.unpack(">d", data[at : at + 8])[0] == pytest.approx(40_000, abs=100)
    data[at : at + 8] = struct.pack(">d", 1000 * seconds)
    assert data.count(b"DURATION") == 1
    path.write_bytes(data.replace(b"DURATION", b"DURATIOX"))  # which would tell the truth of the stream
    return path


@pytest.mark.parametrize("seconds", [1e3, 5e5, 1e12])
def test_a_header_that_promises_more(long: Path, tmp_path: Path, seconds: float) -> None:
    """What is there is found, and what is not costs nothing and fills no list."""
    path = lying(tmp_path / "lying.mkv", long, seconds)
    found, _ = made(path, SegmentSettings(seconds=5))
    good = [clip for clip in found if isinstance(clip, Clip)]
    assert [round(clip.start) for clip in good] == [0, 5, 10, 15, 20, 25, 30, 35]
    told = [failure for failure in found if isinstance(failure, SegmentFailure)]
    assert len(told) <= 2 and all(failure.segment >= 8 for failure in told)
    if seconds < 1e6:
        assert told[-1].kind == "outside" and "40.000 s" in told[-1].detail


def test_frames_are_counted_while_they_are_decoded(long: Path) -> None:
    told: list[int] = []
    source = Source(str(long.parent), long.name)
    video = Video(long.name, (0,), "train")
    settings = VideoSettings(encode=ENCODE, segments=SegmentSettings(seconds=1, per_video=2))
    running = transcode(source, video, settings, alive=told.append)
    next(running)
    assert told and told == sorted(told) and told[-1] == source.frames < 150
    running.close()
    assert source.bytes_read > 0


def test_threads_change_no_byte(long: Path) -> None:
    def data(threads: int) -> list[bytes]:
        source, video = Source(str(long.parent), long.name), Video(long.name, (0,), "train")
        settings = VideoSettings(encode=ENCODE, segments=SegmentSettings(seconds=2, spacing=13))
        return [clip.data for clip in transcode(source, video, settings, threads) if isinstance(clip, Clip)]

    assert data(1) == data(1) == data(3)


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
    path = looped(FOOTAGE / "carphone.mp4", tmp_path / "looped.mp4", 3)
    with av.open(str(path)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 360
