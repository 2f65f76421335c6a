"""The engine with DeepSpeed itself: every ZeRO stage and world size is plain SGD over the lanes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional
from torch.testing import assert_close

from pretrain.engine.engine import EngineSettings, deepspeed_config
from pretrain.engine.world import free_port
from pretrain.models.batchnorm import commit_statistics
from pretrain.models.groups import parameter_groups
from tests.pretrain.engine_worker import LANE_BATCH, LANES, RATE, lane_clips, network, snapshot

ROOT = Path(__file__).parents[2]
STEPS = 3
SETTINGS = {"precision": "fp32", "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}
CASES: dict[str, dict[str, Any]] = {
    **{f"zero{zero}": {"first": 0, "last": STEPS, "settings": {**SETTINGS, "zero": zero}} for zero in (0, 1, 2)},
    **{f"resumed{zero}": {"first": 2, "last": STEPS, "settings": {**SETTINGS, "zero": zero}} for zero in (0, 1, 2)},
    "poisoned": {"first": 0, "last": 2, "poisoned": 0, "settings": {**SETTINGS, "zero": 1}},
    "together": {"first": 0, "last": STEPS, "together": True, "settings": {**SETTINGS, "zero": 1}},
    "bf16": {"first": 0, "last": 1, "settings": {**SETTINGS, "precision": "bf16", "zero": 1}},
}


def plain_loop(half: bool = False, together: bool = False) -> dict[int, dict[str, Any]]:
    """What the engine must do, in torch's own words: the mean loss of all lanes, in one process.

    `half`: under bf16 autocast. `together`: all lanes are one batch.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    model, taken = network(), {}
    optimizer = torch.optim.SGD(parameter_groups(model, 0.01, {}), lr=RATE, momentum=0.9, nesterov=True)
    for step in range(STEPS):
        optimizer.zero_grad()
        lanes = [lane_clips(step, lane) for lane in range(LANES)]
        if together:
            lanes = [(torch.cat([video for video, _ in lanes]), torch.cat([labels for _, labels in lanes]))]
        for video, labels in lanes:
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                logits = model(video)
                loss = functional.cross_entropy(logits.float(), labels) / len(lanes)
                loss.backward()
        gradients = [value.grad for value in model.parameters() if value.grad is not None]
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))
        optimizer.step()
        commit_statistics(model)
        momentum = {name: optimizer.state[value]["momentum_buffer"].clone() for name, value in model.named_parameters()}
        taken[step + 1] = {**snapshot(model, momentum), "norm": norm}
    torch.set_num_threads(threads)
    return taken


