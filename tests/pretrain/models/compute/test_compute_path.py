"""Every compute path computes the same function: outputs, gradients and running statistics."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from pretrain.models.compute.batchnorm import commit_statistics
from pretrain.models.compute.compute_path import COMPUTE_PATHS, Convolution
from pretrain.models.count import macs
from pretrain.models.network import LaneDropout, VideoNetwork, seed_dropout
from pretrain.models.zoo import ModelSettings, build_model

NETWORKS: dict[str, dict[str, Any]] = {
    "basic": {"name": "r2plus1d", "depth": 10, "width": 0.125},
    "bottleneck": {"name": "r2plus1d", "depth": 50, "width": 0.0625, "pool1": True},
    "whole": {"name": "r3d", "depth": 10, "width": 0.125},
    "mixed": {"name": "rmc4", "depth": 10, "width": 0.125},
    "folded": {"name": "r2d", "depth": 10, "width": 0.125},
    "control": {"name": "r3drelu", "depth": 10, "width": 0.125},
    "p3d": {"name": "p3d", "depth": 26, "width": 0.125},
    "s3d": {"name": "s3d", "width": 0.0625},
    "lstm": {"name": "lstm", "width": 0.0625},
    "fused3d": {"name": "fused3d", "width": 0.0625},
    "i3d": {"name": "i3d", "width": 0.0625},
    "c3d": {"name": "c3d", "width": 0.03125},
}
OWN_CLIPS = {"c3d": (16, 32), "fused3d": (23, 20)}  # frames and size


def network(name: str, frames: int = 6, size: int = 20, dtype: torch.dtype = torch.float64) -> VideoNetwork:
    torch.manual_seed(1)
    frames, size = OWN_CLIPS.get(name, (frames, size))
    return build_model(ModelSettings.model_validate(NETWORKS[name]), 5, frames, size).to(dtype)


def clips(name: str, frames: int = 6, size: int = 20) -> Tensor:
    frames, size = OWN_CLIPS.get(name, (frames, size))
    return torch.randn(4, 5 if name == "fused3d" else 3, frames, size, size, generator=torch.Generator().manual_seed(2))


def taken_step(model: VideoNetwork, batch: Tensor, half: bool = False) -> dict[str, Tensor]:
    """Logits of a training pass and of an evaluation, gradients, and the state after the commit."""
    model.train()
    with torch.autocast(batch.device.type, torch.bfloat16, enabled=half):
        logits = model(batch)
    labels = torch.arange(4, device=batch.device)
    torch.nn.functional.cross_entropy(logits.float() if half else logits, labels).backward()
    commit_statistics(model)
    with torch.no_grad(), torch.autocast(batch.device.type, torch.bfloat16, enabled=half):
        evaluated = model.eval()(batch)
    gradients = {f"{name} gradient": value.grad for name, value in model.named_parameters() if value.grad is not None}
    assert len(gradients) == len(list(model.parameters()))
    return {"logits": logits.detach(), "evaluated": evaluated, **gradients, **model.state_dict()}


@pytest.mark.parametrize("compute_path", [name for name in COMPUTE_PATHS if name != "plain"])
@pytest.mark.parametrize(("name", "frames"), [*((name, 6) for name in NETWORKS), ("whole", 8), ("mixed", 8)])
def test_a_path_is_the_plain_network_in_double_precision(name: str, frames: int, compute_path: str) -> None:
    plain, batch = network(name, frames), clips(name, frames).double()
    other = copy.deepcopy(plain)
    plain.use(COMPUTE_PATHS["plain"])
    other.use(COMPUTE_PATHS[compute_path])
    expected, result = taken_step(plain, batch), taken_step(other, batch)
    assert expected.keys() == result.keys()
    for key in expected:
        assert_close(result[key], expected[key], rtol=1e-9, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


def test_a_path_may_be_planar_in_some_layers_alone() -> None:
    plain = network("basic")
    other = copy.deepcopy(plain)
    plain.use(COMPUTE_PATHS["plain"])
    some = frozenset({"stem.0", "layer2.0.conv1.0.3"})
    other.use(replace(COMPUTE_PATHS["planar"], planar=some))
    chosen = {name for name, layer in other.named_modules() if isinstance(layer, Convolution) and layer.planar}
    assert chosen == some
    expected, found = taken_step(plain, clips("basic").double()), taken_step(other, clips("basic").double())
    for key in expected:
        assert_close(found[key], expected[key], rtol=1e-9, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}")


@pytest.mark.parametrize("frames", [2, 4])
@pytest.mark.parametrize("name", ["basic", "whole", "mixed"])
def test_in_bf16_a_path_errs_no_more_than_the_plain_network(name: str, frames: int) -> None:
    assert_bf16_errors(name, frames, list(COMPUTE_PATHS), torch.device("cpu"))


def assert_bf16_errors(name: str, frames: int, compute_paths: list[str], device: torch.device) -> None:
    """Against double precision: logits within 2⁻⁶ and gradients as a whole within a tenth of the plain one's error."""
    model, batch = network(name, frames).to(device), clips(name, frames).to(device)
    exact = copy.deepcopy(model)
    exact.use(COMPUTE_PATHS["plain"])
    expected = taken_step(exact, batch.double())
    gradients = [key for key in expected if key.endswith("gradient")]
    true = torch.cat([expected[key].flatten() for key in gradients])
    errors = {}
    for compute_path in compute_paths:
        other = copy.deepcopy(model).float()
        other.use(COMPUTE_PATHS[compute_path])
        result = taken_step(other, batch, half=True)
        assert_close(result["logits"].double(), expected["logits"], rtol=0, atol=2**-6)
        errors[compute_path] = (
            torch.cat([result[key].double().flatten() for key in gradients]) - true
        ).norm() / true.norm()
        for key in expected:
            if "running" in key:
                assert_close(result[key].double(), expected[key], rtol=0.02, atol=0.01)
    assert all(0 < error < 1.1 * errors["plain"] for error in errors.values()), errors


