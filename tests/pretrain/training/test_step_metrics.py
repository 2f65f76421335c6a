"""What is told of each step, and of a run that goes on from a checkpoint before its first step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prometheus_client import REGISTRY

from pretrain import metrics
from pretrain.settings import TrainSettings
from pretrain.training.log_callback import LogCallback, StepMetrics
from pretrain.training.state import Position
from pretrain.training.step import StepReport, StepTimes

GAUGES = (
    metrics.STEP, metrics.SAMPLES, metrics.EPOCH, metrics.LOSS, metrics.INTERRUPTIONS, metrics.LOST_SECONDS,
    metrics.ATTEMPTS, metrics.LOSS_SCALE, metrics.LAST_STEP_TIME, metrics.STRAGGLER_RANK,
)  # fmt: skip


def value(name: str) -> float | None:
    """Of a metric without labels, None where it has no sample."""
    return REGISTRY.get_sample_value(f"reelscale_{name}")


def state(rank: int = 0, size: int = 1, **engine: Any) -> Any:
    """Of a run at step 5,000; no gauge is set."""
    for gauge in GAUGES:
        gauge.unset()
    rows = torch.tensor([[1.0], [1.1], [4.0]])
    return SimpleNamespace(
        world=SimpleNamespace(
            rank=rank, size=size, device=torch.device("cpu"), hosts=lambda: ["a", "b", "c"], gather=lambda row: rows
        ),
        settings=TrainSettings.model_validate({"data": {"store": "s"}, "lanes": 2, "lane_batch": 4}),
        position=Position(step=5_000, interruptions=2, lost_seconds=30.0),
        timers=SimpleNamespace(waited=0.0, saved=0.0, validated=0.0),
        checkpointer=SimpleNamespace(attempt=4),
        engine=SimpleNamespace(**{"loss_scale": None, "forward_waits": False} | engine),
    )


def test_a_resumed_run_says_where_it_is_before_its_first_step() -> None:
    StepMetrics(state())
    assert (value("train_step"), value("train_samples"), value("train_epoch")) == (5_000, 40_000, 0.04)
    assert (value("train_interruptions"), value("train_lost_seconds"), value("train_attempts")) == (2, 30.0, 4)
    assert value("train_loss") is value("train_last_step_timestamp_seconds") is value("train_loss_scale") is None


def test_only_rank_0_says_what_is_one_figure_of_the_run() -> None:
    run = state(rank=1)
    callback = StepMetrics(run)
    callback.after_step(run, StepReport(5_001, 40_008, 0.1))
    assert value("train_step") == 5_001 and value("train_last_step_timestamp_seconds") is not None
    assert value("train_samples") is value("train_epoch") is value("train_attempts") is None


@pytest.mark.parametrize(
    ("size", "waits", "computed", "exchanged"), [(1, False, 1, 0), (2, False, 1, 1), (2, True, 0, 0)]
)
def test_compute_and_exchange_are_observed_where_they_are_measured(
    size: int, waits: bool, computed: int, exchanged: int
) -> None:
    run = state(size=size, forward_waits=waits)
    callback = StepMetrics(run)
    names = [f"train_{part}_seconds_{end}" for part in ("compute", "exchange") for end in ("count", "sum")]
    before = [value(name) or 0 for name in names]
    callback.after_step(run, StepReport(5_001, 40_008, 0.1, times=StepTimes(0.5, 3.0, 1.0)))
    more = [(value(name) or 0) - old for name, old in zip(names, before, strict=True)]
    assert more == [computed, 2.0 * computed, exchanged, 1.0 * exchanged]


def test_a_step_is_timed_without_validations_and_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([100.0, 107.0])
    monkeypatch.setattr("pretrain.training.log_callback.time.perf_counter", lambda: next(clock))
    run = state()
    callback = StepMetrics(run)
    before = value("train_step_seconds_sum") or 0.0
    run.timers.validated, run.timers.saved = 3.0, 1.5
    callback.after_step(run, StepReport(5_001, 40_008, 0.1))
    assert (value("train_step_seconds_sum") or 0.0) - before == 2.5


def test_the_loss_scale_is_that_of_fp16() -> None:
    StepMetrics(state(loss_scale=2.0**16))
    assert value("train_loss_scale") == 2.0**16


def test_the_slowest_rank_is_named_until_none_is_slow() -> None:
    run = state(size=3)
    callback = LogCallback(run)
    before = value("slow_ranks_total") or 0.0
    callback._warn_of_slow_ranks(run, 1.0)
    assert (value("train_straggler_rank"), (value("slow_ranks_total") or 0.0) - before) == (2, 1)
    run.world.gather = lambda row: torch.ones(3, 1)
    callback._warn_of_slow_ranks(run, 1.0)
    assert value("train_straggler_rank") is None