@pytest.fixture(scope="module")
def reference() -> dict[int, dict[str, Any]]:
    return plain_loop()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, reference: dict[int, dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """The cases' results by world size; three processes in all."""
    folder = tmp_path_factory.mktemp("engine")
    torch.save(reference, folder / "reference.pt")
    (folder / "cases.json").write_text(json.dumps(CASES))
    processes = []
    for size in (1, 2):
        port = str(free_port())
        for rank in range(size):
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
            environment = {**os.environ, **{name: str(value) for name, value in names.items()}}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "CUDA_VISIBLE_DEVICES": ""}
            environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
            command = [sys.executable, "-m", "tests.pretrain.engine_worker", str(folder)]
            with (folder / f"{size}-{rank}.log").open("w") as log:
                processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log))
    try:
        codes = [process.wait(200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert codes == [0, 0, 0], "\n".join(path.read_text()[-3000:] for path in folder.glob("*.log"))
    return {size: torch.load(folder / f"{size}.pt", weights_only=False) for size in (1, 2)}


def assert_same(state: dict[str, Any], expected: dict[str, Any], rounding: float = 1e-6) -> None:
    assert list(state["model"]) == list(expected["model"])
    assert_close(state["model"], expected["model"], rtol=1e-5, atol=rounding)
    assert state["momentum"].keys() == expected["momentum"].keys()
    assert_close(state["momentum"], expected["momentum"], rtol=1e-4, atol=rounding)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_every_stage_and_world_size_is_plain_sgd_over_the_lanes(
    found: dict[int, dict[str, Any]], reference: dict[int, dict[str, Any]], size: int, zero: int
) -> None:
    case = found[size][f"zero{zero}"]
    for step in range(1, STEPS + 1):
        assert_same(case[step], reference[step])
    assert case["taken"] == ([False] * (LANES // size - 1) + [True]) * STEPS
    # The running statistics moved once a step, and differ from where they began.
    tracked = [value for name, value in case[STEPS]["model"].items() if "num_batches" in name]
    assert {int(value) for value in tracked} == {STEPS}
    if zero:
        assert case["norm"] == pytest.approx([reference[step]["norm"] for step in (1, 2, 3)], rel=1e-4)


@pytest.mark.parametrize("size", [1, 2])
def test_lanes_normalised_together_are_one_batch_at_any_world_size(found: dict[int, dict[str, Any]], size: int) -> None:
    case, expected = found[size]["together"], plain_loop(together=True)
    assert case["taken"] == [True] * STEPS
    for step in range(1, STEPS + 1):
        assert_same(case[step], expected[step])
    assert {int(value) for name, value in case[STEPS]["model"].items() if "num_batches" in name} == {STEPS}


@pytest.mark.parametrize(("size", "stages"), [(1, (1, 2)), (2, (1,))])
def test_the_stages_agree_to_the_bit(found: dict[int, dict[str, Any]], size: int, stages: tuple[int, ...]) -> None:
    """Not stage 2 on two ranks: it sums over ranks before it sums over lanes."""
    for zero in stages:
        plain, other = (found[size][f"zero{stage}"][STEPS]["model"] for stage in (0, zero))
        assert all(torch.equal(plain[name], other[name]) for name in plain)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("zero", [0, 1, 2])
def test_whole_momentum_goes_on_at_any_stage_and_world_size(
    found: dict[int, dict[str, Any]], reference: dict[int, dict[str, Any]], size: int, zero: int
) -> None:
    resumed = found[size][f"resumed{zero}"]
    assert_same(resumed[STEPS], reference[STEPS])
    assert resumed.keys() == {STEPS, "norm", "taken", "dtypes", "predicted"}
    # Without the momentum of steps 1 and 2, the weights would be elsewhere.
    moved = reference[STEPS]["model"]["fc.weight"] - reference[2]["model"]["fc.weight"]
    assert moved.abs().max() > 1e-4


@pytest.mark.parametrize("size", [1, 2])
def test_a_pixel_that_is_not_finite_moves_neither_weights_nor_statistics(
    found: dict[int, dict[str, Any]], size: int
) -> None:
    case = found[size]["poisoned"]
    before = network().state_dict()
    assert all(torch.equal(case[1]["model"][name], value) for name, value in before.items())
    after = case[2]["model"]
    assert all(bool(value.isfinite().all()) for value in after.values())
    assert not torch.equal(after["fc.weight"], before["fc.weight"])
    assert {int(value) for name, value in after.items() if "num_batches" in name} == {1}


@pytest.mark.parametrize("size", [1, 2])
def test_bf16_computes_in_half_and_keeps_the_weights_whole(
    found: dict[int, dict[str, Any]], reference: dict[int, dict[str, Any]], size: int
) -> None:
    case = found[size]["bf16"]
    assert case["dtypes"] == {"torch.float32"}
    floats = [value for value in case[1]["model"].values() if value.is_floating_point()]
    assert {value.dtype for value in [*floats, *case[1]["momentum"].values()]} == {torch.float32}
    assert_close(case[1]["momentum"], plain_loop(half=True)[1]["momentum"], rtol=1e-3, atol=1e-4)
    whole = reference[1]["momentum"]["fc.weight"]
    assert 1e-4 < (case[1]["momentum"]["fc.weight"] - whole).norm() / whole.norm() < 0.1  # half, not whole
    # Weights rounded to bf16 would all be representable in it.
    weight = case[1]["model"]["stem.0.weight"]
    assert not torch.equal(weight, weight.bfloat16().float())


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("name", ["zero1", "bf16"])
def test_predictions_are_in_the_trainings_precision(found: dict[int, dict[str, Any]], size: int, name: str) -> None:
    case, model = found[size][name], network().eval()
    model.load_state_dict(case[CASES[name]["last"]]["model"])
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=name == "bf16"):
        expected = model(lane_clips(0, 0)[0])
    assert not case["predicted"].requires_grad and case["predicted"].dtype == torch.float32
    assert_close(case["predicted"], expected.float(), rtol=1e-3, atol=1e-5)
    # In bf16 the logits have 8 bits.
    assert torch.equal(case["predicted"], case["predicted"].bfloat16().float()) is (name == "bf16")


def test_the_world_agrees(found: dict[int, dict[str, Any]]) -> None:
    assert [found[size]["any"] for size in (1, 2)] == [(True, False), (True, False)]
    assert [found[size]["broadcast"] for size in (1, 2)] == [7, 7]


def test_the_settings_in_deepspeeds_words() -> None:
    settings = EngineSettings(precision="bf16", zero=2, clip_gradient=1.5)
    config = deepspeed_config(settings, batch=LANE_BATCH, passes=3, world_size=4, parameters=1000)
    assert config["train_batch_size"] == LANE_BATCH * 3 * 4
    assert config["train_micro_batch_size_per_gpu"] == LANE_BATCH
    assert config["gradient_accumulation_steps"] == 3
    assert config["gradient_clipping"] == 1.5
    assert config["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}
    assert config["torch_autocast"]["enabled"] and config["torch_autocast"]["dtype"] == "bfloat16"
    assert config["torch_autocast"]["lower_precision_safe_modules"] == []
    plain = deepspeed_config(EngineSettings(precision="fp32"), 1, 1, 1, 10**9)
    assert not plain["torch_autocast"]["enabled"]
    assert plain["zero_optimization"]["reduce_bucket_size"] == 5 * 10**8
