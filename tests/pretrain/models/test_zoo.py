"""Every network of the papers: its published counts, its lengths of time, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.utils.flop_counter import FlopCounterMode

from pretrain.models.convolutions import FORMS, temporal_strides
from pretrain.models.count import activations, conv_fc_parameters, macs, parameters
from pretrain.models.inception import same_padding
from pretrain.models.network import VideoNetwork
from pretrain.models.zoo import NAMES, ModelSettings, build_model
from sharding.base.errors import UserError

# R(2+1)D paper, table 2 and the counts that reproduce it: (name, all parameters at 8 and 16 frames, conv + fc
# in M as counted, GMACs at 8 and 16 frames), depth 18, 112², 400 classes.
DEPTH18 = [
    ("r2plus1d", (33_370_839, 33_370_839), (33.34, 33.34), (20.75, 41.50)),
    ("r3d", (33_371_472, 33_371_472), (33.36, 33.36), (20.35, 40.70)),
    ("r2d", (11_447_568, 11_522_832), (11.44, 11.51), (1.93, 2.17)),
    ("fr2d", (11_381_712, 11_381_712), (11.37, 11.37), (13.80, 27.60)),
    ("mc2", (11_400_528, 11_400_528), (11.39, 11.39), (14.27, 28.55)),
    ("mc3", (11_695_440, 11_695_440), (11.69, 11.69), (21.67, 43.34)),
    ("mc4", (12_727_632, 12_727_632), (12.72, 12.72), (19.98, 39.95)),
    ("mc5", (16_856_400, 16_856_400), (16.85, 16.85), (19.95, 39.90)),
    ("rmc2", (33_352_656, 33_352_656), (33.34, 33.34), (19.88, 39.75)),
    ("rmc3", (33_057_744, 33_057_744), (33.05, 33.05), (12.48, 24.95)),
    ("rmc4", (32_025_552, 32_025_552), (32.02, 32.02), (14.55, 29.09)),
    ("rmc5", (27_896_784, 27_896_784), (27.89, 27.89), (15.39, 30.79)),
]
# (settings, frames, size, classes, all parameters, conv + fc in M, GMACs); None where nobody publishes one.
DEEP = [
    ({"depth": 34}, 8, 112, 400, 63_697_175, 63.65, 38.09),
    ({"depth": 34}, 8, 128, 400, 63_697_175, 63.65, 49.75),
    ({"depth": 34}, 32, 112, 400, 63_697_175, 63.65, 152.36),
    ({"depth": 34}, 32, 128, 400, 63_697_175, 63.65, 199.00),
    ({"depth": 152}, 32, 112, 400, 118_226_785, 118.02, 252.00),
    ({"depth": 152}, 32, 128, 400, 118_226_785, 118.02, 329.14),
    ({"name": "r3d", "depth": 34}, 8, 112, 400, 63_681_104, None, None),
    ({"depth": 18, "midplanes": "block"}, 16, 112, 400, 31_505_325, None, 40.52),
    ({"depth": 34, "midplanes": "block"}, 8, 112, 400, 61_831_661, None, None),
    ({"depth": 152, "midplanes": "block"}, 8, 112, 400, 137_770_491, None, None),
    ({"name": "i3d"}, 64, 224, 400, 12_697_264, None, 111.15),
    ({"name": "i3d", "in_channels": 2}, 64, 224, 400, 12_675_312, None, 102.34),
    ({"name": "i3d"}, 64, 224, 600, 12_902_264, None, None),
    ({"name": "c3d"}, 16, 112, 400, 64_960_016, 64.94, 38.53),
]


def meta_network(frames: int, size: int = 112, classes: int = 400, **settings: object) -> VideoNetwork:
    with torch.device("meta"):
        return build_model(ModelSettings.model_validate(settings), classes, frames, size)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "everything", "conv_fc", "giga"), DEPTH18, ids=[row[0] for row in DEPTH18])
def test_every_form_has_its_published_counts(
    name: str, everything: tuple[int, int], conv_fc: tuple[float, float], giga: tuple[float, float]
) -> None:
    for index, frames in enumerate((8, 16)):
        model = meta_network(frames, name=name, depth=18)
        assert parameters(model) == everything[index]
        assert round(conv_fc_parameters(model) / 1e6, 2) == conv_fc[index]
        assert round(macs(model, frames, 112, 112) / 1e9, 2) == giga[index]


@pytest.mark.slow
@pytest.mark.parametrize(("settings", "frames", "size", "classes", "everything", "conv_fc", "giga"), DEEP)
def test_deep_networks_and_baselines_have_their_published_counts(
    settings: dict[str, object],
    frames: int,
    size: int,
    classes: int,
    everything: int,
    conv_fc: float | None,
    giga: float | None,
) -> None:
    model = meta_network(frames, size, classes, **settings)
    assert parameters(model) == everything
    assert conv_fc in (None, round(conv_fc_parameters(model) / 1e6, 2))
    assert giga in (None, round(macs(model, frames, size, size) / 1e9, 2))


def test_i3ds_backbone_without_its_classifier() -> None:
    model = meta_network(64, 224, name="i3d")
    assert parameters(model) - parameters(model.get_submodule("logits")) == 12_287_264


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_macs_are_half_of_torchs_flops_for_every_network(name: str) -> None:
    settings = {"name": name} | ({"depth": 10, "pool1": True} if name in FORMS else {})
    settings |= {} if name == "fused3d" else {"in_channels": 2}
    model = meta_network(17, 70, 11, **settings).eval()
    clip = torch.empty(1, model.in_channels, 17, 70, 70, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        logits = model(clip)
    assert logits.shape == (1, 11)
    assert 2 * macs(model, 17, 70, 70) == counter.get_total_flops()


def test_activations_are_the_outputs_of_convolutions_and_classifier() -> None:
    model = meta_network(8, name="r3d", depth=10, classes=7)
    stages = [64 * 8 * 56**2, 128 * 4 * 28**2, 256 * 2 * 14**2, 512 * 1 * 7**2]
    # The stem and two convolutions a stage; from conv3 on a shortcut as large as the stage's output.
    assert activations(model, 8, 112, 112) == 3 * stages[0] + 3 * sum(stages[1:]) + 7


def length_of(form: str, frames: int) -> int:
    length = 1 if form == "r2d" else frames
    for stride in temporal_strides(FORMS[form], frames):
        length = math.ceil(length / stride)
    return length


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("frames", [1, 2, 3, 5, 8, 12, 20])
def test_any_number_of_frames_runs_in_every_form(name: str, frames: int) -> None:
    model = meta_network(frames, name=name, depth=10, classes=7).eval()
    pooled: list[torch.Size] = []
    model.get_submodule("layer4").register_forward_hook(lambda *call: pooled.append(call[2].shape))
    assert model(torch.empty(2, 3, frames, 112, 112, device="meta")).shape == (2, 7)
    assert pooled[0] == (2, 512, length_of(name, frames), 7, 7)


@pytest.mark.parametrize(
    ("name", "divisor"),
    [(name, 8) for name in ("r3d", "r2plus1d", "rmc2", "rmc3")]
    + [(name, 1) for name in ("fr2d", "mc2", "mc3")]
    + [("mc4", 2), ("mc5", 4), ("rmc4", 4), ("rmc5", 2)],
)
def test_the_time_before_the_classifier_is_the_papers(name: str, divisor: int) -> None:
    assert {length_of(name, frames) * divisor / frames for frames in (8, 16, 32)} == {1}
    assert [length_of("r3d", frames) for frames in (12, 20)] == [2, 3]


def test_pool1_halves_the_picture_once_more() -> None:
    shapes = []
    for pool1 in (False, True):
        model = meta_network(8, depth=10, pool1=pool1)
        model.get_submodule("layer1").register_forward_hook(lambda *call: shapes.append(call[2].shape))
        model.eval()(torch.empty(1, 3, 8, 112, 112, device="meta"))
    assert shapes == [(1, 64, 8, 56, 56), (1, 64, 8, 28, 28)]


def test_a_block_s_mid_planes_are_torchvisions() -> None:
    model = meta_network(16, depth=18, midplanes="block")
    mids = [model.get_submodule(f"layer2.0.conv{n}.0.0").get_parameter("weight").shape[0] for n in (1, 2)]
    assert mids == [230, 230]
    assert model.get_submodule("layer2.1.conv1.0.0").get_parameter("weight").shape[0] == 288


def test_weights_of_whole_convolutions_have_torchvisions_names() -> None:
    keys = set(meta_network(8, name="mc3", depth=18).state_dict())
    assert {"stem.0.weight", "stem.1.running_var", "layer1.0.conv1.0.weight", "layer1.0.conv1.1.bias"} <= keys
    assert {"layer2.0.downsample.0.weight", "layer2.0.downsample.1.weight", "fc.bias"} <= keys
    assert not any(".0.0." in key.removeprefix("layer") and "conv" in key.split(".0.0.")[0] for key in keys)


def test_eps_reaches_every_normalisation() -> None:
    for name in ("r3d", "p3d", "s3d", "lstm", "fused3d", "i3d", "c3d"):
        norms = [module for module in meta_network(16, name=name, eps=1e-5).modules() if hasattr(module, "eps")]
        assert norms and {norm.eps for norm in norms} == {1e-5}


def test_an_r2d_is_fed_the_length_it_was_built_for() -> None:
    model = build_model(ModelSettings(name="r2d", depth=10, width=0.125), 3, 4).eval()
    assert model(torch.zeros(1, 3, 4, 16, 16)).shape == (1, 3)
    with pytest.raises(UserError, match="built for clips of 4 frames and was fed 5"):
        model(torch.zeros(1, 3, 5, 16, 16))


def test_a_c3d_is_fed_the_clips_it_was_built_for() -> None:
    model = build_model(ModelSettings(name="c3d", width=0.0625), 3, 16, 40).eval()
    assert model(torch.zeros(1, 3, 16, 40, 40)).shape == (1, 3)
    for frames, size in ((8, 40), (16, 64)):
        with pytest.raises(UserError, match="built for 16 frames of 40² pixels"):
            model(torch.zeros(1, 3, frames, size, size))
    for frames, size in ((15, 112), (16, 31)):
        with pytest.raises(UserError, match="at least 16 frames and 32 pixels"):
            build_model(ModelSettings(name="c3d"), 3, frames, size)


@given(length=st.integers(1, 300), kernel=st.integers(1, 9), stride=st.integers(1, 5))
def test_same_padding_is_tensorflows(length: int, kernel: int, stride: int) -> None:
    before, after = same_padding(length, kernel, stride)
    assert 0 <= after - before <= 1
    padded = length + before + after
    if padded >= kernel:
        assert (padded - kernel) // stride + 1 == math.ceil(length / stride)
    # As few zeros as will do: one less, and an output is lost.
    assert before + after == 0 or (padded - 1 - kernel) // stride + 1 < math.ceil(length / stride)


def test_i3ds_classifier_is_drawn_as_the_others() -> None:
    model = build_model(ModelSettings(name="i3d"), 400, 16)
    assert model.logits.conv3d.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert not model.logits.conv3d.bias.any()


@pytest.mark.slow
def test_the_narrowest_of_every_network_runs() -> None:
    for name in NAMES:
        model = meta_network(16, 64, 3, name=name, width=1 / 64, **({"depth": 10} if name in FORMS else {})).eval()
        assert model(torch.empty(1, model.in_channels, 16, 64, 64, device="meta")).shape == (1, 3)


def test_i3ds_first_convolution_pads_the_far_side_more() -> None:
    model = build_model(ModelSettings(name="i3d", width=0.125), 3, 8, 32).eval()
    unit = model.get_submodule("Conv3d_1a_7x7")
    clip = torch.randn(1, 3, 8, 32, 32)
    by_hand = torch.nn.functional.pad(clip, [2, 3, 2, 3, 2, 3])
    weight = unit.get_submodule("conv3d").get_parameter("weight")
    expected = torch.nn.functional.conv3d(by_hand, weight, stride=2) / math.sqrt(1 + 1e-3)
    torch.testing.assert_close(unit(clip), expected.relu(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "r5d"}, "'fused3d', 'i3d' or 'c3d'"),
        ({"depth": 20}, "10, 16, 18, 26, 34, 50, 101 or 152"),
        ({"name": "i3d", "depth": 18}, "i3d has no depth"),
        ({"name": "c3d", "pool1": True, "depth": 10}, "c3d has no depth and no pool1"),
        ({"name": "r3d", "midplanes": "block"}, "midplanes=block is for r2plus1d"),
        ({"midplanes": "stage"}, "'conv' or 'block'"),
        ({"width": 0}, "greater than or equal to 0.015625"),
        ({"eps": 0}, "greater than 0"),
    ],
)
def test_what_is_no_network_is_refused_with_what_is(settings: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError) as refused:
        ModelSettings.model_validate(settings)
    assert said in str(refused.value)
