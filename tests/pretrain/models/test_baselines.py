"""The baselines: their published counts, what each sees of a clip, and the control for R(2+1)D's nonlinearities."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pretrain.models.compute.batchnorm import LaneBatchNorm
from pretrain.models.convolutions import inner_planes, midplanes
from pretrain.models.count import conv_fc_parameters, macs, parameters
from pretrain.models.frame_networks import NormalisedLSTM
from pretrain.models.network import VideoNetwork
from pretrain.models.p3d import Design, P3DBlock
from pretrain.models.zoo import ModelSettings, build_model
from sharding.base.errors import UserError


def network(frames: int = 16, size: int = 32, classes: int = 400, **settings: object) -> VideoNetwork:
    torch.manual_seed(0)
    return build_model(ModelSettings.model_validate(settings), classes, frames, size)


def meta_network(frames: int = 16, size: int = 112, classes: int = 400, **settings: object) -> VideoNetwork:
    with torch.device("meta"):
        return network(frames, size, classes, **settings)


def weights(model: nn.Module, kind: type[nn.Module]) -> int:
    return sum(value.numel() for layer in model.modules() if isinstance(layer, kind) for value in layer.parameters())


@pytest.mark.slow
def test_p3d_has_the_parameters_of_the_network_that_its_authors_published() -> None:
    """Summed over the layers of pseudo-3d-residual-networks' deploy_p3d_resnet_kinetics.prototxt, and _sports1m."""
    model = meta_network(size=160, name="p3d")
    assert weights(model, nn.Conv3d) == 65_500_352
    assert weights(model, LaneBatchNorm) == 172_288
    assert weights(model, nn.Linear) == 819_600
    assert parameters(meta_network(size=160, classes=487, name="p3d")) == 65_500_352 + 172_288 + 997_863


@pytest.mark.parametrize(("depth", "layers"), [(50, 63), (101, 131), (152, 199)])
def test_p3d_has_as_many_layers_as_its_name_says(depth: int, layers: int) -> None:
    model = meta_network(name="p3d", depth=depth)
    convolutions = [name for name, layer in model.named_modules() if isinstance(layer, nn.Conv3d)]
    assert sum("downsample" not in name for name in convolutions) + 1 == layers
    designs = [block.design for block in model.modules() if isinstance(block, P3DBlock)]
    assert designs[:-3] == [("A", "B", "C")[number % 3] for number in range(len(designs) - 3)]
    assert designs[-3:] == [None] * 3


def test_p3d_halves_time_four_times_and_is_left_with_pictures() -> None:
    model = meta_network(name="p3d", depth=50).eval()
    shapes: list[torch.Size] = []
    for layer in ("layer1", "layer2", "layer3", "layer4"):
        model.get_submodule(layer).register_forward_hook(lambda *call: shapes.append(call[2].shape))
    for frames in (16, 17, 1):
        model(torch.empty(1, 3, frames, 160, 160, device="meta"))
    sides = [(256, 40), (512, 20), (1024, 10), (2048, 5)]
    times = [(8, 4, 2, 1), (9, 5, 3, 2), (1, 1, 1, 1)]
    expected = [(1, planes, time, side, side) for row in times for time, (planes, side) in zip(row, sides, strict=True)]
    assert shapes == expected


@pytest.mark.parametrize("design", ["A", "B", "C", None])
def test_p3ds_designs_are_the_papers(design: Design | None) -> None:
    torch.manual_seed(2)
    block, x = P3DBlock(design, 16, 4, (1, 1), 4).eval(), torch.randn(2, 16, 4, 6, 6)
    scale = (1 + 1e-3) ** -0.5  # of a normalisation that has seen nothing
    middle = block.conv1(x)
    spatial = block.spatial(middle)
    expected = spatial
    if design == "A":
        expected = (block.temporal[0](spatial) * scale).relu()
    elif design == "B":
        expected = (spatial + block.temporal[0](middle) * scale).relu()
    elif design == "C":
        expected = (0.5 * spatial + 0.5 * block.temporal[0](spatial) * scale).relu()
    torch.testing.assert_close(block(x), (block.conv3[0](expected) * scale + x).relu())


