"""Planes to a network's input, against formulas in double precision, torch's and Pillow's resize and swscale."""

from __future__ import annotations

import av
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

from pretrain.data.device import transforms
from pretrain.data.device.tensors import FlowBatch, PlaneBatch, flow_batch, plane_batch
from pretrain.data.device.transforms import network_input, pictures
from pretrain.data.reading.decode import Planes
from pretrain.data.views.resample import linear_taps, source_window, taps_range
from pretrain.data.views.views import NORMALISATIONS, ClipSettings, Normalisation, View, centre_view, train_view
from sharding.media.flow import dequantised, quantised
from tests.demo.corpora import FOOTAGE
from tests.support.gpu import needs_gpu

LEVELS = Normalisation(mean=(0.0, 0.0, 0.0), std=(1 / 255, 1 / 255, 1 / 255))  # leaves a clip in levels, 0 to 255
MATRICES = {"bt601": 5, "bt709": 1}  # swscale's numbers
SIZES = ((36, 44), (24, 24), (25, 31), (48, 20), (64, 90))


def meta_network(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("meta")


def random_planes(draw: np.random.Generator, size: tuple[int, int], matrix: str, frames: int = 2) -> Planes:
    """Planes of every value, those out of range too."""
    height, width = size
    y = draw.integers(0, 256, (frames, height, width), np.uint8)
    uv = draw.integers(0, 256, (frames, 2, (height + 1) // 2, (width + 1) // 2), np.uint8)
    return Planes(y, uv, matrix)


def colours(y: NDArray[np.float64], u: NDArray[np.float64], v: NDArray[np.float64], matrix: str) -> NDArray[np.float64]:
    """ITU-R's equations, written from the definition: Y' = Kr R + Kg G + Kb B, Cb = (B - Y) / (2 - 2 Kb)."""
    kr, kb = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}[matrix]
    luma, cb, cr = (y - 16) / 219, (u - 128) / 224, (v - 128) / 224
    red, blue = luma + (2 - 2 * kr) * cr, luma + (2 - 2 * kb) * cb
    green = (luma - kr * red - kb * blue) / (1 - kr - kb)
    return np.clip(255 * np.stack([red, green, blue]), 0, 255)


def shown(planes: NDArray[np.uint8], view: View, crop: int) -> NDArray[np.float64]:
    """Planes [T, h, w] as the view has them, by torch's own resize in double precision."""
    result = torch.from_numpy(planes).double().unsqueeze(1)
    if result.shape[-2:] != view.size:
        shrinks = result.shape[-2] > view.size[0] or result.shape[-1] > view.size[1]
        result = F.interpolate(result, view.size, mode="bilinear", align_corners=False, antialias=shrinks)
    cut = result[:, 0, view.top : view.top + crop, view.left : view.left + crop].numpy()
    return cut[..., ::-1] if view.flip else cut


def exact(planes: Planes, view: View, crop: int) -> NDArray[np.float64]:
    """RGB levels [3, T, crop, crop] in double precision."""
    y, u, v = (shown(each, view, crop) for each in (planes.y, planes.uv[:, 0], planes.uv[:, 1]))
    return colours(y, u, v, planes.matrix)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[Planes], list[View], ClipSettings]:
    """A few clips of different sizes, matrices and views."""
    kind = draw(st.sampled_from([{"resize": (26, 42)}, {"resize": (24, 24)}, {"short_edge": (24, 40)}]))
    clip = ClipSettings(frames=2, crop=24, normalisation=LEVELS, **kind)
    random = np.random.default_rng(draw(st.integers(0, 1000)))
    planes = [
        random_planes(random, draw(st.sampled_from(SIZES)), draw(st.sampled_from(sorted(MATRICES))))
        for _ in range(draw(st.integers(1, 3)))
    ]
    return planes, [train_view(clip, each.y.shape[1:], random.random(4)) for each in planes], clip


@settings(max_examples=40)
@given(batches())
def test_every_clip_of_a_batch_is_the_formulas(made: tuple[list[Planes], list[View], ClipSettings]) -> None:
    planes, views, clip = made
    batch = plane_batch(planes, views)
    result = network_input(batch, clip)
    assert result.dtype == torch.float32 and result.is_contiguous()
    assert result.shape == (len(planes), 3, 2, clip.crop, clip.crop)
    expected = np.stack([exact(each, view, clip.crop) for each, view in zip(planes, views, strict=True)])
    assert np.abs(result.double().numpy() - expected).max() < 0.001  # of 255
    whole = pictures(batch, clip)
    assert whole.dtype == torch.uint8 and torch.equal(whole, result.round().to(torch.uint8))


@settings(max_examples=40)
@given(batches())
def test_an_accelerators_way_is_the_cpus(made: tuple[list[Planes], list[View], ClipSettings]) -> None:
    """All clips at once, padded to the largest, and lines resized by gathering."""
    planes, views, clip = made
    batch = plane_batch(planes, views)
    expected = network_input(batch, clip)
    result = torch.full_like(expected, torch.nan)
    layers = transforms._layers(batch, clip.crop)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(transforms, "_across", transforms._gathered)
        transforms._mix(layers, transforms._colours(batch), [(0.0, 255.0)] * 3, result)
    assert_close(result, expected, rtol=0, atol=1e-3)


def footage(name: str, count: int) -> tuple[Planes, list[av.VideoFrame]]:
    with av.open(str(FOOTAGE / name)) as container:
        frames = [frame for frame, _ in zip(container.decode(video=0), range(count), strict=False)]
    whole = np.stack([frame.to_ndarray(format="yuv420p") for frame in frames])
    height, width = frames[0].height, frames[0].width
    uv = whole[:, height:].reshape(count, 2, height // 2, width // 2)
    return Planes(whole[:, :height].copy(), uv.copy(), "bt601"), frames


def test_real_footage_at_full_size_within_a_hundredth_of_a_level() -> None:
    planes, _ = footage("carphone.mp4", 8)
    for given_size in ({}, {"short_edge": (128, 160)}, {"resize": (256, 340), "crop": 224}):
        clip = ClipSettings(frames=8, **given_size)
        view = train_view(clip, planes.y.shape[1:], (0.3, 0.6, 0.1, 0.7))
        found = network_input(plane_batch([planes], [view]), clip)[0].double().numpy()
        mean, std = (np.array(each)[:, None, None, None] for each in (clip.normalisation.mean, clip.normalisation.std))
        assert np.abs((found * std + mean) * 255 - exact(planes, view, clip.crop)).max() < 0.01


@needs_gpu("the test above")
def test_a_gpus_input_is_the_cpus() -> None:
    planes, _ = footage("carphone.mp4", 8)
    clip = ClipSettings(frames=8, normalisation=LEVELS)
    draw = np.random.default_rng(0)
    views = [train_view(clip, planes.y.shape[1:], draw.random(4)) for _ in range(4)]
    batch = plane_batch([planes] * 4, views)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        result = network_input(batch.map_tensors(lambda planes: planes.to("cuda")), clip)
    finally:
        torch.set_float32_matmul_precision(before)
    assert result.is_cuda and result.is_contiguous()
    assert_close(result.cpu(), network_input(batch, clip), rtol=0, atol=1e-3)


def test_reduced_precision_of_products_changes_nothing() -> None:
    planes, _ = footage("carphone.mp4", 4)
    clip = ClipSettings(frames=4)
    batch = plane_batch([planes], [centre_view(clip, planes.y.shape[1:])])
    expected = network_input(batch, clip)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", torch.bfloat16):
            result = network_input(batch, clip)
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(result, expected)


@pytest.mark.slow
def test_another_device_computes_where_the_batch_lies() -> None:
    planes = [random_planes(np.random.default_rng(0), size, "bt709") for size in SIZES[:2]]
    clip = ClipSettings(frames=2, resize=(26, 42), crop=24)
    batch = plane_batch(planes, [centre_view(clip, each.y.shape[1:]) for each in planes]).map_tensors(
        lambda planes: planes.to("meta")
    )
    assert isinstance(batch, PlaneBatch) and batch.y.is_meta and batch.uv.is_meta
    found = network_input(batch, clip)
    assert found.is_meta and found.shape == (2, 3, 2, 24, 24) and found.is_contiguous()


def test_memory_that_is_given_is_filled() -> None:
    planes = random_planes(np.random.default_rng(0), (36, 44), "bt601")
    clip = ClipSettings(frames=2, resize=(26, 42), crop=24)
    batch = plane_batch([planes, planes], [centre_view(clip, (36, 44))] * 2)
    out = torch.full((2, 3, 2, 24, 24), torch.nan)
    assert network_input(batch, clip, out) is out and torch.equal(out, network_input(batch, clip))


@pytest.mark.parametrize(("source", "target"), [(44, 42), (90, 24), (24, 90), (31, 31), (9, 8), (500, 8), (8, 500)])
def test_a_line_is_resized_as_pillow_does(source: int, target: int) -> None:
    line = np.random.default_rng(source).integers(0, 256, source).astype(np.float32)
    taps = linear_taps(source, target, 0, target)
    result = (line[taps.index] * taps.weights).sum(1)
    picture = Image.fromarray(np.repeat(line[None], 8, 0))
    expected = np.asarray(picture.resize((target, 8), Image.Resampling.BILINEAR))[0]
    assert np.abs(result - expected).max() < 1e-3
    mirrored = linear_taps(source, target, 2, 5, mirrored=True)
    assert np.array_equal((line[mirrored.index] * mirrored.weights).sum(1), result[2:7][::-1])


@pytest.mark.parametrize("matrix", sorted(MATRICES))
def test_colours_are_swscales(matrix: str) -> None:
    """Of all lumas and a choice of chroma, each on a patch of its own, where no chroma is interpolated."""
    values = np.linspace(16, 240, 15).astype(np.uint8)
    u, v = (each.ravel() for each in np.meshgrid(values, values))
    side, lumas = 8, np.arange(16, 236, 3, dtype=np.uint8)
    patches = np.zeros((len(lumas), 2, side // 2 * 16, side // 2 * 16), np.uint8)
    for at in range(len(u)):
        row, column = (side // 2 * place for place in divmod(at, 16))
        patches[:, 0, row : row + side // 2, column : column + side // 2] = u[at]
        patches[:, 1, row : row + side // 2, column : column + side // 2] = v[at]
    size = side * 16
    y = np.repeat(lumas, size * size).reshape(-1, size, size)
    clip = ClipSettings(frames=len(lumas), resize=(size, size), crop=size, normalisation=LEVELS)
    result = network_input(plane_batch([Planes(y, patches, matrix)], [centre_view(clip, (size, size))]), clip)[0]
    error = []
    for number in range(len(lumas)):
        whole = np.concatenate([y[number], patches[number].reshape(size // 2, size)])
        rgb = av.VideoFrame.from_ndarray(whole, format="yuv420p").reformat(
            format="rgb24", src_colorspace=MATRICES[matrix], dst_colorspace=MATRICES[matrix],
            src_color_range=1, dst_color_range=2, interpolation=2 | 0x40000 | 0x80000 | 0x2000,
        )  # fmt: skip
        centre = slice(side // 2, None, side)  # of every patch, where no neighbour reaches
        there = rgb.to_ndarray()[centre, centre].astype(float)
        here = result[:, number].permute(1, 2, 0).numpy()[centre, centre]
        error.append(np.abs(here - there).reshape(-1, 3)[: len(u)])
    assert np.max(error) < 0.6  # it rounds to whole levels, ours does not


@pytest.mark.parametrize("matrix", sorted(MATRICES))
def test_pictures_and_sizes_are_swscales(matrix: str) -> None:
    planes, frames = footage("carphone.mp4", 3)
    for size in ((64, 85), (99, 121), (128, 171)):  # odd widths: swscale takes a coarser path for even ones
        crop = min(size)
        clip = ClipSettings(frames=3, resize=size, crop=crop)
        view = View(size=size, top=0, left=0, flip=False)
        result = pictures(plane_batch([Planes(planes.y, planes.uv, matrix)], [view]), clip)[0]
        for number, frame in enumerate(frames):
            expected = frame.reformat(
                width=size[1], height=size[0], format="rgb24", src_colorspace=MATRICES[matrix],
                dst_colorspace=MATRICES[matrix], src_color_range=1, dst_color_range=2, interpolation="BILINEAR",
            ).to_ndarray()[:, :crop]  # fmt: skip
            error = result[:, number].permute(1, 2, 0).numpy().astype(int) - expected.astype(int)
            assert np.abs(error).mean() < 0.8  # of 255; the other matrix is 1.2 off


def test_black_white_and_grey() -> None:
    clip = ClipSettings(frames=1, resize=(8, 8), crop=8)
    for luma, grey in ((16, 0), (235, 255), (0, 0), (255, 255), (126, 128)):
        planes = Planes(np.full((1, 16, 16), luma, np.uint8), np.full((1, 2, 8, 8), 128, np.uint8), "bt601")
        batch = plane_batch([planes], [centre_view(clip, (16, 16))])
        assert pictures(batch, clip).unique().tolist() == [grey]
        half = clip.model_copy(update={"normalisation": Normalisation(mean=(0.5,) * 3, std=(0.5,) * 3)})
        assert_close(network_input(batch, half), torch.full((1, 3, 1, 8, 8), grey / 127.5 - 1), rtol=0, atol=3e-3)


def flow_of(size: tuple[int, int], seed: int = 0) -> NDArray[np.float32]:
    """Motion [T, 2, H, W] of up to 20 pixels."""
    return np.random.default_rng(seed).uniform(-20, 20, (2, 2, *size)).astype(np.float32)


def flow_input(flows: list[NDArray[np.float32]], bounds: list[float], views: list[View], clip: ClipSettings) -> Tensor:
    lumas = [np.stack([quantised(each, bound) for each in flow]) for flow, bound in zip(flows, bounds, strict=True)]
    return network_input(flow_batch(lumas, bounds, views), clip)


def test_flow_is_in_pixels_of_the_view() -> None:
    clip = ClipSettings(input="flow", frames=2, resize=(26, 42), crop=24)
    sizes, bounds = [(36, 44), (24, 30)], [20.0, 30.0]
    flows = [flow_of(size) for size in sizes]
    views = [View((26, 42), top=1, left=9, flip=False), View((26, 42), top=2, left=18, flip=True)]
    result = flow_input(flows, bounds, views, clip)
    assert result.shape == (2, 2, 2, 24, 24) and result.is_contiguous()
    for number, (flow, view, bound) in enumerate(zip(flows, views, bounds, strict=True)):
        stored = np.stack([dequantised(quantised(each, bound), bound) for each in flow]).astype(np.float64)
        for channel, size in ((0, 1), (1, 0)):
            steps = torch.from_numpy(stored[:, channel].copy()).unsqueeze(1)
            shrinks = steps.shape[2] > 26 or steps.shape[3] > 42
            moved = F.interpolate(steps, (26, 42), mode="bilinear", align_corners=False, antialias=shrinks)[:, 0]
            moved = (
                moved[:, view.top : view.top + 24, view.left : view.left + 24] * (26, 42)[size] / flow.shape[2 + size]
            )
            if view.flip:
                moved = moved.flip(-1) * (-1 if channel == 0 else 1)
            scale = NORMALISATIONS["flow"]
            expected = (moved - scale.mean[channel]) / scale.std[channel]
            assert_close(result[number, channel].double(), expected, rtol=0, atol=2e-5)


def test_a_mirrored_scene_moves_the_other_way() -> None:
    """The flow of mirrored frames is what a mirrored clip is fed."""
    clip = ClipSettings(input="flow", frames=2, resize=(24, 24), crop=24, normalisation={"mean": (0, 0), "std": (1, 1)})
    flow = flow_of((24, 24))
    mirrored = flow[..., ::-1] * np.array([-1, 1], np.float32)[:, None, None]
    plain, turned = (View((24, 24), 0, 0, flip) for flip in (False, True))
    assert_close(
        flow_input([flow], [20.0], [turned], clip), flow_input([mirrored], [20.0], [plain], clip), rtol=0, atol=1e-5
    )


def test_flow_moves_between_devices() -> None:
    batch = flow_batch([np.zeros((2, 48, 24), np.uint8)], [20.0], [View((24, 24), 0, 0, False)]).map_tensors(
        lambda planes: planes.to("meta")
    )
    assert isinstance(batch, FlowBatch) and batch.steps.shape == (1, 2, 2, 24, 24)
    assert network_input(batch, ClipSettings(input="flow", frames=2, resize=(24, 24), crop=24)).is_meta


@given(st.data())
def test_a_window_holds_all_that_is_taken(data: st.DataObject) -> None:
    source, target = data.draw(st.integers(2, 400)), data.draw(st.integers(8, 400))
    begin = data.draw(st.integers(0, target - 8))
    count = data.draw(st.integers(8, target - begin))
    first, last = source_window(source, target, begin, count)
    assert first % 2 == 0 and (last % 2 == 0 or last == source) and 0 <= first < last <= source
    for mirrored in (False, True):
        low, high = taps_range([linear_taps(source, target, begin, count, mirrored)])
        assert first <= low and high <= last
        low, high = taps_range([linear_taps((source + 1) // 2, target, begin, count, mirrored)])
        assert first // 2 <= low and high <= (last + 1) // 2
    here = linear_taps(source, target, begin, count, origin=first)
    assert np.array_equal(here.index + first, linear_taps(source, target, begin, count).index)


def test_a_window_is_little_more_than_the_crop() -> None:
    assert source_window(170, 171, 30, 112) == (26, 146) and source_window(128, 128, 8, 112) == (4, 124)
