"""The engine with DeepSpeed itself: every ZeRO stage and world size is plain training over the lanes."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from pretrain.models.compute.batchnorm import LaneBatchNorm, commit_statistics
from pretrain.models.compute.compute_path import COMPUTE_PATHS
from tests.support.training.engine_cases import CASES, DECAY, LONG, ZERO, plain_loop
from tests.support.training.engine_ranks import BASELINES, LANES, lane_clips, network

pytestmark = pytest.mark.slow

Runs = dict[int, dict[str, Any]]


def assert_same(state: dict[str, Any], expected: dict[str, Any], rounding: float = 1e-6) -> None:
    assert list(state["model"]) == list(expected["model"])
    assert_close(state["model"], expected["model"], rtol=1e-5, atol=rounding)
    assert state["optimizer"].keys() == expected["optimizer"].keys()
    assert_close(state["optimizer"], expected["optimizer"], rtol=1e-4, atol=rounding)


def differing(state: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """The names of the tensors that are not the same to the bit."""
    fields = ("model", "optimizer", "average")
    assert all(state[field].keys() == other[field].keys() for field in fields)
    return [
        name for field in fields for name in state[field] if not torch.equal(state[field][name], other[field][name])
    ]


def off(actual: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> float:
    """The largest error of a tensor by its largest value, or a hundredth of all tensors' where it has none as large.

    The gradients of some are zero but for rounding: normalisation after them takes away what they do.
    """
    assert actual.keys() == expected.keys()
    little = max(float(value.abs().max()) for value in expected.values()) / 100
    return max(
        float((actual[name] - value).abs().max()) / max(float(value.abs().max()), little)
        for name, value in expected.items()
    )


def running(state: dict[str, Any]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state["model"].items() if "running" in name}


@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("zero", ZERO)
def test_a_step_is_the_plain_loops_over_lanes(engines: Runs, size: int, zero: int) -> None:
    case, expected = engines[size][f"gradients{zero}"], plain_loop(clips=(0,), decay=0.0)[1]
    state = case["states"][1]
    # Without weight decay, SGD's first momentum is the gradient.
    assert off(state["optimizer"], expected["optimizer"]) < 1e-6
    assert off(running(state), running(expected)) < 1e-6
    assert case["norm"] == [pytest.approx(expected["norm"], rel=1e-5)]
    assert case["taken"] == [False] * (LANES // size - 1) + [True]


@pytest.mark.parametrize("zero", ZERO)
def test_every_stage_is_torchs_ddp_to_the_bit(engines: Runs, zero: int) -> None:
    state, plain = engines[2][f"pair{zero}"]["states"][LONG], engines[2]["ddp"]
    assert state["model"].keys() == plain.keys()
    assert [
        name for name in plain if "running" not in name and not torch.equal(state["model"][name], plain[name])
    ] == []
    # DDP's ranks each move their own statistics, so that their mean is rounded elsewhere.
    assert off(running(state), running({"model": plain})) < 1e-6


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("zero", ZERO)
def test_two_lanes_are_the_same_bits_on_one_rank_or_two(engines: Runs, size: int, zero: int) -> None:
    state, first = (engines[at][f"pair{stage}"]["states"] for at, stage in ((size, zero), (1, 0)))
    assert differing(state[LONG], first[LONG]) == []
    assert len(differing(first[0], first[LONG])) == len(first[0]["model"]) + len(first[0]["optimizer"])


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_are_the_same_bits_on_one_rank_or_two(engines: Runs, name: str) -> None:
    """Of stage 3 on two ranks but for rounding: the norm of the first gradient."""
    cases = [engines[size][f"{name}{zero}"] for size, zero in ((1, 1), (1, 3), (2, 1), (2, 3))]
    states = [case["states"] for case in cases]
    assert all(differing(state[2], states[0][2]) == [] for state in states[:3])
    assert cases[3]["norm"][0] == pytest.approx(cases[0]["norm"][0], rel=1e-5)
    still = {key for key, value in states[0][0]["model"].items() if torch.equal(value, states[0][2]["model"][key])}
    assert still == set()


@pytest.mark.parametrize(("size", "stages"), [(1, (1, 2, 3)), (2, (1,))])
def test_the_stages_agree_to_the_bit(engines: Runs, size: int, stages: tuple[int, ...]) -> None:
    """Not stages 2 and 3 on two ranks: they sum over ranks before they sum over lanes."""
    for zero in stages:
        plain, other = (engines[size][f"left-out{stage}"]["states"][4] for stage in (0, zero))
        assert differing(plain, other) == []


@pytest.mark.parametrize(("name", "size"), [("together", 1), ("together", 2), ("together3", 2)])
def test_lanes_normalised_together_are_one_batch_at_any_world_size(engines: Runs, name: str, size: int) -> None:
    case, expected = engines[size][name], plain_loop(together=True)
    steps = CASES[name]["last"]
    assert case["taken"] == [True] * steps
    for step in range(1, steps + 1):
        assert_same(case["states"][step], expected[step])
    tracked = [value for name, value in case["states"][steps]["model"].items() if "num_batches" in name]
    assert {int(value) for value in tracked} == {steps}


@pytest.mark.parametrize(
    ("name", "size"), [*((f"resumed{zero}", size) for zero in ZERO for size in (1, 2)), ("whole3", 2)]
)
def test_a_state_goes_on_at_any_stage_and_world_size(engines: Runs, name: str, size: int) -> None:
    case, reference = engines[size][name], plain_loop()
    first, last = CASES[name]["first"], CASES[name]["last"]
    start = {**reference[first], "average": {}}
    assert differing(case["states"][first], start) == []
    assert_same(case["states"][last], reference[last])
    # Without the momentum of the steps before, the weights would be elsewhere.
    moved = reference[last]["model"]["fc.weight"] - reference[first]["model"]["fc.weight"]
    assert moved.abs().max() > 1e-4


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("zero", ZERO)
def test_adamw_goes_on_at_any_stage_and_world_size(engines: Runs, size: int, zero: int) -> None:
    case, reference = engines[size][f"adamw{zero}"], plain_loop(clips=(0, 1, 3), adamw=True)
    assert differing(case["states"][2], reference[2]) == []
    kinds = {name.partition(":")[0] for name in case["states"][2]["optimizer"]}
    assert kinds == {"exp_avg", "exp_avg_sq", "step"}
    assert case["skipped"] == [True, False]  # the step left out is not counted
    assert differing(case["states"][2], case["states"][3]) == []
    assert_same(case["states"][4], reference[3], rounding=3e-6)
    assert_close(case["states"][4]["average"], reference[3]["average"], rtol=1e-5, atol=1e-6)
    assert {float(value) for name, value in case["states"][4]["optimizer"].items() if "step:" in name} == {3.0}


def test_zero_3_computes_by_a_padded_path_and_layers_twice(engines: Runs) -> None:
    """A layer's weights are then used outside of it, and gathered twice."""
    state = engines[2]["padded3"]["states"][1]
    expected = plain_loop(clips=(0,), decay=0.0, relu=True, compute_path="rows")[1]
    assert off(state["optimizer"], expected["optimizer"]) < 1e-6
    assert off(running(state), running(expected)) < 1e-6