@pytest.mark.parametrize("junk", range(3))
@pytest.mark.parametrize("compute_path", list(COMPUTE_PATHS))
def test_gradients_of_bf16_over_two_frames_are_finite(compute_path: str, junk: int) -> None:
    model = network("basic", 2, dtype=torch.float32)
    model.use(COMPUTE_PATHS[compute_path])
    filled = [torch.full((size,), float("nan")) for size in (64, 256, 1024, 4096, 16384, 65536) for _ in range(junk)]
    del filled
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(clips("basic", 2))
    logits.float().square().sum().backward()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in model.parameters())


@pytest.mark.parametrize("name", ["basic", "whole", "p3d", "lstm", "fused3d", "i3d", "c3d"])
@pytest.mark.parametrize("compute_path", ["planar", "rows"])
def test_recomputing_changes_nothing(name: str, compute_path: str) -> None:
    kept = network(name)
    kept.use(COMPUTE_PATHS[compute_path])
    again = copy.deepcopy(kept)
    again.use(replace(kept.compute_path, recomputed=2))
    expected, found = taken_step(kept, clips(name).double()), taken_step(again, clips(name).double())
    for key in expected:
        assert_close(found[key], expected[key], rtol=1e-12, atol=1e-12)


def test_recomputing_keeps_less() -> None:
    def kept(recomputed: int) -> int:
        model = network("basic", 4, 32, torch.float32)
        model.use(replace(model.compute_path, recomputed=recomputed))
        stored: dict[int, int] = {}

        def keep(tensor: Tensor) -> Tensor:
            stored[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            model(clips("basic", 4, 32))
        return sum(stored.values())

    sizes = [kept(recomputed) for recomputed in range(6)]
    assert sizes == sorted(sizes, reverse=True) and sizes[2] < 0.7 * sizes[0]


def test_padding_is_no_part_of_what_is_counted() -> None:
    model = network("basic")
    before = macs(model, 6, 20, 20)
    model.use(COMPUTE_PATHS["rows"])
    assert macs(model, 6, 20, 20) == before


def test_convolutions_keep_the_published_shape_of_their_weights() -> None:
    model = network("basic")
    model.use(COMPUTE_PATHS["rows"])
    assert all(module.weight.dim() == 5 for module in model.modules() if isinstance(module, nn.Conv3d))
    assert all(type(module) is Convolution for module in model.modules() if isinstance(module, nn.Conv3d))


@pytest.mark.parametrize("together", [1, 2, 4])
def test_a_lanes_dropout_is_its_own(together: int) -> None:
    layer = LaneDropout(0.5)
    x = torch.ones(4, 3, 64)
    alone = []
    for lane in range(4):
        seed_dropout(layer, [100 + lane], torch.device("cpu"))
        alone.append(torch.stack([layer(x[lane : lane + 1]), layer(x[lane : lane + 1])]))
    for first in range(0, 4, together):
        lanes = range(first, first + together)
        seed_dropout(layer, [100 + lane for lane in lanes], torch.device("cpu"))
        batch = x[first : first + together]
        assert torch.equal(torch.stack([layer(batch), layer(batch)]), torch.cat([alone[lane] for lane in lanes], dim=1))
    assert not torch.equal(alone[0][0], alone[0][1]) and not torch.equal(alone[0], alone[1])
    assert alone[0].unique().tolist() == [0.0, 2.0]
    assert torch.equal(layer.eval()(x), x)
