"""The counts against torch's own counter and against what autograd really keeps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from pretrain.models.compute.batchnorm import LaneBatchNorm
from pretrain.models.count import activation_bytes, conv_fc_parameters, macs, parameters
from pretrain.models.network import VideoNetwork
from pretrain.models.zoo import ModelSettings, build_model


@pytest.mark.slow
@pytest.mark.parametrize(("depth", "frames"), [(10, 1), (18, 5), (34, 8), (26, 3), (50, 16)])
def test_macs_are_half_of_torchs_flops(depth: int, frames: int) -> None:
    with torch.device("meta"):
        model = build_model(ModelSettings(depth=depth), 11, frames).eval()
        clip = torch.empty(1, 3, frames, 100, 76)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(clip)
    assert 2 * macs(model, frames, 100, 76) == counter.get_total_flops()


def test_parameters_are_torchs() -> None:
    model = build_model(ModelSettings(depth=10, width=0.25), 11, 4)
    assert parameters(model) == sum(value.numel() for value in model.parameters())
    norms = sum(2 * norm.num_features for norm in model.modules() if isinstance(norm, LaneBatchNorm))
    assert conv_fc_parameters(model) == parameters(model) - norms - 11


def kept_bytes(model: VideoNetwork, clip: torch.Tensor) -> int:
    """What autograd holds after the forward pass, weights apart."""
    weights = {value.data_ptr() for value in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model(clip)
    return sum(kept.values())


CLIPS = {"c3d": (16, 64), "fused3d": (20, 64)}  # frames and size, of others 8 and 64


@pytest.mark.slow
@pytest.mark.parametrize(
    "values",
    [
        {"depth": 18},
        {"depth": 26},
        {"depth": 50, "pool1": True},
        {"name": "p3d", "depth": 26},
        *({"name": name} for name in ("s3d", "lstm", "fused3d", "i3d", "c3d")),
    ],
    ids=str,
)
def test_activation_bytes_are_what_autograd_keeps(values: dict[str, Any]) -> None:
    """Of groups that are computed again what they put out, and at the worst moment one of them whole."""
    settings = ModelSettings.model_validate(values | {"width": 0.25})
    frames, size = CLIPS.get(settings.name, (8, 64))
    model = build_model(settings, 5, frames, size)
    clip = torch.randn(2, model.in_channels, frames, size, size)
    assert activation_bytes(model, frames, size) == pytest.approx(kept_bytes(model, clip) / 2, rel=0.02)
    whole = activation_bytes(model, frames, size)
    assert 0.5 * whole <= activation_bytes(model, frames, size, half=True) < 0.75 * whole
    estimates = [activation_bytes(model, frames, size, recomputed=groups) for groups in range(7)]
    assert estimates == sorted(estimates, reverse=True) and estimates[6] == estimates[5] < 0.8 * whole
    for groups, estimate in enumerate(estimates):
        model.use(replace(model.compute_path, recomputed=groups))
        assert kept_bytes(model, clip) / 2 < 1.02 * estimate


def test_counting_leaves_the_network_as_it_was() -> None:
    model = build_model(ModelSettings(depth=10, width=0.125), 5, 4)
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    macs(model, 4, 32, 32)
    assert [module.training for module in model.modules()] == modes
    assert all(not module._forward_hooks for module in model.modules())
    norms = [norm for norm in model.modules() if isinstance(norm, LaneBatchNorm)]
    assert all(not norm.pending.any() and norm.running_mean.device.type == "cpu" for norm in norms)