@pytest.mark.slow
def test_s3d_has_torchvisions_counts() -> None:
    """num_params and _ops of torchvision's S3D_Weights.KINETICS400_V1."""
    model = meta_network(16, 224, name="s3d")
    assert parameters(model) == 8_320_048
    assert round(macs(model, 16, 224, 224) / 1e9, 3) == 17.979


def test_every_convolution_of_s3d_is_of_pictures_or_of_time() -> None:
    kernels = {layer.kernel_size for layer in meta_network(name="s3d").modules() if isinstance(layer, nn.Conv3d)}
    assert kernels == {(1, 7, 7), (7, 1, 1), (1, 3, 3), (3, 1, 1), (1, 1, 1)}


@pytest.mark.slow
def test_the_parameters_of_table_1_of_i3ds_paper() -> None:
    """ConvNet+LSTM 9 M; two streams, each with a classifier of 1024 × 400, 12 M; 3D-Fused 39 M, and ours has 39.8."""
    lstm, fused = meta_network(25, 224, name="lstm"), meta_network(50, 224, name="fused3d")
    assert parameters(lstm) == 8_956_976 and round(parameters(lstm) / 1e6) == 9
    fusion, classifier = parameters(fused.get_submodule("fusion")), parameters(fused.get_submodule("fc"))
    streams = parameters(fused) - fusion - classifier + 2 * (1024 * 400 + 400)
    assert round(streams / 1e6) == 12
    assert parameters(fused) == 39_770_896 and weights(fused, nn.Conv3d) == 39_535_552
    assert fused.get_submodule("fusion.0.conv3d").get_parameter("weight").shape == (512, 2048, 3, 3, 3)


def test_an_lstm_is_torchs_but_for_its_normalisation() -> None:
    layer = NormalisedLSTM(6, 5).double().eval()
    nn.init.normal_(layer.recurrent.bias)
    peer = nn.LSTM(6, 5, batch_first=True).double()
    scale = 1 / (1 + 1e-3) ** 0.5
    order = torch.cat(
        [torch.arange(5) + 5 * gate for gate in (0, 1, 3, 2)]
    )  # torch's: input, forget, candidate, output
    with torch.no_grad():
        peer.weight_ih_l0.copy_(layer.input.weight.flatten(1)[order] * scale)
        peer.weight_hh_l0.copy_(layer.recurrent.weight[order])
        peer.bias_ih_l0.zero_()
        peer.bias_hh_l0.copy_(layer.recurrent.bias[order])
    x = torch.randn(3, 6, 7, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(layer(x).flatten(2).transpose(1, 2), peer(x.mean((3, 4)).transpose(1, 2))[0])


def test_an_lstm_is_counted_as_it_is_computed() -> None:
    model = network(9, width=0.0625, classes=3, name="lstm").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, 3, 9, 32, 32))
    assert 2 * macs(model, 9, 32, 32) == counter.get_total_flops()


def test_an_lstm_remembers_where_the_order_of_frames_is_all_that_differs() -> None:
    model = network(8, width=0.125, classes=3, name="lstm").eval()
    clip = torch.randn(1, 3, 8, 32, 32, generator=torch.Generator().manual_seed(3))
    assert not torch.allclose(model(clip), model(clip.flip(2)), rtol=1e-3, atol=1e-5)
    pictures = model.Mixed_5c  # what comes before sees frames one by one
    seen: list[Tensor] = []
    pictures.register_forward_hook(lambda *call: seen.append(call[2]))
    model(clip), model(clip.flip(2))
    torch.testing.assert_close(seen[0].flip(2), seen[1])


