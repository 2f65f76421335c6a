"""Weights of PyTorch's publishers: recognised, loaded whole, and computing what their own networks compute."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pretrain.conversion.identify import recognise
from pretrain.conversion.published import Published, read_published
from pretrain.models.count import parameters
from pretrain.models.network import VideoNetwork
from pretrain.models.weights import check_weights, load_weights
from pretrain.models.zoo import ModelSettings, build_model
from sharding.base.errors import UserError
from tests.support.training.published_files import Shapes, doubled, i3d_shapes, random_state, video_shapes
from tests.support.training.published_networks import i3d_network, video_network

R3D, MC3, R2PLUS1D = ("3d",) * 4, ("3d", "2d", "2d", "2d"), ("2+1",) * 4
SMALL: dict[str, Any] = {"classes": 7, "planes": 8, "stem": 6}


def built(result: Published, frames: int = 8, size: int = 112) -> VideoNetwork:
    """The found network in float64, for evaluation, with the file's weights."""
    model = build_model(result.settings, result.classes, frames, size).double().eval()
    load_weights(model, result.state, "keep")
    return model


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 1e-3
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


TORCHVISION = {
    "r3d_18": (R3D, {"name": "r3d", "depth": 18, "eps": 1e-5}, 33_371_472),
    "mc3_18": (MC3, {"name": "mc3", "depth": 18, "eps": 1e-5}, 11_695_440),
    "r2plus1d_18": (R2PLUS1D, {"name": "r2plus1d", "depth": 18, "eps": 1e-5, "midplanes": "block"}, 31_505_325),
}


@pytest.mark.slow
@pytest.mark.parametrize(("network", "planes"), [("r3d_18", 16), ("mc3_18", 64), ("r2plus1d_18", 16)])
def test_torchvisions_networks(tmp_path: Path, network: str, planes: int) -> None:
    kinds, settings, _ = TORCHVISION[network]
    state = random_state(video_shapes(kinds, planes=planes, stem=round(45 * planes / 64)))
    torch.save(state, tmp_path / "file.pth")
    result = read_published(tmp_path / "file.pth")
    assert result.settings == ModelSettings(**settings, width=planes / 64) and result.classes == 400
    assert (result.set_aside, result.flat, result.frames) == ([], False, None)
    clips = torch.randn(1, 3, 8, 16, 20, dtype=torch.float64)
    with torch.no_grad():
        assert_same(built(result)(clips), video_network(doubled(state), clips, 1e-5))


@pytest.mark.slow
@pytest.mark.parametrize("depth", [34, 152])
def test_per_convolution_midplanes(tmp_path: Path, depth: int) -> None:
    """ig65m-pytorch's and VMZ's, at an eighth of the width."""
    state = random_state(video_shapes(R2PLUS1D, depth, middle="conv", bottlenecks=depth == 152, **SMALL))
    torch.save(state, tmp_path / "file.pth")
    result = read_published(tmp_path / "file.pth")
    assert result.settings == ModelSettings(name="r2plus1d", depth=depth, width=1 / 8, midplanes="conv", eps=1e-3)
    clips = torch.randn(1, 3, 9, 16, 20, dtype=torch.float64)
    with torch.no_grad():
        assert_same(built(result, 9)(clips), video_network(doubled(state), clips, 1e-3))


def assert_whole(shapes: dict[str, tuple[int, ...]], settings: dict[str, Any], count: int | None) -> None:
    """These names and shapes are those of the network of these settings, and of `count` parameters."""
    result = recognise(shapes, "file")
    assert result.settings == ModelSettings(**settings)
    with torch.device("meta"):
        model = build_model(result.settings, result.classes, 16)
        check_weights(model, {name: torch.empty(shape) for name, shape in shapes.items()}, "keep")
    assert set(model.state_dict()) == set(shapes)
    assert count in (None, parameters(model))