@pytest.mark.parametrize("compute_path", list(COMPUTE_PATHS))
@pytest.mark.parametrize("zero", ZERO)
def test_a_path_computes_the_same_by_weights_at_odd_places(engines: Runs, zero: int, compute_path: str) -> None:
    """As ZeRO's flat buffers have them; "rows" by Triton's kernels, which a GPU would not forgive a wide load there."""
    case, alone = engines[1][f"{compute_path} path{zero}"], engines[1][f"{compute_path} path0"]
    if zero in (1, 2):
        assert case["offsets"] > {0}
    assert differing(case["states"][1], alone["states"][1]) == []
    plain = engines[1]["plain path0"]["states"][1]
    assert off(running(case["states"][1]), running(plain)) < 1e-4  # of few values, rounded otherwise


def test_zero_3_casts_weights_as_they_come(engines: Runs) -> None:
    """All at once they would have to be here at once, and be here still when their gradients come."""
    alone, shared = (engines[1][f"half rows{zero}"]["states"] for zero in (0, 3))
    for step in (1, 2, 3):
        assert differing(shared[step], alone[step]) == []


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("zero", ZERO)
def test_bf16_computes_in_half_and_keeps_the_weights_whole(engines: Runs, size: int, zero: int) -> None:
    case, whole = engines[size][f"bf16{zero}"], plain_loop(clips=(0,), decay=0.0)[1]["optimizer"]
    half = plain_loop(clips=(0,), decay=0.0, half=torch.bfloat16)[1]["optimizer"]
    assert case["dtypes"] == {"torch.float32"}
    state = case["states"][1]
    floats = [value for value in state["model"].values() if value.is_floating_point()]
    assert {value.dtype for value in [*floats, *state["optimizer"].values()]} == {torch.float32}
    assert off(state["optimizer"], half) < 1e-5  # summed over the ranks in fp32
    assert 1e-3 < off(state["optimizer"], whole) < 0.5
    # Weights rounded to bf16 would all be representable in it.
    weight = state["model"]["stem.0.weight"]
    assert not torch.equal(weight, weight.bfloat16().float())


