"""R(2+1)D: its mid-planes, key layout and shapes, and the way weights enter it."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from pretrain.models.convolutions import FORMS, midplanes, temporal_strides
from pretrain.models.count import last_map
from pretrain.models.network import VideoNetwork
from pretrain.models.resnet import DEPTHS
from pretrain.models.weights import load_weights
from pretrain.models.zoo import ModelSettings, build_model
from sharding.base.errors import UserError


def meta_network(frames: int = 16, classes: int = 400, **settings: object) -> VideoNetwork:
    with torch.device("meta"):
        return build_model(ModelSettings(**settings), classes, frames)


def tiny(classes: int = 5, frames: int = 4, **settings: object) -> VideoNetwork:
    return build_model(ModelSettings(**({"depth": 10, "width": 0.125} | settings)), classes, frames)


@pytest.mark.parametrize("name", ["r2plus1d", "mc3", "r2d", "i3d"])
def test_a_larger_crop_is_classified_at_each_place_of_the_trained_window(name: str) -> None:
    """As an average pool of the window at stride 1 and the classifier as a convolution; R(2+1)D's 2 × 2 at 128."""
    torch.manual_seed(0)
    network = tiny(name=name, **({"depth": None, "width": 0.0625} if name == "i3d" else {})).eval()
    trained, larger = (224, 256) if name == "i3d" else (112, 128)
    window = last_map(network, 4, trained)
    assert window == (7, 7) and last_map(network, 4, larger) == (8, 8)
    clips = torch.randn(2, 3, 4, larger, larger)
    with torch.no_grad():
        logits = network.logits_at_places(clips, window)
        maps = network.through_stages(clips)
        kernel = (min(2, maps.shape[2]) if name == "i3d" else maps.shape[2], 7, 7)
        pooled = F.avg_pool3d(maps, kernel, stride=1)
        head = network.get_submodule("logits.conv3d" if name == "i3d" else "fc")
        expected = F.conv3d(pooled, head.weight.view(5, -1, 1, 1, 1), head.bias).mean(2)
        assert logits.shape == (2, 4, 5)
        assert torch.allclose(logits, expected.flatten(2).transpose(1, 2), atol=1e-5)
        # At the trained size there is one place, and it is the network itself.
        clips = clips[..., :trained, :trained]
        assert torch.allclose(network.logits_at_places(clips, window)[:, 0], network(clips), atol=1e-5)


def test_which_networks_take_larger_crops() -> None:
    assert meta_network(depth=18).is_fully_convolutional and meta_network(name="i3d").is_fully_convolutional
    assert not meta_network(name="c3d").is_fully_convolutional


