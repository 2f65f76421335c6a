"""Views of a clip, against swscale's pictures and against the formulas in double precision."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from torch.testing import assert_close

from pretrain.data.decode import Planes
from pretrain.data.transforms import (
    MEAN,
    STD,
    ClipSettings,
    Normalisation,
    View,
    centre_view,
    normalise,
    rgb_clip,
    train_view,
)
from tests.demo.corpora import FOOTAGE

UNIFORM = st.floats(0.0, 1.0, exclude_max=True)
MATRICES = {"bt601": 5, "bt709": 1}  # swscale's numbers


@pytest.fixture(scope="module")
def frames() -> list[av.VideoFrame]:
    with av.open(str(FOOTAGE / "carphone.mp4")) as container:
        return [frame for frame, _ in zip(container.decode(video=0), range(3), strict=False)]


def planes_of(frames: list[av.VideoFrame], matrix: str) -> Planes:
    pictures = np.stack([frame.to_ndarray(format="yuv420p") for frame in frames])
    height, width = frames[0].height, frames[0].width
    uv = pictures[:, height:].reshape(len(frames), 2, height // 2, width // 2)
    return Planes(pictures[:, :height].copy(), uv.copy(), matrix)


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_colours_and_sizes_are_swscales(frames: list[av.VideoFrame], matrix: str) -> None:
    # Odd widths: swscale takes a coarser path for even ones.
    for size in ((64, 85), (99, 121), (128, 171)):
        clip = ClipSettings(frames=len(frames), resize=size, crop=min(size))
        found = rgb_clip(planes_of(frames, matrix), clip, View(top=0, left=0, flip=False))
        assert found.dtype == torch.uint8 and found.shape == (3, len(frames), min(size), min(size))
        for number, frame in enumerate(frames):
            expected = frame.reformat(
                width=size[1], height=size[0], format="rgb24", src_colorspace=MATRICES[matrix],
                dst_colorspace=MATRICES[matrix], src_color_range=1, dst_color_range=2, interpolation="BILINEAR",
            ).to_ndarray()[:, : min(size)]  # fmt: skip
            error = found[:, number].permute(1, 2, 0).numpy().astype(int) - expected.astype(int)
            assert np.abs(error).mean() < 0.8  # of 255; the other matrix is 1.2 off


def formula(y: NDArray[np.float64], u: NDArray[np.float64], v: NDArray[np.float64], matrix: str) -> NDArray[np.float64]:
    """ITU-R's equations, written from the definition: Y' = Kr R + Kg G + Kb B, Cb = (B - Y) / (2 - 2 Kb)."""
    kr, kb = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}[matrix]
    luma, cb, cr = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    red, blue = luma + (2 - 2 * kr) * cr, luma + (2 - 2 * kb) * cb
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip(255 * np.stack([red, green, blue]), 0, 255)


@pytest.mark.parametrize("matrix", ["bt601", "bt709"])
def test_every_colour_is_the_standards(matrix: str) -> None:
    values = np.arange(0, 256, 5)
    u, v = np.meshgrid(values, values)  # one chroma sample for a block of 2 x 2, all of one colour
    flat = np.repeat(np.repeat(np.stack([u, v]), 2, -1), 2, -2)
    side = flat.shape[-1]
    clip = ClipSettings(frames=1, resize=(side, side), crop=side)
    inner = slice(4, side - 4)
    for luma in (0, 16, 90, 180, 235, 255):
        planes = Planes(np.full((1, side, side), luma, np.uint8), np.stack([u, v])[None].astype(np.uint8), matrix)
        found = rgb_clip(planes, clip, centre_view(clip))[:, 0].numpy().astype(float)
        # Chroma is bilinear between block centres: a quarter of the way to the neighbour, 5 / 4 levels.
        offset = np.where(np.arange(side) % 2, 1.25, -1.25)
        expected = formula(np.full((side, side), float(luma)), flat[0] + offset, flat[1] + offset[:, None], matrix)
        assert np.abs(found - expected)[:, inner, inner].max() <= 0.501


def test_black_white_and_grey() -> None:
    clip = ClipSettings(frames=1, resize=(8, 8), crop=8)
    for luma, grey in ((16, 0), (235, 255), (0, 0), (255, 255), (126, 128)):
        planes = Planes(np.full((1, 16, 16), luma, np.uint8), np.full((1, 2, 8, 8), 128, np.uint8), "bt601")
        assert rgb_clip(planes, clip, centre_view(clip)).unique().tolist() == [grey]


@given(st.integers(0, 10), st.integers(0, 26), st.booleans())
def test_a_view_is_cut_out_of_the_whole_and_mirrored(top: int, left: int, flip: bool) -> None:
    draw = np.random.default_rng(1)
    planes = Planes(
        draw.integers(16, 235, (2, 36, 44), np.uint8), draw.integers(16, 240, (2, 2, 18, 22), np.uint8), "bt601"
    )
    clip = ClipSettings(frames=2, resize=(26, 42), crop=16)
    whole = ClipSettings(frames=2, resize=(26, 42), crop=26)
    parts = [rgb_clip(planes, whole, View(top=0, left=x, flip=False)) for x in (0, 16)]
    picture = torch.cat([parts[0], parts[1][..., 10:]], -1)  # 3 2 26 42
    expected = picture[..., top : top + 16, left : left + 16]
    found = rgb_clip(planes, clip, View(top=top, left=left, flip=flip))
    assert torch.equal(found, expected.flip(-1) if flip else expected)


@given(UNIFORM, UNIFORM, UNIFORM)
def test_training_views_lie_inside(top: float, left: float, flip: float) -> None:
    clip = ClipSettings(resize=(128, 171), crop=112)
    view = train_view(clip, (top, left, flip))
    assert 0 <= view.top <= 16 and 0 <= view.left <= 59
    assert (view.top, view.left) == (int(top * 17), int(left * 60))
    assert view.flip is (flip < 0.5)
    unflipped = clip.model_copy(update={"flip": False})
    assert not train_view(unflipped, (top, left, flip)).flip


def test_views_reach_every_edge() -> None:
    clip = ClipSettings(resize=(128, 171), crop=112)
    assert train_view(clip, (0.0, 0.0, 0.0)) == View(top=0, left=0, flip=True)
    assert train_view(clip, (0.9999, 0.9999, 0.5)) == View(top=16, left=59, flip=False)
    assert centre_view(clip) == View(top=8, left=29, flip=False)


def test_normalised_clips() -> None:
    clips = torch.randint(256, (2, 3, 4, 5, 6), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    found = normalise(clips, Normalisation())
    assert found.dtype == torch.float32
    for channel in range(3):
        expected = (clips[:, channel].double() / 255 - MEAN[channel]) / STD[channel]
        assert_close(found[:, channel].double(), expected, rtol=0, atol=2e-6)
    half = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    assert_close(normalise(clips, half), clips / 127.5 - 1)
    with pytest.raises(ValidationError):
        Normalisation(std=(0.2, 0.0, 0.2))


def test_settings_that_do_not_fit() -> None:
    with pytest.raises(ValidationError, match="crop 120 is larger than resize 112 x 200"):
        ClipSettings(resize=(112, 200), crop=120)
    with pytest.raises(ValidationError, match="crop 120 is larger"):
        ClipSettings(resize=(200, 112), crop=120)
    assert ClipSettings(resize=(120, 120), crop=120).needed == 16
    assert ClipSettings(frames=8, stride=4).needed == 29