def test_what_each_stream_sees() -> None:
    model = network(20, width=0.03125, classes=3, name="fused3d").eval()
    clip = torch.randn(1, 5, 25, 32, 32, generator=torch.Generator().manual_seed(4))
    expected = model(clip)
    unseen = clip.clone()
    unseen[:, :3, [frame for frame in range(25) if frame not in (0, 10)]] = 9.0
    unseen[:, :, 20:] = 9.0
    assert torch.equal(model(unseen), expected)
    for channel, frame in ((0, 0), (2, 10), (3, 0), (4, 19)):
        changed = clip.clone()
        changed[:, channel, frame] += 1.0
        assert not torch.equal(model(changed), expected), (channel, frame)


def test_clips_that_are_too_short_for_a_snippet_of_flow() -> None:
    with pytest.raises(UserError, match="ten frames of flow to a picture, and a clip has 9"):
        meta_network(9, name="fused3d")
    with pytest.raises(UserError, match="a clip has 8"):
        meta_network(10, name="fused3d")(torch.empty(1, 5, 8, 32, 32, device="meta"))


@pytest.mark.parametrize("name", ["p3d", "s3d", "lstm", "r3drelu"])
@pytest.mark.parametrize(("frames", "size"), [(1, 8), (3, 9), (5, 33)])
def test_any_number_of_frames_and_any_size_runs(name: str, frames: int, size: int) -> None:
    model = meta_network(frames, size, 3, name=name, width=0.125, **({"depth": 26} if name == "p3d" else {})).eval()
    assert model(torch.empty(2, 3, frames, size, size, device="meta")).shape == (2, 3)


@pytest.mark.parametrize("depth", [10, 18, 34, 26, 50])
def test_the_control_has_as_many_nonlinearities_as_r2plus1d_and_its_parameters(depth: int) -> None:
    def relus(model: VideoNetwork) -> int:
        return sum(layer.relu for layer in model.modules() if isinstance(layer, LaneBatchNorm))

    def layers(model: VideoNetwork, kind: type[nn.Module]) -> int:
        return sum(isinstance(layer, kind) for layer in model.modules())

    control, peer, whole = (meta_network(name=name, depth=depth) for name in ("r3drelu", "r2plus1d", "r3d"))
    assert relus(control) == relus(peer) > relus(whole)
    assert depth in (26, 50) or relus(peer) == 2 * relus(whole)
    assert layers(control, nn.Conv3d) == layers(peer, nn.Conv3d)
    assert layers(control, LaneBatchNorm) == layers(peer, LaneBatchNorm)
    assert conv_fc_parameters(control) == pytest.approx(conv_fc_parameters(whole), rel=0.003)
    assert conv_fc_parameters(control) <= conv_fc_parameters(whole)
    assert macs(control, 16, 112, 112) == pytest.approx(macs(whole, 16, 112, 112), rel=0.02)


def test_the_planes_within_keep_the_parameters() -> None:
    assert [inner_planes(64, 64), inner_planes(64, 128), inner_planes(512, 512)] == [61, 119, 493]
    for inputs, outputs in ((64, 64), (64, 128), (128, 256), (512, 512)):
        inner, both = inner_planes(inputs, outputs), 27 * inputs * outputs
        assert 27 * inputs * inner + inner * outputs <= both < 27 * inputs * (inner + 1) + (inner + 1) * outputs
        assert inner != midplanes(inputs, outputs)


def test_settings_that_a_baseline_has_not() -> None:
    assert ModelSettings(name="p3d").depth == 152 and ModelSettings(name="fused3d").in_channels == 5
    for settings, what in (
        ({"name": "p3d", "depth": 18}, "p3d is made of bottlenecks.*26, 50, 101, 152"),
        ({"name": "p3d", "pool1": True}, "p3d has no pool1"),
        ({"name": "s3d", "depth": 50}, "s3d has no depth"),
        ({"name": "fused3d", "in_channels": 3}, "fused3d takes 5 channels"),
        ({"name": "r3drelu", "midplanes": "block"}, "midplanes=block is for r2plus1d"),
    ):
        with pytest.raises(ValueError, match=what):
            ModelSettings.model_validate(settings)
