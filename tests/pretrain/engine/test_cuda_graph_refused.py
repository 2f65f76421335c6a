"""What is not captured in a CUDA graph: the network computes without one, and the log says why."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from pretrain.engine.capture import Capture, Captured, capture_for
from pretrain.engine.cuda_graph import capture_obstacle, enable_cuda_graph
from pretrain.engine.deepspeed_config import EngineSettings
from pretrain.models.compute.batchnorm import synchronise
from pretrain.models.network import LaneDropout, seed_dropout
from pretrain.models.zoo import ModelSettings, build_model
from tests.pretrain.engine.test_cuda_graph import (
    ALONE,
    assert_same,
    graphed,
    logged,
    one_thread,  # noqa: F401 (a fixture of every test here)
    train,
    twin,
)
from tests.support.training.engine_ranks import network


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_before_the_last_layer_is_not_captured(run_log: pytest.LogCaptureFixture, dropout: float) -> None:
    torch.manual_seed(3)
    settings = ModelSettings.model_validate({"name": "c3d", "width": 0.0625, "dropout": dropout})
    model, features, capture = graphed(build_model(settings, 5, frames=16, size=32))
    plain, clips = twin(model), torch.randn(2, 3, 16, 32, 32)
    with run_log.at_level(logging.INFO):
        for number in range(2):
            for each in (model, plain):
                seed_dropout(each, [number], torch.device("cpu"))
                train(each, clips)
    assert_same(model, plain)
    lines = logged(run_log)
    assert len(lines) == 1 and lines[0].levelno == logging.INFO
    assert ("it has dropout before its last layer" in lines[0].message) == bool(dropout)
    assert (features.input_buffer is None) == bool(dropout)
    assert [passes.forwards for passes in capture.made if not dropout] == ([] if dropout else [2])
    assert not any(layer._forward_pre_hooks for layer in model.modules() if isinstance(layer, LaneDropout))


def test_what_fails_to_be_captured_runs_without_and_the_log_says_why_once(run_log: pytest.LogCaptureFixture) -> None:
    model, tries = network(relu=True), []

    def failing(function: Callable[[], Tensor], weights: Sequence[Tensor]) -> Captured:
        tries.append(function())
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    features = enable_cuda_graph(model, EngineSettings(), ALONE, failing)
    plain = twin(model)
    with run_log.at_level(logging.INFO):
        for _ in range(3):
            assert torch.equal(train(model), train(plain))
    assert_same(model, plain)
    assert len(tries) == 1 and features is not None and features.input_buffer is None
    lines = logged(run_log)
    assert [line.levelno for line in lines] == [logging.WARNING]
    assert lines[0].message.endswith("RuntimeError: operation not permitted when stream is capturing")


def nothing(function: Callable[[], Tensor], weights: Sequence[Tensor]) -> Captured:
    raise AssertionError("captured")


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"zero": 3}, "ZeRO 3"),
        ({"deepspeed": {"flops_profiler": {"enabled": True}}}, "flops_profiler"),
        ({"deepspeed": {"flops_profiler": {"enabled": False}}}, None),
        ({"zero": 2}, None),
    ],
)
def test_obstacles_in_the_settings(run_log: pytest.LogCaptureFixture, settings: dict[str, Any], reason: str) -> None:
    model, settings_ = network(), EngineSettings(**settings)
    with run_log.at_level(logging.INFO):
        features = enable_cuda_graph(model, settings_, ALONE, nothing)
        assert (features is None) == (reason is not None) == (model.graphed_features is None)
        enable_cuda_graph(network(), settings_, replace(ALONE, rank=1), nothing)
    found = capture_obstacle(model, settings_)
    assert (found is None) if reason is None else reason in str(found)
    assert [record.message.rpartition(": ")[2] for record in logged(run_log)] == ([] if found is None else [found])


def test_statistics_gathered_from_ranks_are_not_captured() -> None:
    model = network()
    synchronise(model, lambda row: row[None])
    assert "gathers statistics" in str(capture_obstacle(model, EngineSettings()))


@pytest.mark.parametrize(("capture", "asked"), [(None, True), (nothing, False)])
def test_nothing_is_done_where_it_is_not_asked_for_or_nothing_captures(capture: Capture | None, asked: bool) -> None:
    model = network()
    assert (
        enable_cuda_graph(model, EngineSettings(cuda_graph=asked), ALONE, capture) is None
        and model.graphed_features is None
    )
    assert capture_for(torch.device("cpu")) is None


def test_no_layer_that_may_be_recomputed_draws() -> None:
    for name in ("r2plus1d", "r3d", "p3d", "s3d", "lstm", "fused3d", "c3d", "i3d"):
        settings = ModelSettings.model_validate({"name": name, "width": 0.0625, "dropout": 0.5})
        model = build_model(settings, 5, frames=16, size=32)
        layers = [model.get_submodule(layer) for group in model.stages for layer in group]
        assert not any(isinstance(module, LaneDropout) for layer in layers for module in layer.modules())
        assert any(isinstance(module, LaneDropout) for module in model.modules())
