"""A clip's settings and views: sizes, crops, flips, and settings that do not fit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pretrain.data.views.views import (
    NORMALISATIONS,
    ClipSettings,
    Normalisation,
    View,
    centre_view,
    evaluation_views,
    train_view,
)
from sharding.base.errors import UserError
from sharding.base.settings import validate

UNIFORM = st.floats(0.0, 1.0, exclude_max=True)
RANDOMS = st.tuples(UNIFORM, UNIFORM, UNIFORM, UNIFORM)
SOURCES = st.tuples(st.integers(2, 600), st.integers(2, 600))
WIDE = (128, 228)


@given(SOURCES, RANDOMS)
def test_training_views_lie_inside(source: tuple[int, int], randoms: tuple[float, ...]) -> None:
    clip = ClipSettings(resize=(128, 171), crop=112)
    view = train_view(clip, source, randoms)
    assert view.size == (128, 171) and 0 <= view.top <= 16 and 0 <= view.left <= 59
    assert (view.top, view.left) == (int(randoms[0] * 17), int(randoms[1] * 60))
    assert view.flip is (randoms[2] < 0.5)
    unflipped = clip.model_copy(update={"flip": False})
    assert not train_view(unflipped, source, randoms).flip


def test_views_reach_every_edge() -> None:
    clip = ClipSettings(resize=(128, 171), crop=112)
    assert train_view(clip, WIDE, (0.0, 0.0, 0.0, 0.0)) == View((128, 171), top=0, left=0, flip=True)
    assert train_view(clip, WIDE, (0.9999, 0.9999, 0.5, 0.5)) == View((128, 171), top=16, left=59, flip=False)
    assert centre_view(clip, WIDE) == View((128, 171), top=8, left=29, flip=False)


@pytest.mark.parametrize(
    ("clip", "source", "tops", "lefts"),
    [
        (ClipSettings(resize=(128, 171), crop=112), WIDE, [8, 8, 8], [0, 29, 59]),  # 171 - 112 = 59, halved down
        (ClipSettings(resize=(171, 128), crop=128), WIDE, [0, 21, 43], [0, 0, 0]),
        (ClipSettings(short_edge=(256, 320), crop=224), (240, 320), [16, 16, 16], [0, 58, 117]),  # 256 x 341
        (ClipSettings(short_edge=(128, 160), crop=128), (320, 240), [0, 21, 43], [0, 0, 0]),  # 171 x 128
        (ClipSettings(resize=(128, 128), crop=112), WIDE, [8, 8, 8], [0, 8, 16]),  # a square: along its width
        (ClipSettings(resize=(112, 112), crop=112), WIDE, [0, 0, 0], [0, 0, 0]),
    ],
)
def test_three_crops_worked_out_by_hand(
    clip: ClipSettings, source: tuple[int, int], tops: list[int], lefts: list[int]
) -> None:
    views = evaluation_views(clip, source, 3)
    assert ([view.top for view in views], [view.left for view in views]) == (tops, lefts)
    assert not any(view.flip for view in views) and len({view.size for view in views}) == 1
    assert evaluation_views(clip, source, 1) == [views[1]] == [centre_view(clip, source)]


@given(SOURCES, RANDOMS)
def test_a_short_edge_keeps_the_aspect_ratio(source: tuple[int, int], randoms: tuple[float, ...]) -> None:
    clip = ClipSettings(short_edge=(128, 160), crop=112)
    for view, edge in (
        (train_view(clip, source, randoms), 128 + int(randoms[3] * 33)),
        (centre_view(clip, source), 128),
    ):
        assert min(view.size) == edge
        assert abs(max(view.size) - max(source) * edge / min(source)) <= 0.5
        assert (view.size[0] > view.size[1]) <= (source[0] > source[1])
        assert 0 <= view.top <= view.size[0] - 112 and 0 <= view.left <= view.size[1] - 112
    assert not view.flip
    assert abs(2 * view.top + 112 - view.size[0]) <= 1 and abs(2 * view.left + 112 - view.size[1]) <= 1


def test_every_short_edge_comes_equally_often() -> None:
    clip = ClipSettings(short_edge=(128, 160), crop=112)
    found = [min(train_view(clip, WIDE, (0.0, 0.0, 0.0, (i + 0.5) / 330)).size) for i in range(330)]
    assert {edge: found.count(edge) for edge in found} == dict.fromkeys(range(128, 161), 10)
    assert train_view(clip, WIDE, (0.0, 0.0, 0.0, 0.0)).size == WIDE


def test_what_follows_from_other_settings() -> None:
    plain, flow = ClipSettings(), ClipSettings(input="flow")
    assert (plain.resize, plain.short_edge, plain.channels) == ((128, 171), None, 3)
    assert plain.normalisation == Normalisation()
    assert flow.normalisation == NORMALISATIONS["flow"] and flow.channels == 2
    assert ClipSettings(short_edge=(128, 128)).resize is None
    for clip in (plain, flow, ClipSettings(short_edge=(128, 160), fps=15)):
        assert ClipSettings.model_validate(clip.model_dump(mode="json")) == clip
    own = Normalisation(mean=(0.0, 0.0), std=(20.0, 20.0))
    assert ClipSettings(input="flow", normalisation=own).normalisation == own


def test_frames_by_stride_and_by_time() -> None:
    times = [number / 30 for number in range(100)]
    clip = ClipSettings(frames=8, stride=4)
    assert clip.needed_frames(times) == 29 and clip.frame_numbers(times, 5) == [5, 9, 13, 17, 21, 25, 29, 33]
    timed = ClipSettings(frames=8, fps=7.5)
    assert timed.needed_frames(times) == 29 and timed.frame_numbers(times, 5) == [5, 9, 13, 17, 21, 25, 29, 33]
    late = [number / 60 for number in range(100)]
    assert timed.needed_frames(late) == 57 and timed.frame_numbers(late, 5) == [5, 13, 21, 29, 37, 45, 53, 61]
    assert clip.frame_numbers([0.0, 0.1, 0.2], 0) == [0, 1, 2, 0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"resize": [112, 200], "crop": 120}, "crop 120 is larger than resize 112 x 200; make crop smaller"),
        ({"resize": [200, 112], "crop": 120}, "crop 120 is larger than resize 200 x 112"),
        ({"short_edge": [100, 160]}, "crop 112 is larger than the lowest short_edge, 100; make crop smaller"),
        ({"short_edge": [160, 128]}, "short_edge 160 to 128 holds no size; give the lowest first"),
        ({"short_edge": [128, 160], "resize": [128, 171]}, "resize and short_edge .* leave one of them out"),
        ({"resize": None}, "neither resize nor short_edge .* give one of them"),
        ({"stride": 2, "fps": 15}, "stride 2 and fps 15 .* leave one of them out"),
        (
            {"input": "flow", "normalisation": {}},
            "normalisation has 3 values and a clip of input flow 2 channels; give",
        ),
        ({"normalisation": {"mean": [0, 0], "std": [1, 1]}}, "normalisation has 2 values and a clip of input rgb 3"),
        ({"normalisation": {"mean": [0, 0]}}, "mean has 2 values and std 3; give both"),
        ({"normalisation": {"std": [0.2, 0.0, 0.2]}}, "greater than 0"),
        ({"input": "grey"}, r"^input: found 'grey' .* 'rgb', 'flow' or 'rgb\+flow'"),
        ({"fps": 0}, "^fps: found 0 .* greater than 0"),
        ({"crop": 4, "short_edge": 128}, "short_edge: found 128"),
    ],
)
def test_settings_that_do_not_fit(tree: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=f"(?m){said}") as caught:
        validate(ClipSettings, tree, "recipe.yaml")
    assert "Undefined" not in caught.value.what


def test_a_worker_needs_no_torch() -> None:
    program = "import sys, pretrain.data.views.views; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[4]).returncode == 0