@pytest.mark.parametrize("zero", ZERO)
def test_gradients_are_summed_in_bf16_where_asked_for(engines: Runs, zero: int) -> None:
    half = plain_loop(clips=(0,), decay=0.0, half=torch.bfloat16)[1]["optimizer"]
    assert 1e-4 < off(engines[2][f"low{zero}"]["states"][1]["optimizer"], half) < 0.02


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", ["gradients1", "gradients3", "bf161", "bf163", "fp162"])
def test_predictions_are_in_the_trainings_precision(engines: Runs, size: int, name: str) -> None:
    case, model = engines[size][name], network().eval()
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(name[:4])
    model.load_state_dict({**case["states"][CASES[name]["last"]]["model"], **case.get("recomputed", {})}, strict=False)
    with torch.no_grad(), torch.autocast("cpu", half, enabled=half is not None):
        expected = model(lane_clips(0, 0)[0])
    assert not case["predicted"].requires_grad and case["predicted"].dtype == torch.float32
    assert_close(case["predicted"], expected.float(), rtol=1e-3, atol=1e-5)
    if half:  # a logit has few bits
        assert torch.equal(case["predicted"], case["predicted"].to(half).float())


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("zero", ZERO)
def test_averaged_weights_predict(engines: Runs, size: int, zero: int) -> None:
    case, model = engines[size][f"left-out{zero}"], network().eval()
    state = case["states"][4]
    reference = plain_loop(clips=(0, 3))[2]
    assert_close(state["average"], reference["average"], rtol=1e-5, atol=1e-6)
    assert 0 < DECAY < 1 and any(
        (state["model"][name] - value).abs().max() > 1e-4 for name, value in state["average"].items()
    )
    model.load_state_dict({**state["model"], **state["average"]})
    with torch.no_grad():
        assert_close(case["averaged"], model(lane_clips(0, 0)[0]), rtol=1e-4, atol=1e-5)
    assert not torch.equal(case["averaged"], case["predicted"])


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("zero", ZERO)
@pytest.mark.parametrize("name", ["gradients", "adamw"])
def test_running_statistics_are_recomputed_over_many_batches(engines: Runs, size: int, zero: int, name: str) -> None:
    """Each batch normalised by itself, on all ranks together; by the averaged weights where there are some."""
    case, model = engines[size][f"{name}{zero}"], network()
    trained = case["states"][CASES[f"{name}{zero}"]["last"]]
    assert bool(trained["average"]) is (name == "adamw")
    model.load_state_dict({**trained["model"], **trained["average"]})
    for layer in model.modules():
        if isinstance(layer, LaneBatchNorm):
            layer.momentum = 1.0  # a commit then puts the mean over the lanes in the place of what was there
    with torch.no_grad():
        for lane in range(LANES):
            model(lane_clips(9, lane)[0])
    commit_statistics(model)
    expected = {name: value for name, value in model.named_buffers() if "running" in name}
    assert_close({name: case["recomputed"][name] for name in expected}, expected, rtol=1e-4, atol=1e-5)


def test_the_world_agrees(engines: Runs) -> None:
    assert [engines[size]["hosts"] for size in (1, 2, 4)] == [[socket.gethostname()] * size for size in (1, 2, 4)]
    assert [engines[size]["broadcast"] for size in (1, 2, 4)] == [7] * 3