@pytest.mark.parametrize("network", TORCHVISION)
def test_torchvisions_names_and_shapes(network: str) -> None:
    kinds, settings, count = TORCHVISION[network]
    assert_whole(video_shapes(kinds), settings, count)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("depth", "classes", "middle", "count"),
    [
        (34, 400, "conv", 63_697_175),
        (34, 487, "conv", None),
        (34, 359, "conv", None),
        (152, 400, "conv", 118_226_785),
        (34, 400, "block", 61_831_661),
        (152, 400, "block", 137_770_491),
    ],
)
def test_ig65ms_and_vmzs_names_and_shapes(depth: int, classes: int, middle: str, count: int | None) -> None:
    shapes = video_shapes(R2PLUS1D, depth, classes, middle=middle, bottlenecks=depth == 152)
    eps = 1e-5 if middle == "block" else 1e-3
    assert_whole(shapes, {"name": "r2plus1d", "depth": depth, "midplanes": middle, "eps": eps}, count)


@pytest.mark.parametrize(
    "settings",
    [
        *({"name": name, "depth": 18} for name in ("fr2d", "mc2", "mc4", "mc5", "rmc2", "rmc3", "rmc4", "rmc5")),
        *({"name": "r3d", "depth": depth} for depth in (10, 16, 26, 34, 50, 101, 152)),
        *({"name": "r2plus1d", "depth": depth, "width": 0.5} for depth in (10, 16, 18, 26, 50, 101)),
        {"name": "r2plus1d", "depth": 26, "midplanes": "block", "eps": 1e-5},
        {"name": "r2plus1d", "depth": 10, "in_channels": 2, "width": 2.0},
        {"name": "i3d", "width": 0.25, "in_channels": 2},
        *({"name": "r3drelu", "depth": depth, "width": 0.5} for depth in (10, 34, 50)),
        *({"name": "p3d", "depth": depth, "width": 0.5, "in_channels": 2} for depth in (26, 50, 152)),
        *({"name": name, "width": 0.25, "in_channels": 2} for name in ("s3d", "lstm")),
        {"name": "fused3d", "width": 0.25},
        {"name": "c3d", "width": 0.5},
        {"name": "r2d", "depth": 18},
    ],
    ids=lambda settings: "-".join(map(str, settings.values())),
)
def test_every_network_of_the_zoo_is_recognised(settings: dict[str, Any]) -> None:
    wanted = ModelSettings(**settings)
    with torch.device("meta"):
        model = build_model(wanted, 11, 16)
    found = recognise({name: tuple(value.shape) for name, value in model.state_dict().items()}, "file")
    assert (found.settings, found.classes) == (wanted, 11)
    assert found.frames == (16 if wanted.name in ("r2d", "c3d") else None)


@pytest.mark.slow
def test_i3d_in_pytorch_i3ds_layout(tmp_path: Path) -> None:
    for channels, classes, count in ((3, 400, 12_697_264), (2, 400, 12_675_312), (3, 600, 12_902_264)):
        assert_whole(i3d_shapes(classes, channels), {"name": "i3d", "in_channels": channels}, count)
    state = random_state(i3d_shapes(classes=5, part=8))
    old = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}  # PyTorch 0.3
    torch.save(old, tmp_path / "rgb_imagenet.pt", _use_new_zipfile_serialization=False)
    read = read_published(tmp_path / "rgb_imagenet.pt")
    assert read.settings == ModelSettings(name="i3d", width=1 / 8)
    clips = torch.randn(1, 3, 18, 224, 224, dtype=torch.float64)
    with torch.no_grad():
        assert_same(built(read, 18, 224)(clips), i3d_network(doubled(state), clips))


def test_what_trainers_save_around_a_network(tmp_path: Path) -> None:
    state = random_state(video_shapes(R3D, **{**SMALL, "stem": 0}))
    wrapped = {f"module.{name}": value for name, value in state.items()}
    momentum = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1}]}
    for tree, aside in (
        ({"model": wrapped, "optimizer": momentum, "epoch": 3}, ["optimizer", "epoch"]),
        ({"state_dict": {f"module._orig_mod.{name}": value for name, value in state.items()}}, []),
        (wrapped, []),
    ):
        torch.save(tree, tmp_path / "checkpoint.pth.tar")
        result = read_published(tmp_path / "checkpoint.pth.tar")
        assert result.set_aside == aside
        assert result.state.keys() == state.keys()
        assert all(torch.equal(result.state[name], value) for name, value in state.items())
    save_file(state, tmp_path / "plain.safetensors")
    assert read_published(tmp_path / "plain.safetensors").settings == result.settings


