"""Which weights decay and how fast each part of every network learns, and what freezing parts stops."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pretrain.models.compute.batchnorm import LaneBatchNorm, commit_statistics
from pretrain.models.compute.compute_path import COMPUTE_PATHS
from pretrain.models.groups import freeze, parameter_groups
from pretrain.models.network import VideoNetwork
from pretrain.models.zoo import NAMES, ModelSettings, build_model
from sharding.base.errors import UserError

VMZ = {"stem": 0.0, "stages": 0.01, "head": 1.0}
CLASSIFIER_ONLY = {"stem": 0.0, "stages": 0.0}
DEPTHLESS = ("s3d", "lstm", "fused3d", "i3d", "c3d")
FIRST = {  # a parameter of each part
    "r2plus1d": {"stem": "stem.0", "conv2": "layer1.0.conv1.0.0", "conv5": "layer4.0.downsample.0", "head": "fc"},
    "i3d": {"stem": "Conv3d_1a_7x7.bn", "conv2": "Conv3d_2c_3x3.conv3d", "conv5": "Mixed_5b.b3b.bn", "head": "logits"},
    "p3d": {"stem": "stem.0", "conv2": "layer1.0.temporal.0", "conv5": "layer4.0.spatial.0", "head": "fc"},
    "s3d": {
        "stem": "Conv3d_1a_7x7.1.bn",
        "conv2": "Conv3d_2c_3x3.0.conv3d",
        "conv5": "Mixed_5b.b1b.1",
        "head": "logits",
    },
    "lstm": {"stem": "Conv3d_1a_7x7.bn", "conv2": "Conv3d_2b_1x1", "lstm": "lstm.recurrent", "head": "fc"},
    "fused3d": {"stem": "stem.flow", "conv3": "conv3.rgb.Mixed_3b", "fusion": "fusion.0.bn", "head": "fc"},
    "c3d": {"stem": "conv1.0", "conv2": "conv2.1", "conv5": "conv5.0", "fc6": "fc6", "fc7": "fc7", "head": "fc8"},
}


def network(name: str = "r2plus1d", **settings: object) -> VideoNetwork:
    torch.manual_seed(0)
    resnet = {} if name in DEPTHLESS else {"depth": 26 if name == "p3d" else 10}
    settings = {"name": name, "width": 0.125} | resnet | settings
    return build_model(ModelSettings.model_validate(settings), 5, 16, 32)


def meta_network(name: str, **settings: object) -> VideoNetwork:
    with torch.device("meta"):
        return network(name, **settings)


def names_of(model: nn.Module, parameters: list[nn.Parameter]) -> list[str]:
    names = {id(value): name for name, value in model.named_parameters()}
    return [names[id(value)] for value in parameters]


def clips(channels: int = 3) -> Tensor:
    return torch.randn(2, channels, 16, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rates", [{}, VMZ, CLASSIFIER_ONLY, {"conv3": 0.5, "conv4": 0.0}])
def test_each_parameter_is_in_one_group_or_in_a_part_of_rate_zero(name: str, rates: dict[str, float]) -> None:
    model = meta_network(name)
    grouped = [each for group in parameter_groups(model, 1e-4, rates) for each in names_of(model, group["params"])]
    assert len(set(grouped)) == len(grouped)
    zero = {part for part in model.parts if not rates.get(part, rates.get("stages", 1.0) if part != "stem" else 1.0)}
    left_out = {layer for part in zero for layer in model.parts[part]}
    assert {each for each, _ in model.named_parameters() if each.split(".")[0] not in left_out} == set(grouped)


@pytest.mark.parametrize(
    ("name", "settings"), [(name, {}) for name in NAMES] + [("r2plus1d", {"depth": 152}), ("r3d", {"pool1": True})]
)
def test_the_parts_hold_every_layer_that_has_weights_once(name: str, settings: dict[str, object]) -> None:
    model = meta_network(name, **settings)
    layers = [layer for part in model.parts.values() for layer in part] + [model.head]
    assert len(set(layers)) == len(layers)
    assert {each.split(".")[0] for each, _ in model.named_parameters()} == set(layers)
    assert list(model.parts)[:5] == ["stem", "conv2", "conv3", "conv4", "conv5"]


@pytest.mark.parametrize("name", FIRST)
def test_a_part_learns_at_its_own_rate(name: str) -> None:
    model = meta_network(name)
    rates = {"stem": 2.0, "stages": 0.01, "conv5": 0.1, "head": 10.0}
    groups = parameter_groups(model, 1e-4, rates)
    scales = {each: group["scale"] for group in groups for each in names_of(model, group["params"])}
    for part, layer in FIRST[name].items():
        assert {scale for each, scale in scales.items() if each.startswith(layer)} == {rates.get(part, 0.01)}, part
    assert {scales[each] for each in scales if each.endswith("bias")} == {2.0, 0.01, 0.1, 10.0}
    assert all(
        (group["weight_decay"] > 0) == (not names_of(model, group["params"])[0].endswith("bias")) for group in groups
    )


def test_biases_do_not_decay_and_everything_else_does() -> None:
    model = network()
    decayed, spared = parameter_groups(model, 1e-4, {})
    assert (decayed["weight_decay"], spared["weight_decay"]) == (1e-4, 0.0)
    assert decayed["scale"] == spared["scale"] == 1.0
    assert all(name.endswith(".bias") for name in names_of(model, spared["params"]))
    assert all(name.endswith(".weight") for name in names_of(model, decayed["params"]))
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))
    model.requires_grad_(False)
    model.fc.weight.requires_grad_(True)
    (only,) = parameter_groups(model, 1e-4, {})
    assert names_of(model, only["params"]) == ["fc.weight"]
    (plain,) = parameter_groups(nn.Conv3d(1, 1, 1, bias=False), 0.0, {})
    assert plain["scale"] == 1.0


@pytest.mark.slow
@given(
    st.lists(st.sampled_from(["stem", "conv2", "conv3", "conv4", "conv5", "head", "stages"]), unique=True), st.data()
)
def test_groups_do_not_depend_on_how_rates_are_written(parts: list[str], data: st.DataObject) -> None:
    model = meta_network("r2plus1d")
    rates = {part: data.draw(st.sampled_from([0.001, 0.5, 1.0])) for part in parts}
    spelled = {part: rates.get(part, rates.get("stages", 1.0)) for part in ("conv2", "conv3", "conv4", "conv5")}
    spelled |= {part: rates.get(part, 1.0) for part in ("stem", "head")}
    assert parameter_groups(model, 1e-4, rates) == parameter_groups(model, 1e-4, spelled)


@pytest.mark.parametrize(
    ("rates", "output"),
    [
        ({"conv1": 0.1}, ["conv1", "stem, conv2, conv3, conv4, conv5, head, stages"]),
        ({"fc": 1.0}, ["fc: the network has no such part", "head"]),
        ({"stem": -1.0}, ["stem: -1.0 is no rate", "0, which freezes"]),
        ({"stem": math.nan}, ["stem: nan is no rate"]),
        ({"stem": math.inf}, ["stem: inf is no rate"]),
    ],
)
def test_rates_that_fit_no_part_are_refused(rates: dict[str, float], output: list[str]) -> None:
    for refusing in (
        lambda: parameter_groups(meta_network("r3d"), 0.1, rates),
        lambda: freeze(meta_network("r3d"), rates),
    ):
        with pytest.raises(UserError) as refused:
            refusing()
        assert all(part in str(refused.value) for part in output), refused.value


def test_a_network_of_which_nothing_learns_is_refused() -> None:
    model, rates = meta_network("r3d"), {"stem": 0.0, "stages": 0.0, "head": 0.0}
    for refusing in (lambda: parameter_groups(model, 0.1, rates), lambda: freeze(model, rates)):
        with pytest.raises(UserError, match="no part of the network would learn"):
            refusing()


@pytest.mark.parametrize("name", FIRST)
def test_classifier_only_leaves_all_before_it_as_it_was(name: str) -> None:
    model = network(name)
    before = copy.deepcopy(model.state_dict())
    freeze(model, CLASSIFIER_ONLY)
    model.eval().train()
    assert not any(layer.training for layer in model.modules() if isinstance(layer, LaneBatchNorm))
    features = model.features(clips(model.in_channels))
    assert not features.requires_grad
    optimizer = torch.optim.SGD(parameter_groups(model, 1e-2, CLASSIFIER_ONLY), lr=1.0)
    model(clips(model.in_channels)).square().mean().backward()
    optimizer.step()
    commit_statistics(model)
    changed = {each for each, value in model.state_dict().items() if not torch.equal(value, before[each])}
    assert changed and {each.split(".")[0] for each in changed} == {model.head}


@pytest.mark.parametrize("compute_path", ["plain", "channels-last", "rows"])
@pytest.mark.parametrize("recomputed", [0, 3])
def test_gradients_stop_at_the_first_part_that_learns(compute_path: str, recomputed: int) -> None:
    model = network()
    model.use(replace(COMPUTE_PATHS[compute_path], recomputed=recomputed))
    freeze(model, {"stem": 0, "conv2": 0})
    seen: dict[str, bool] = {}
    for layer in ("stem", "layer1", "layer2"):
        model.get_submodule(layer).register_forward_hook(
            lambda module, given, output, layer=layer: seen.update({layer: output.requires_grad})
        )
    model.train()
    model(clips()).square().mean().backward()
    assert seen == {"stem": False, "layer1": False, "layer2": True}
    learnt = {each.split(".")[0] for each, value in model.named_parameters() if value.grad is not None}
    assert learnt == {"layer2", "layer3", "layer4", "fc"}


def test_a_frozen_part_behind_one_that_learns_passes_gradients_on() -> None:
    model = network()
    freeze(model, {"conv4": 0})
    model.train()
    model(clips()).square().mean().backward()
    learnt = {each.split(".")[0] for each, value in model.named_parameters() if value.grad is not None}
    assert learnt == {"stem", "layer1", "layer2", "layer4", "fc"}
    commit_statistics(model)
    moved = {each.split(".")[0] for each, value in model.named_buffers() if each.endswith("tracked") and value}
    assert moved == {"stem", "layer1", "layer2", "layer4"}


def test_nothing_is_frozen_where_no_rate_is_zero() -> None:
    model = network()
    freeze(model, {"stem": 0.1, "stages": 0.01})
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(layer.training for layer in model.train().modules())
