"""Shapes by arithmetic: those that torch itself finds on the meta device, for every network, without its compiler."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from pretrain.models.meta_device import ShapesOnly, on_meta
from pretrain.models.network import VideoNetwork
from pretrain.models.zoo import NAMES, ModelSettings, build_model
from tests.support.commands import ROOT


def outputs_and_kept(model: VideoNetwork) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Shapes of two clips in training: of all layers' outputs and the logits; and of what the backward pass is kept."""
    shapes: list[tuple[int, ...]] = []
    kept: list[tuple[int, ...]] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append((tensor.element_size(), *tensor.shape))
        return tensor

    for module in model.modules():
        if not any(module.children()):
            module.register_forward_hook(lambda module, inputs, output: shapes.append(tuple(output.shape)))
    model.train()
    with saved_tensors_hooks(keep, lambda tensor: tensor):
        shapes.append(tuple(model(torch.empty(2, model.in_channels, 16, 64, 64, device="meta")).shape))
    return shapes, kept


@pytest.mark.parametrize("name", NAMES)
def test_as_torch_finds_them(name: str) -> None:
    settings = ModelSettings.model_validate({"name": name, "width": 0.25, "in_channels": 5 if name == "fused3d" else 3})
    with torch.device("meta"):
        plain = build_model(settings, 11, 16, 64)
    with on_meta():
        ours = build_model(settings, 11, 16, 64)
    expected = outputs_and_kept(plain)
    with ShapesOnly():
        assert outputs_and_kept(ours) == expected
    assert {key: value.shape for key, value in ours.state_dict().items()} == {
        key: value.shape for key, value in plain.state_dict().items()
    }


def test_counting_loads_no_compiler() -> None:
    """It would take a second and a half of every command's start."""
    code = """
import sys
from pretrain.models.count import activation_bytes, macs
from pretrain.models.meta_device import on_meta
from pretrain.models.zoo import ModelSettings, build_model
with on_meta():
    model = build_model(ModelSettings(depth=34), 487, 8, 112)
assert macs(model, 8, 112, 112) > 0 and activation_bytes(model, 8, 112) > 0
print(sorted({"torch._dynamo", "torch._inductor", "sympy"} & set(sys.modules)))
"""
    words = [sys.executable, "-c", code]
    assert subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"