def test_tensors_that_share_their_memory_part(tmp_path: Path) -> None:
    state = random_state(video_shapes(R3D, **{**SMALL, "stem": 0}))
    both = torch.zeros(2, 8)
    state |= {"stem.1.bias": both[0], "stem.1.running_mean": both[1]}
    torch.save(state, tmp_path / "file.pth")
    found = read_published(tmp_path / "file.pth").state
    storages = [found[name].untyped_storage() for name in ("stem.1.bias", "stem.1.running_mean")]
    assert storages[0].data_ptr() != storages[1].data_ptr() and storages[0].nbytes() == 32


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"extra.weight": torch.ones(2)}, ["1 unexpected", "extra.weight"]),
        ({"layer3.1.conv2.1.bias": None}, ["1 missing", "layer3.1.conv2.1.bias"]),
        ({"layer3.1.conv2.1.bias": torch.ones(5)}, ["of another shape", "layer3.1.conv2.1.bias (5,) for (32,)"]),
        ({"fc.weight": None}, ["1 missing (fc.weight)"]),
        ({"fc.weight": torch.ones(3)}, ["fc.weight has the shape (3,)", "2 axes"]),
        ({"fc.weight": torch.ones(0, 64)}, ["fc.weight has the shape (0, 64)"]),
        ({"layer4.0.conv1.1.weight": torch.tensor(1.0)}, ["layer4.0.conv1.1.weight () for (64,)"]),
        ({"stem.0.weight": torch.ones(8, 3, 5, 7, 7)}, ["stem.0.weight over 5 frames", "no form"]),
        ({"layer2.0.conv1.0.weight": torch.ones(16, 8, 5, 3, 3)}, ["layer2.0.conv1.0.weight (16, 8, 5, 3, 3) for"]),
        ({"layer4.2.conv1.1.bias": torch.ones(64)}, ["1 unexpected (layer4.2.conv1.1.bias)"]),
        ({"stem.0.weight": None}, ["1 missing (stem.0.weight)"]),
        ({"stem.3.weight": torch.ones(8, 8, 3, 1, 1)}, ["a (2+1)d stem (stem.3", "no form"]),
        ({"fc.bias": 3}, ["no tensors", "fc.bias"]),
    ],
)
def test_files_that_are_not_one_whole_network(tmp_path: Path, change: dict[str, Any], parts: list[str]) -> None:
    state: dict[str, Any] = random_state(video_shapes(R3D, **{**SMALL, "stem": 0})) | change
    torch.save({name: value for name, value in state.items() if value is not None}, tmp_path / "file.pth")
    with pytest.raises(UserError) as refused:
        read_published(tmp_path / "file.pth")
    assert [part for part in parts if part not in refused.value.what] == [], refused.value.what
    assert refused.value.where == str(tmp_path / "file.pth")


def shapes_of(**settings: Any) -> Shapes:
    """The names and shapes of a network of ours, for 7 classes and clips of 16 frames."""
    with torch.device("meta"):
        model = build_model(ModelSettings(**settings), 7, 16)
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


@cache
def meta_network(settings: str, classes: int) -> VideoNetwork:
    with torch.device("meta"):
        return build_model(ModelSettings.model_validate_json(settings), classes, 16)


def complaint(shapes: Shapes) -> str:
    """What is wrong with a file of tensors of these names and shapes; nothing if nothing is."""
    try:
        found = recognise(shapes, "file")
        model = meta_network(found.settings.model_dump_json(), found.classes)
        check_weights(model, {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}, "keep")
    except UserError as error:
        return error.what
    return ""