def test_midplanes_are_the_papers() -> None:
    pairs = [(64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
    assert [midplanes(*pair) for pair in pairs] == [144, 230, 288, 460, 576, 921, 1152]
    model = meta_network(depth=18)
    assert [model.get_submodule(f"layer{stage}.0.conv1.0.0").out_channels for stage in (2, 3, 4)] == [
        230,
        460,
        921,
    ]


@pytest.mark.parametrize("depth", [26, 50, 101, 152])
def test_bottlenecks_have_the_same_mids_at_every_depth(depth: int) -> None:
    model = meta_network(depth=depth)
    mids = [model.get_submodule(f"layer{stage}.0.conv2.0.0").out_channels for stage in (1, 2, 3, 4)]
    assert mids == [144, 288, 576, 1152]
    assert model.fc.in_features == (512 if depth == 26 else 2048)


@given(st.integers(1, 200))
def test_time_is_divided_by_eight_or_left_alone(frames: int) -> None:
    strides = temporal_strides(FORMS["r2plus1d"], frames)
    assert strides == (1, 2, 2 if frames >= 4 else 1, 2 if frames >= 8 else 1)
    length = frames
    for stride in strides:
        length = math.ceil(length / stride)
    assert length >= 1
    if frames >= 8:
        assert length == math.ceil(frames / 8)


@pytest.mark.parametrize("frames", range(1, 17))
def test_any_clip_length_is_classified(frames: int) -> None:
    model = meta_network(frames=frames, depth=10, classes=7)
    pooled: list[torch.Size] = []
    model.layer4.register_forward_hook(lambda *call: pooled.append(call[2].shape))
    clips = torch.empty(2, 3, frames, 112, 112, device="meta")
    assert model.eval()(clips).shape == (2, 7)
    expected = {1: 1, 2: 1, 3: 2, 4: 1, 5: 2, 6: 2, 7: 2}.get(frames, math.ceil(frames / 8))
    assert pooled[0] == (2, 512, expected, 7, 7)


@pytest.mark.parametrize("depth", list(DEPTHS))
def test_every_depth_trains_a_step(depth: int) -> None:
    model = tiny(depth=depth, width=0.0625, in_channels=2, dropout=0.5)
    loss = model(torch.randn(2, 2, 2, 16, 16)).square().mean()
    loss.backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in model.parameters())


def test_key_layout_of_basic_blocks_is_torchvisions() -> None:
    keys = set(meta_network(depth=18).state_dict())
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    assert {key for key in keys if key.startswith("stem.")} == (
        {"stem.0.weight", "stem.3.weight"} | {f"stem.{n}.{leaf}" for n in (1, 4) for leaf in norm}
    )
    block = {f"conv{n}.0.{m}.weight" for n in (1, 2) for m in (0, 3)}
    block |= {f"conv{n}.{m}.{leaf}" for n in (1, 2) for m in ("0.1", "1") for leaf in norm}
    shortcut = {"downsample.0.weight"} | {f"downsample.1.{leaf}" for leaf in norm}
    assert {key for key in keys if key.startswith("layer1.0.")} == {f"layer1.0.{leaf}" for leaf in block}
    assert {key for key in keys if key.startswith("layer2.0.")} == {f"layer2.0.{leaf}" for leaf in block | shortcut}
    assert {key for key in keys if key.startswith("fc")} == {"fc.weight", "fc.bias"}


def test_key_layout_of_bottlenecks() -> None:
    shapes = {name: tuple(value.shape) for name, value in meta_network(depth=152).state_dict().items()}
    first = {name: shape for name, shape in shapes.items() if name.startswith("layer1.0.") and len(shape) == 5}
    assert first == {
        "layer1.0.conv1.0.weight": (64, 64, 1, 1, 1),
        "layer1.0.conv2.0.0.weight": (144, 64, 1, 3, 3),
        "layer1.0.conv2.0.3.weight": (64, 144, 3, 1, 1),
        "layer1.0.conv3.0.weight": (256, 64, 1, 1, 1),
        "layer1.0.downsample.0.weight": (256, 64, 1, 1, 1),
    }
    assert {"layer3.35.conv1.1.weight", "layer3.35.conv2.0.1.weight", "layer3.35.conv2.1.weight"} <= set(shapes)
    assert "layer3.35.conv3.1.running_var" in shapes
    assert "layer3.36.conv1.0.weight" not in shapes


def test_width_scales_stem_and_stages() -> None:
    model = meta_network(depth=18, width=0.5)
    assert (model.stem[0].out_channels, model.stem[3].out_channels) == (22, 32)
    assert model.fc.in_features == 256


def test_initialisation_and_batch_norm_constants() -> None:
    torch.manual_seed(0)
    model = tiny(width=0.5, classes=50)
    temporal = model.layer3[0].conv2[0][3]  # 128 planes, 3×1×1
    assert temporal.weight.std().item() == pytest.approx(math.sqrt(2 / (128 * 3)), rel=0.02)
    assert model.fc.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not model.fc.bias.any()
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm3d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-3, 0.1)}
    assert {name.split(".")[-1] for name, _ in model.named_parameters()} == {"weight", "bias"}
    assert all(module.bias is None for module in model.modules() if isinstance(module, torch.nn.Conv3d))


def test_impossible_settings_are_refused() -> None:
    for wrong in (
        {"depth": 20},
        {"name": "r5d"},
        {"width": 0},
        {"dropout": 1.0},
        {"in_channels": 0},
        {"deep": 1},
    ):
        with pytest.raises(ValidationError):
            ModelSettings(**wrong)
    with pytest.raises(ValueError, match="at least 1 class"):
        build_model(ModelSettings(), classes=0, frames=8)


def test_all_weights_are_kept() -> None:
    source, target = tiny(frames=8), tiny(frames=2)
    load_weights(target, source.state_dict(), head="keep")
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value), name


def test_head_is_swapped_and_the_rest_is_loaded() -> None:
    source, target = tiny(classes=5), tiny(classes=9)
    fresh = target.fc.weight.clone()
    state = {name: value for name, value in source.state_dict().items() if "num_batches_tracked" not in name}
    load_weights(target, state, head="swap")
    assert torch.equal(target.fc.weight, fresh)
    assert torch.equal(target.layer4[0].conv2[0][0].weight, source.layer4[0].conv2[0][0].weight)


def test_other_weights_are_refused_by_name_and_change_nothing() -> None:
    model = tiny(classes=5)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = tiny(classes=9).state_dict()
    state["extra.weight"] = state.pop("stem.0.weight")
    with pytest.raises(UserError) as refused:
        load_weights(model, state, head="keep", source="run/model.safetensors")
    for part in (
        "1 missing (stem.0.weight)",
        "1 unexpected (extra.weight)",
        "fc.weight (9, 64) for (5, 64)",
        "run/model.safetensors",
        "swap the head",
    ):
        assert part in str(refused.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
