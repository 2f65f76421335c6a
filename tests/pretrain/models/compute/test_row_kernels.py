"""Triton's kernels for rows, interpreted on a CPU: against double precision, at any shape and address.

Where there is a GPU they run there. What only a compiler can say, a compiler for that GPU is asked.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from pretrain.models.compute import bn_add_relu as normalising
from pretrain.models.compute import row_functions
from pretrain.models.compute.batchnorm import LaneBatchNorm
from pretrain.models.compute.bn_add_relu import normalise
from pretrain.models.compute.compute_path import COMPUTE_PATHS
from pretrain.models.zoo import ModelSettings, build_model

ROOT = Path(__file__).parents[4]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = [pytest.mark.gpu] if DEVICE.type == "cuda" else []
# Where a parameter may be given: never read or written several numbers at once.
AT_ANY_PLACE = {"_statistics": {"rows", "weight", "bias", "pending"}}
SEARCH = [Phase.explicit, Phase.reuse, Phase.generate]  # an interpreter is too slow to make a failing case small
NEARLY_THE_SAME = 0.05
HALF_STEP = {torch.float32: 2.0**-22, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, which its users take on every device: conftest.py has Triton interpret it where there is no GPU."""
    from pretrain.models.compute import row_kernels

    monkeypatch.setattr(normalising, "has_kernels", lambda device: True)
    return row_kernels


def placed(values: Tensor, offset: int) -> Tensor:
    """The same values, so many elements behind a place where a tensor would begin."""
    flat = torch.empty(values.numel() + 16, dtype=values.dtype, device=DEVICE)
    view = flat[offset : offset + values.numel()].view(values.shape)
    return view.copy_(values)