NETWORKS: dict[str, Callable[[], Shapes]] = {
    "r3d-18": lambda: video_shapes(R3D, **{**SMALL, "stem": 0}),
    "mc3-18": lambda: video_shapes(MC3, **{**SMALL, "stem": 0}),
    "r2plus1d-18": lambda: video_shapes(R2PLUS1D, **SMALL),
    "r2plus1d-34": lambda: video_shapes(R2PLUS1D, 34, middle="conv", **SMALL),
    "r2plus1d-50": lambda: video_shapes(R2PLUS1D, 50, bottlenecks=True, **SMALL),
    "r3d-50": lambda: video_shapes(R3D, 50, bottlenecks=True, **{**SMALL, "stem": 0}),
    "r2plus1d-10": lambda: shapes_of(name="r2plus1d", depth=10, width=0.05),
    "r3d-26": lambda: shapes_of(name="r3d", depth=26, width=0.125),
    "r2d-18": lambda: shapes_of(name="r2d", depth=18, width=0.125),
    "i3d": lambda: i3d_shapes(7, part=8),
    "c3d": lambda: shapes_of(name="c3d", width=0.125),
}


def changes_of(shapes: Shapes) -> Iterator[tuple[str, tuple[int, ...] | None]]:
    """Tensors of the first and last layers and the stages' first blocks, with shapes they have not; None is missing.

    Of a classifier's two tensors none is the one in the wrong if their classes differ.
    """
    for name, shape in shapes.items():
        if not name.startswith(("layer", "Mixed")) or name.startswith("Mixed_5c") or name.split(".")[1] == "0":
            yield name, (5,) * (len(shape) + 1)
            if shape:
                yield from ((name, None), (name, ()))
            if shape and not name.startswith(("fc.", "fc8.", "logits.")):
                yield name, (shape[0] + 1, *shape[1:])


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_a_tensor_that_is_missing_or_misshapen_is_named(network: str) -> None:
    shapes = NETWORKS[network]()
    assert complaint(shapes) == ""
    unnamed = []
    for name, change in changes_of(shapes):
        values = {key: change if key == name else shape for key, shape in shapes.items()}
        values = {key: shape for key, shape in values.items() if shape is not None}
        if name not in complaint(values):
            unnamed.append((name, change, complaint(values)))
    assert unnamed == []


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
def test_one_missing_tensor_is_all_that_is_wrong(network: str) -> None:
    shapes = NETWORKS[network]()
    for name, change in changes_of(shapes):
        if change is None:
            given = {key: shape for key, shape in shapes.items() if key != name}
            assert complaint(given) == f"the weights are not this network's: 1 missing ({name})"


def test_networks_that_are_not_in_the_zoo() -> None:
    whole = video_shapes(R3D, **{**SMALL, "stem": 0})
    shallow = {name: shape for name, shape in whole.items() if not name.startswith("layer3.1")}
    assert "[2, 2, 1, 2] basic blocks" in complaint(shallow)
    mixed = video_shapes(("3d", "2+1", "3d", "2d"), **{**SMALL, "stem": 0})
    assert "stages of 3d, (2+1)d, 3d, 2d make no form" in complaint(mixed)
    wide = {name: (shape[0] * 100, *shape[1:]) if shape else () for name, shape in whole.items()}
    assert "width 12.5" in complaint(wide)
    bare = {name: shape for name, shape in whole.items() if not re.search(r"(stem|conv\d)\.1\.", name)}
    assert "all under layer1.0.conv1.1" in complaint(bare)


@pytest.mark.parametrize("name", ["r3d", "r2plus1d", "i3d", "c3d"])
@pytest.mark.parametrize("width", [1 / 64, 0.02, 1 / 32, 1 / 16, 0.05, 0.1, 0.11, 1 / 3, 0.3, 0.7, 1.37, 2.5, 8.0])
def test_widths_are_found(name: str, width: float) -> None:
    shapes = shapes_of(name=name, width=width)
    found = recognise(shapes, "file").settings.width
    assert shapes_of(name=name, width=found) == shapes
    assert len(str(found)) <= len(str(width)) or found == 2.0 ** round(math.log2(width))
