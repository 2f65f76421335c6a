"""Inflation: a clip of one repeated frame gives the 2D network's activations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pretrain.conversion.identify import recognise
from pretrain.conversion.inflation import INFLATABLE, inflate, inflated, is_flat
from pretrain.conversion.published import read_published
from pretrain.models.network import VideoNetwork
from pretrain.models.weights import check_weights, load_weights
from pretrain.models.zoo import ModelSettings, build_model
from sharding.base.errors import UserError
from tests.support.training.published_files import doubled, i3d_shapes, image_shapes, random_state
from tests.support.training.published_networks import image_network, inception

LONG = 128  # frames: more than any of these networks sees of time at once


@pytest.fixture()
def images() -> Tensor:
    return torch.randn(2, 3, 40, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def repeated(images: Tensor, frames: int) -> Tensor:
    """N 3 H W → N 3 frames H W."""
    return images.unsqueeze(2).expand(-1, -1, frames, -1, -1)


def activations(model: VideoNetwork, layer: str, clips: Tensor) -> tuple[Tensor, Tensor]:
    """What a layer gives, N D T H W, and the logits."""
    seen: list[Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda _, __, output: seen.append(output))
    with torch.no_grad():
        logits = model(clips)
    handle.remove()
    return seen[0], logits


@pytest.mark.parametrize("frames", [1, 2, 3, 7])
def test_a_kernel_of_one_repeated_frame(frames: int) -> None:
    weight, image = torch.randn(4, 3, 5, 5, dtype=torch.float64), torch.randn(1, 3, 9, 9, dtype=torch.float64)
    kernel = inflate(weight, frames)
    assert kernel.shape == (4, 3, frames, 5, 5)
    out = torch.nn.functional.conv3d(repeated(image, frames + 2), kernel)
    expected = torch.nn.functional.conv2d(image, weight)
    torch.testing.assert_close(out, repeated(expected, 3), rtol=1e-12, atol=1e-12)


def test_what_is_no_2d_kernel() -> None:
    for weight, frames in ((torch.ones(2, 3), 3), (torch.ones(1, 1, 3, 3, 3), 3), (torch.ones(1, 1, 3, 3), 0)):
        with pytest.raises(ValueError):
            inflate(weight, frames)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "depth"), [("fr2d", 18), ("fr2d", 50), ("r2d", 34)])
def test_networks_without_zeros_in_time_give_the_2d_networks_logits(
    tmp_path: Path, images: Tensor, name: str, depth: int
) -> None:
    state = random_state(image_shapes(depth, classes=9, planes=8))
    torch.save(state, tmp_path / "resnet.pth")
    result = read_published(tmp_path / "resnet.pth", name, frames=5)
    assert result.settings == ModelSettings(name=name, depth=depth, width=1 / 8, pool1=True, eps=1e-5)
    assert result.flat and result.classes == 9 and result.frames == 5
    model = build_model(result.settings, 9, 5).double().eval()
    load_weights(model, result.state, "keep")
    _, expected = image_network(doubled(state), images)
    assert expected.std() > 1e-3
    with torch.no_grad():
        # An inflated kernel is stored in float32, and dividing by 5 rounds.
        close = 1e-9 if name == "fr2d" else 1e-5
        torch.testing.assert_close(model(repeated(images, 5)), expected, rtol=close, atol=close)


@pytest.mark.parametrize(("name", "depth"), [("r3d", 18), ("r3d", 50), ("mc3", 18), ("mc5", 18), ("rmc4", 34)])
def test_networks_over_time_give_the_2d_activations_in_the_middle(images: Tensor, name: str, depth: int) -> None:
    state = doubled(random_state(image_shapes(depth, classes=9, planes=8)))
    model = build_model(ModelSettings(name=name, depth=depth, width=1 / 8, pool1=True, eps=1e-5), 9, LONG)
    load_weights(model.double().eval(), inflated(state, model), "keep")
    expected, _ = image_network(state, images)
    result, _ = activations(model, "layer4", repeated(images, LONG))
    middle = result[:, :, result.shape[2] // 2]
    assert expected.std() > 1e-2
    torch.testing.assert_close(middle, expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(result[:, :, 0], expected, rtol=1e-3, atol=1e-3)  # zeros before the first frame


@pytest.mark.slow
def test_i3d_from_a_2d_inception(tmp_path: Path) -> None:
    state = random_state(i3d_shapes(classes=6, part=8, flat=True))
    torch.save(state, tmp_path / "inception.pth")
    result = read_published(tmp_path / "inception.pth")
    assert result.settings == ModelSettings(name="i3d", width=1 / 8) and result.flat and result.classes == 6
    assert result.state.keys() == i3d_shapes(6, part=8).keys()
    model = build_model(result.settings, 6, LONG, 64).double().eval()
    load_weights(model, inflated(doubled(state), model), "keep")
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    expected = inception(doubled(state), image)
    out, _ = activations(model, "Mixed_5c", repeated(image, LONG))
    assert expected.std() > 1e-3
    torch.testing.assert_close(out[:, :, out.shape[2] // 2 - 1], expected, rtol=1e-9, atol=1e-9)
    assert not torch.allclose(out[:, :, 0], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("depth", [18, 34, 50, 101, 152])
def test_every_2d_resnet_fills_the_forms(depth: int) -> None:
    shapes = image_shapes(depth)
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    assert is_flat(state)
    for form in ("r3d", "rmc3") if depth > 18 else INFLATABLE[:-1]:
        with torch.device("meta"):
            model = build_model(ModelSettings(name=form, depth=depth, pool1=True), 1000, 16)
        ours = inflated(state, model)
        check_weights(model, ours, "keep")
        found = recognise({name: tuple(value.shape) for name, value in ours.items()}, "file")
        assert (found.settings.name, found.settings.depth, found.classes) == (form, depth, 1000)


def test_2d_weights_without_a_place(tmp_path: Path) -> None:
    file, other = tmp_path / "resnet.pth", tmp_path / "inception.pth"
    torch.save(random_state(image_shapes(18, planes=8)), file)
    torch.save(random_state(i3d_shapes(part=8, flat=True)), other)
    for path, into, parts in (
        (file, None, ["must become a video network", "r3d"]),
        (file, "i3d", ["cannot become i3d", "r3d"]),
        (file, "c3d", ["cannot become c3d"]),
        (file, "nonsense", ["cannot become nonsense"]),
        (file, "r2plus1d", ["cannot be inflated into r2plus1d", "ReLU"]),
        (other, "r3d", ["cannot become r3d", "i3d"]),
    ):
        with pytest.raises(UserError) as refused:
            read_published(path, into)
        assert [part for part in parts if part not in str(refused.value)] == []
    state = random_state(image_shapes(18, planes=8))
    state["layer1.0.conv1.weight"] = torch.ones(8, 4, 3, 3)  # grouped, as in ResNeXt
    torch.save(state, file)
    with pytest.raises(UserError, match=r"layer1.0.conv1.0.weight \(8, 4, 3, 3, 3\) for \(8, 8, 3, 3, 3\)"):
        read_published(file, "r3d")
