"""Normalisation, addition and ReLU in one, against torch's own one after the other."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pretrain.models.compute.bn_add_relu import normalise

EXACT = {"rtol": 1e-9, "atol": 1e-9}


def drawn(shape: tuple[int, ...], dtype: torch.dtype = torch.float64, seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    channels = shape[1]
    return {
        "x": (torch.randn(shape, generator=draw) * 3 + 2).to(dtype),
        "weight": torch.rand(channels, generator=draw).double() + 0.5,
        "bias": torch.randn(channels, generator=draw).double(),
        "added": torch.randn(shape, generator=draw).to(dtype),
        "slopes": torch.randn(shape, generator=draw).to(dtype),
    }


def torchs(x: Tensor, weight: Tensor, bias: Tensor, added: Tensor | None, relu: bool) -> Tensor:
    y = F.batch_norm(x, None, None, weight, bias, training=True, eps=1e-3)
    y = y if added is None else y + added
    return y.relu() if relu else y


def outcome(values: dict[str, Tensor], adding: bool, relu: bool, how: str) -> dict[str, Tensor]:
    """Output, gradients and statistics: "torch" or "ours"."""
    own = {name: value.clone().requires_grad_() for name, value in values.items()}
    added = own["added"] if adding else None
    if how == "torch":
        y = torchs(own["x"], own["weight"], own["bias"], added, relu)
        wide = values["x"].to(values["weight"].dtype)
        batch = torch.stack([wide.mean((0, 2, 3, 4)), wide.var((0, 2, 3, 4))])
    else:
        batch = torch.zeros(2, values["x"].shape[1], dtype=values["weight"].dtype)
        y = normalise(own["x"], own["weight"], own["bias"], 1e-3, added, relu, pending=batch)
    (y * values["slopes"]).sum().backward()
    gradients = {f"{name}'s": value.grad for name, value in own.items() if value.grad is not None}
    assert set(gradients) == {"x's", "weight's", "bias's"} | ({"added's"} if adding else set())
    return {"y": y.detach(), "batch": batch.detach(), **gradients}


@given(
    st.tuples(*(st.integers(1, 4) for _ in range(5))).filter(lambda s: s[0] * s[2] * s[3] * s[4] > 1),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_it_is_torchs_three_layers(shape: tuple[int, ...], adding: bool, relu: bool, channels_last: bool) -> None:
    values = drawn(shape)
    if channels_last:
        values["x"] = values["x"].contiguous(memory_format=torch.channels_last_3d)
    assert_close(outcome(values, adding, relu, "ours"), outcome(values, adding, relu, "torch"), **EXACT)


def test_in_bf16_it_errs_no_more_than_torchs() -> None:
    """Against double precision: rounded once at the end, where torch's layers round one after the other."""
    values = drawn((4, 6, 4, 8, 8), torch.bfloat16)
    exact = outcome({name: value.double() for name, value in values.items()}, True, True, "torch")
    half = {name: value.float() if name in ("weight", "bias") else value for name, value in values.items()}
    result, expected = outcome(half, True, True, "ours"), outcome(half, True, True, "torch")
    for name, value in exact.items():
        ours, theirs = ((other[name].double() - value).norm() / value.norm() for other in (result, expected))
        assert ours <= max(1.05 * theirs, 1e-5), name
    assert result["y"].dtype == torch.bfloat16 and result["batch"].dtype == torch.float32


def test_a_mean_far_from_zero_costs_no_precision() -> None:
    x = torch.randn(4, 3, 8, 16, 16, generator=torch.Generator().manual_seed(0)).double() + 3000
    weight, bias = torch.ones(3), torch.zeros(3)
    exact = torchs(x, weight.double(), bias.double(), None, False)
    batch = torch.zeros(2, 3)
    y = normalise(x.float(), weight, bias, 1e-3, pending=batch)
    rounded = torchs(x.float().double(), weight.double(), bias.double(), None, False)
    assert (y - exact).abs().max() < 4 * (rounded - exact).abs().max()  # the input's own rounding
    assert_close(batch[1], x.var((0, 2, 3, 4)).float(), rtol=1e-4, atol=0)


@pytest.mark.parametrize("relu", [True, False])
def test_what_is_no_number_stays_none(relu: bool) -> None:
    x = torch.randn(2, 3, 2, 2, 2)
    x[0, 1, 0, 0, 0] = float("nan")
    x.requires_grad_()
    weight = torch.ones(3, requires_grad=True)
    y = normalise(x, weight, torch.zeros(3), 1e-3, relu=relu)
    y.sum().backward()
    assert y[:, 1].isnan().all() and y[:, [0, 2]].isfinite().all()
    assert x.grad is not None and x.grad[:, 1].isnan().all() and x.grad[:, [0, 2]].isfinite().all()


def test_a_constant_channel_gives_its_bias() -> None:
    batch = torch.zeros(2, 2)
    y = normalise(torch.full((2, 2, 3, 4, 4), 7.7), torch.ones(2), torch.tensor([0.5, -1.0]), 1e-3, pending=batch)
    assert_close(y, torch.tensor([0.5, -1.0]).view(1, 2, 1, 1, 1).expand(2, 2, 3, 4, 4))
    assert_close(batch, torch.tensor([[7.7, 7.7], [0.0, 0.0]]))


def test_second_derivatives_are_refused() -> None:
    x = torch.randn(2, 3, 2, 2, 2, requires_grad=True)
    y = normalise(x, torch.ones(3, requires_grad=True), torch.zeros(3), 1e-3)
    (slope,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        slope.sum().backward()