def drawn(rows: int, channels: int, padding: int, dtype: torch.dtype, offset: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(rows * channels)
    wide = channels + padding
    x = torch.randn(rows, wide, generator=draw) * 3 + 2
    x[:, channels:] = 0
    values = {
        "x": x.to(dtype),
        "added": torch.randn(rows, wide, generator=draw).to(dtype),
        "gradient": torch.randn(rows, wide, generator=draw).to(dtype),
        "weight": torch.rand(channels, generator=draw) + 0.5,
        "bias": torch.randn(channels, generator=draw),
        "pending": torch.randn(2, channels, generator=draw),
    }
    return {name: placed(value, offset) for name, value in values.items()}


def outcome(
    compute: ModuleType, values: dict[str, Tensor], adding: bool, relu: bool, passing: Tensor | None = None
) -> dict[str, Tensor]:
    """What a step over rows makes; `passing`: by whose sign the ReLU lets gradients through, if not by its own."""
    pending, channels = values["pending"].clone(), len(values["weight"])
    statistics = compute.statistics(values["x"], values["weight"], values["bias"], 1e-3, pending)
    y = compute.apply(values["x"], statistics, values["added"] if adding else None, relu)
    kept = passing if passing is not None else y if adding and relu else None
    gradient = values["gradient"]
    of_bias, of_weight, both, passed = compute.slopes(gradient, values["x"], kept, statistics, relu, channels)
    through = gradient if passed is None else passed
    inner = compute.inner(through, values["x"], statistics, both, len(y), relu and passed is None)
    found = {"y": y, "bias": of_bias, "weight": of_weight, "x": inner, "pending": pending, "statistics": statistics}
    return found | ({"added": through} if adding else {})


def as_double(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.double() for name, value in values.items()}


@pytest.mark.slow
@settings(deadline=None, max_examples=12, phases=SEARCH, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.integers(1, 150),
    st.sampled_from([1, 3, 7, 16, 45, 64, 144, 230]),
    st.sampled_from([0, 3]),
    st.sampled_from(list(HALF_STEP)),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
)
def test_they_are_the_formula_in_double_precision(
    kernels: ModuleType,
    rows: int,
    channels: int,
    padding: int,
    dtype: torch.dtype,
    offset: int,
    adding: bool,
    relu: bool,
) -> None:
    values = drawn(rows, channels, padding, dtype, offset)
    # A channel of few rows that are almost the same is divided by almost nought, and so is the rounding in it.
    assume(rows == 1 or values["x"][:, :channels].double().std(0, correction=0).min() > NEARLY_THE_SAME)
    result = outcome(kernels, values, adding, relu)
    # What rounds to nought has no sign: both let gradients through alike.
    exact = outcome(row_functions, as_double(values), adding, relu, result["y"].double() if relu else None)
    assert result.keys() == exact.keys()
    assert result["y"].dtype == result["x"].dtype == dtype and result["weight"].dtype == torch.float32
    rounded = HALF_STEP[dtype]
    for name in ("y", "x", "added"):
        if name in exact:
            bound = 1e-5 * (1 + rows**0.5 / 10)
            assert_close(result[name].double(), exact[name], rtol=2 * rounded, atol=bound + rounded)
    for name in ("bias", "weight", "pending", "statistics"):
        assert_close(result[name].double(), exact[name], rtol=2e-5, atol=1e-4)
    if padding:
        assert not result["y"][:, channels:].any() or adding
        assert not result["x"][:, channels:].any()


def test_many_partial_sums_are_added_in_two_rounds(kernels: ModuleType) -> None:
    draw = torch.Generator().manual_seed(0)
    for partial in (513, 700, 1100):
        sums = torch.randn(2, partial, 37, generator=draw).to(DEVICE)
        folded = kernels._folded(sums)
        assert folded.shape == (2, -(-partial // 256), 37)
        assert_close(folded.sum(1), sums.sum(1), rtol=1e-5, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", list(HALF_STEP))
def test_the_same_bits_every_time(kernels: ModuleType, dtype: torch.dtype) -> None:
    values = drawn(300, 45, 3, dtype, 1)
    first, again = (outcome(kernels, values, True, True) for _ in range(2))
    assert all(torch.equal(value, again[name]) for name, value in first.items())


@given(st.integers(1, 10**7), st.integers(1, 2048), st.sampled_from(["moments", "slopes", "apply", "inner"]))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_launch_covers_every_number_once(kernels: ModuleType, rows: int, channels: int, kernel: str) -> None:
    for processors in (1, 132):
        how = kernels.launch(rows, channels, kernel, processors)
        width = how.columns * how.block
        assert width == channels * how.repeats and how.rows % how.unrolled == 0
        covered = how.groups * how.rows * width
        assert covered >= rows * channels > (how.groups - 1) * how.rows * width


def test_a_mean_far_from_zero_costs_no_precision(kernels: ModuleType) -> None:
    values = drawn(300, 16, 0, torch.float32, 0)
    values["x"] += 3000
    exact = outcome(row_functions, as_double(values), False, False)
    found = outcome(kernels, values, False, False)
    assert_close(found["y"].double(), exact["y"], rtol=0, atol=4 * 3000 * 2.0**-24)


@pytest.mark.parametrize("adding", [False, True])
def test_what_is_no_number_stays_none(kernels: ModuleType, adding: bool) -> None:
    values = drawn(40, 6, 0, torch.bfloat16, 0)
    values["x"][3, 1] = float("nan")
    result = outcome(kernels, values, adding, True)
    for name in ("y", "x"):
        assert result[name][:, 1].isnan().all() and result[name][:, [0, 2, 3, 4, 5]].isfinite().all()
    assert result["weight"].isnan().tolist() == [False, True, False, False, False, False]


class Watched:
    """A kernel that tells where what it is given begins."""

    def __init__(self, kernel: Any, names: list[str], seen: list[tuple[str, int]]) -> None:
        self._kernel, self._names, self._seen = kernel, names, seen

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launched(*values: Any, **named: Any) -> None:
            tensors = [
                (name, value) for name, value in zip(self._names, values, strict=False) if torch.is_tensor(value)
            ]
            self._seen += [(f"{self._kernel.__name__}.{name}", value.data_ptr() % 16) for name, value in tensors]
            self._kernel[grid](*values, **named)

        return launched


@pytest.fixture
def addresses(kernels: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(kernel.argument, place of its first byte in a line of 16) of every tensor that a kernel is given."""
    seen: list[tuple[str, int]] = []
    for name in ("_moments", "_statistics", "_slopes", "_slope_sums", "_fold", "_apply", "_inner"):
        kernel = getattr(kernels, name)
        names = list(kernel.signature.parameters) if hasattr(kernel, "signature") else list(kernel.arg_names)
        monkeypatch.setattr(kernels, name, Watched(kernel, names, seen))
    return seen


@pytest.fixture()
def two_threads() -> Iterator[None]:
    """With one, oneDNN sums a convolution's gradient in another order where its weights lie off a line of 16."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def flat_views(model: torch.nn.Module) -> None:
    """The model's weights as views into one buffer from an odd place on, as ZeRO makes them."""
    weights = list(model.parameters())
    flat = torch.empty(sum(value.numel() for value in weights) + 1, device=DEVICE)
    begin = 1
    for value in weights:
        view = flat[begin : begin + value.numel()].view(value.shape)
        view.copy_(value.detach())
        value.data = view
        begin += value.numel()


@pytest.mark.slow
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("compute_path", list(COMPUTE_PATHS))
@pytest.mark.usefixtures("two_threads")
def test_weights_may_begin_anywhere(
    addresses: list[tuple[str, int]], compute_path: str, half: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through a whole network, forward and backward: nothing but what may lie anywhere is given off a line of 16."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    torch.manual_seed(0)
    model = build_model(ModelSettings(depth=10, width=0.125), 3, 4).to(DEVICE)
    model.use(COMPUTE_PATHS[compute_path])
    clips = torch.randn(2, 3, 4, 16, 16, device=DEVICE)
    gradients = []
    for odd in (False, True):
        if odd:
            flat_views(model)
            assert {value.data_ptr() % 16 for value in model.parameters()} > {0}
        model.zero_grad()
        with torch.autocast(DEVICE.type, torch.bfloat16, enabled=half):
            logits = model(clips)
        logits.float().square().sum().backward()
        gradients.append({name: value.grad for name, value in model.named_parameters()})
    for name, expected in gradients[0].items():
        assert expected is not None and torch.equal(gradients[1][name], expected), name
        assert expected.data_ptr() % 16 == gradients[1][name].data_ptr() % 16 == 0, name
    assert bool(addresses) is (compute_path == "rows")
    allowed = {f"{kernel}.{name}" for kernel, names in AT_ANY_PLACE.items() for name in names}
    off = {name for name, place in addresses if place}
    assert off <= allowed and (compute_path != "rows" or off >= {"_statistics.weight", "_statistics.bias"})


@pytest.mark.parametrize("shares", [[5], [3, 2]])
def test_synchronised_ranks_are_one_batch(kernels: ModuleType, shares: list[int]) -> None:
    """Each rank's part by the kernels, the statistics of all: against one batch in double precision."""
    draw = torch.Generator().manual_seed(0)
    whole = torch.randn(5, 6, 2, 3, 3, generator=draw)
    weight, bias = torch.rand(6, generator=draw) + 0.5, torch.randn(6, generator=draw)
    slopes = torch.randn(whole.shape, generator=draw)
    exact = whole.double().requires_grad_()
    y = normalise(exact, weight.double(), bias.double(), 1e-3, relu=True)
    y.backward(slopes.double())
    parts = whole.to(DEVICE).split(shares)
    rows = [part.permute(0, 2, 3, 4, 1).reshape(-1, 6) for part in parts]
    words = torch.stack([
        torch.cat([kernels.moments(part, torch.float32).flatten(), torch.tensor([float(len(part))], device=DEVICE)])
        for part in rows
    ])  # fmt: skip
    for number, (part, slope) in enumerate(zip(parts, slopes.to(DEVICE).split(shares), strict=True)):
        asked = []

        def gather(row: Tensor, number: int = number, asked: list[Tensor] = asked) -> Tensor:
            asked.append(row)
            if len(asked) == 1:
                assert_close(row, words[number])
                return words
            return row[None]

        pending = torch.zeros(2, 6, device=DEVICE)
        x = part.clone().requires_grad_()
        result = normalise(x, weight.to(DEVICE), bias.to(DEVICE), 1e-3, None, True, gather, pending)
        begin = sum(shares[:number])
        assert_close(result.double().cpu(), y[begin : begin + len(part)].detach(), rtol=1e-5, atol=1e-5)
        wide = whole.double()
        moments = torch.stack([wide.mean((0, 2, 3, 4)), wide.var((0, 2, 3, 4))])
        assert_close(pending.double().cpu(), moments, rtol=1e-5, atol=1e-6)
        if len(shares) == 1:
            result.backward(slope)
            assert x.grad is not None and exact.grad is not None
            assert_close(x.grad.double().cpu(), exact.grad, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("lie", ["slice of wider rows", "one clip", "one clip in the order of torch", "expanded"])
def test_clips_may_lie_in_any_way(lie: str) -> None:
    """As the backward pass of a concatenation, of pooling, and a lane of one clip hand them on."""
    torch.manual_seed(0)
    values = {name: torch.randn(2, 6, 2, 3, 4, device=DEVICE) for name in ("x", "added", "gradient")}
    weight, bias = torch.rand(6, device=DEVICE) + 0.5, torch.randn(6, device=DEVICE)

    def laid(value: Tensor) -> Tensor:
        rows = value.permute(0, 2, 3, 4, 1)
        if lie == "slice of wider rows":
            return torch.cat([rows, rows, rows], -1)[..., 6:12].permute(0, 4, 1, 2, 3)
        if lie == "expanded":
            return value[:, :, :, :1, :1].expand(value.shape)
        return value[:1] if lie.endswith("torch") else rows[:1].contiguous().permute(0, 4, 1, 2, 3)

    placed = {name: laid(value) for name, value in values.items()}
    result = []
    for own in (
        {name: value.detach() for name, value in placed.items()},
        {name: value.double() for name, value in placed.items()},
    ):
        x, added = own["x"].requires_grad_(), own["added"].requires_grad_()
        scale, shift = (value.to(x.dtype).requires_grad_() for value in (weight.clone(), bias.clone()))
        y = normalise(x, scale, shift, 1e-3, added, relu=True)
        (y * 1).backward(own["gradient"])
        inner = normalise(x, scale, shift, 1e-3, relu=True)
        inner.backward(own["gradient"])
        result.append(
            [value.detach().double() for value in (y, inner)] + [v.grad.double() for v in (x, added, scale, shift)]
        )  # type: ignore[union-attr]
    for ours, exact in zip(*result, strict=True):
        assert_close(ours, exact, rtol=1e-4, atol=1e-4)


def test_a_layer_uses_them_on_its_own_device_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = LaneBatchNorm(4, relu=True).to(DEVICE)
    layer.rows = True
    x = torch.randn(2, 4, 2, 3, 3, device=DEVICE)
    y = layer(x)
    monkeypatch.setattr(normalising, "has_kernels", lambda device: False)
    assert_close(layer(x), y, rtol=1e-5, atol=1e-6)
    assert layer.lanes == 2
