"""All weights cast by one call: what autocast casts one by one, forward and backward."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from pretrain.models.compute.compute_path import ComputePath, Convolution
from pretrain.models.compute.weight_cast import cast
from pretrain.models.network import VideoNetwork
from pretrain.models.zoo import ModelSettings, build_model


@pytest.fixture
def model() -> VideoNetwork:
    torch.manual_seed(0)
    return build_model(ModelSettings(depth=10, width=0.125), 3, 4)


def passed(model: VideoNetwork, half: bool = True) -> dict[str, Tensor]:
    model.zero_grad()
    clips = torch.randn(2, 3, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        logits = model(clips)
    logits.float().square().sum().backward()
    gradients = {name: value.grad for name, value in model.named_parameters() if value.grad is not None}
    return {"logits": logits.detach(), **gradients}


@pytest.mark.parametrize("half", [False, True])
def test_it_is_what_autocast_makes(model: VideoNetwork, half: bool) -> None:
    expected = passed(model, half)
    model.use(ComputePath(cast_at_once=True))
    found = passed(model, half)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert all(layer.cast is None for layer in model.modules() if isinstance(layer, Convolution))


def test_it_is_one_call_a_direction(model: VideoNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    copy = torch._foreach_copy_

    def counted(copies: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
        calls.append((len(tensors), copies[0].dtype))
        copy(copies, tensors)

    monkeypatch.setattr(torch, "_foreach_copy_", counted)
    model.use(ComputePath(cast_at_once=True))
    passed(model)
    layers = sum(isinstance(layer, Convolution) for layer in model.modules())
    assert calls == [(layers, torch.bfloat16), (layers, torch.float32)]


def test_frozen_weights_have_no_gradient_and_nothing_is_kept_for_one(model: VideoNetwork) -> None:
    model.use(ComputePath(cast_at_once=True))
    model.get_submodule("stem").requires_grad_(False)
    learning = []
    hook = model.get_submodule("stem").register_forward_hook(lambda *call: learning.append(call[-1].requires_grad))
    found = passed(model)
    hook.remove()
    assert not any(name.startswith("stem") for name in found) and len(found) > 10 and learning == [False]
    model.requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        assert not model(torch.randn(2, 3, 4, 16, 16)).requires_grad


@pytest.mark.slow
def test_what_is_recomputed_is_cast_as_it_comes(model: VideoNetwork) -> None:
    expected = passed(model)
    model.use(ComputePath(cast_at_once=True, recomputed=2))
    assert all(torch.equal(passed(model)[name], value) for name, value in expected.items())


def test_gradients_are_of_the_weights_type_and_begin_where_memory_does() -> None:
    weights = [torch.randn(size, 3, 1, 3, 3).requires_grad_() for size in (3, 5, 7)]
    halves = cast(weights, torch.bfloat16)
    (halves[0].sum() + halves[2].square().sum()).backward()
    assert [half.dtype for half in halves] == [torch.bfloat16] * 3
    assert weights[1].grad is None
    for weight in (weights[0], weights[2]):
        assert weight.grad is not None and weight.grad.dtype == torch.float32 and weight.grad.data_ptr() % 16 == 0
        assert weight.grad.stride() == weight.stride()
    assert all(half.is_contiguous(memory_format=torch.channels_last_3d) for half in halves)
