"""Which stretches of a video become segments, and that only those are read and stored."""

from __future__ import annotations

import math

import numpy as np
import pydantic
import pytest
from hypothesis import given
from hypothesis import settings as trying
from hypothesis import strategies as st

from sharding.media.encoder import EncodeSettings
from sharding.media.input.bad_video import BadVideo
from sharding.media.input.segments import TOLERANCE, SegmentSettings, planned_segments, segment_starts, snap_limits
from sharding.media.transcode import VideoSettings

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
    ("tree", "output"),
    [
        ({"encode": {"copy": True, "fps": 10, "crf": 20}}, "leave out fps, crf, or copy"),
        ({"encode": {"copy": True}, "segments": {"seconds": 5, "exact": True}}, "cut at key frames"),
        ({"encode": {"size": [171, 128]}}, "must be even"),
        ({"encode": {"size": [172, 128], "short_edge": 64}}, "leave one of them out"),
        ({"segments": {"seconds": 0}}, "greater than 0"),
    ],
)
def test_impossible_settings_are_refused(tree: dict[str, object], output: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=output):
        VideoSettings.model_validate(tree)


def test_settings_survive_being_written_down() -> None:
    for encode in (EncodeSettings(copy=True), EncodeSettings(size=(172, 128), fps=12.5)):
        settings = VideoSettings(encode=encode, segments=SegmentSettings(seconds=2))
        assert VideoSettings.model_validate(settings.model_dump(mode="json")) == settings
