"""Steps that are left out because something is not finite, steps that are clipped, and fp16's loss scale."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pretrain.engine.scaler import LossScale
from tests.pretrain.engine.test_engine import assert_same, differing, off
from tests.support.training.engine_cases import CLIP, FACTOR, START_SCALE, ZERO, plain_loop
from tests.support.training.engine_ranks import LANES

pytestmark = pytest.mark.slow

Runs = dict[int, dict[str, Any]]


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("zero", ZERO)
def test_a_step_that_is_not_finite_leaves_everything_as_it_was(engines: Runs, size: int, zero: int) -> None:
    """The second step has one infinite pixel on the last rank, the third an infinite loss on the first."""
    case = engines[size][f"left-out{zero}"]
    assert case["skipped"] == [False, True, True, False]
    states = case["states"]
    assert len(differing(states[0], states[1])) > 100
    assert differing(states[1], states[2]) == differing(states[1], states[3]) == []
    reference = plain_loop(clips=(0, 3))
    assert_same(states[1], reference[1])
    assert_same(states[4], reference[2])
    # The running statistics moved once a step that counts.
    assert {int(value) for name, value in states[4]["model"].items() if "num_batches" in name} == {2}
    assert case["taken"] == ([False] * (LANES // size - 1) + [True]) * 4
    assert [norm == float("inf") for norm in case["norm"]] == case["skipped"]


@pytest.mark.parametrize(("name", "size"), [("left-out", 1), ("left-out", 2), ("clipped", 2)])
@pytest.mark.parametrize("zero", ZERO)
def test_the_host_sends_a_step_without_waiting_for_the_device(engines: Runs, name: str, size: int, zero: int) -> None:
    waits = engines[size][f"{name}{zero}"]["waits"]
    begun = 2 if zero == 3 else 0  # steps in which ZeRO 3 finds out the order of the layers
    # ZeRO 3 makes a tensor, in host memory, of the number that it is handed for the norm, and asks for its value.
    assert waits[begun:] == [2 if zero == 3 else 0] * len(waits[begun:])


@pytest.mark.parametrize("zero", ZERO)
def test_gradients_are_clipped_by_their_norm(engines: Runs, zero: int) -> None:
    case = engines[2][f"clipped{zero}"]
    reference = plain_loop(clips=(0, 1, 2, 3), decay=0.0, clip=CLIP)
    norms = [reference[step]["norm"] for step in range(1, 5)]
    assert case["norm"] == pytest.approx(norms, rel=1e-4) and min(norms) > 2 * CLIP
    assert_same(case["states"][4], reference[4])


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("zero", ZERO)
def test_fp16_backs_off_until_gradients_fit(engines: Runs, size: int, zero: int) -> None:
    case = engines[size][f"fp16{zero}"]
    states, left_out = case["states"], sum(case["skipped"])
    assert case["skipped"] == [True] * left_out + [False] * (4 - left_out) and 1 <= left_out <= 3
    for step in range(1, left_out + 1):
        assert differing(states[0], states[step]) == []
        assert states[step]["scaler"] == {"factor": 2.0 ** (16 - step), "good_steps": 0.0}
    assert states[4]["scaler"] == {"factor": 2.0 ** (16 - left_out), "good_steps": 4.0 - left_out}
    expected = plain_loop(clips=(left_out,), decay=0.0)[1]["optimizer"]
    gradients = {name: value / FACTOR for name, value in states[left_out + 1]["optimizer"].items()}
    assert 1e-5 < off(gradients, expected) < 0.05
    assert all(bool(value.isfinite().all()) for value in states[4]["model"].values())


@pytest.mark.parametrize("zero", ZERO)
def test_fp16_overflows_alike_at_any_world_size(engines: Runs, zero: int) -> None:
    one, two = (engines[size][f"fp16{zero}"]["states"] for size in (1, 2))
    assert [one[step]["scaler"] for step in one] == [two[step]["scaler"] for step in two]


@pytest.mark.parametrize("zero", ZERO)
def test_the_loss_scale_goes_on(engines: Runs, zero: int) -> None:
    case = engines[2][f"scaled{zero}"]
    assert case["states"][0]["scaler"] == START_SCALE
    assert case["states"][1]["scaler"] == {"factor": 8.0, "good_steps": 0.0}  # the 2000th good step in a row


def test_the_loss_scale_has_bounds_and_only_fp16_has_it() -> None:
    scale, none = LossScale(needed=True), LossScale(needed=False)
    for _ in range(100):
        scale.after_step(False)
        none.after_step(False)
    assert scale.factor == LossScale.smallest and none.factor == 1.0 and none.state() == {}
    for _ in range(60 * LossScale.patience):
        scale.after_step(True)
    assert scale.factor == LossScale.largest
    none.load(scale.state())
    assert none.factor == 1.0
    assert torch.tensor(scale.factor).log2() % 1 == 0
