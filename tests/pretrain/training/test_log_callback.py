"""The gauges of a run that goes on from a checkpoint, before its first log line."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch

from pretrain import metrics
from pretrain.settings import TrainSettings
from pretrain.training.log_callback import LogCallback
from pretrain.training.state import Position


def gauge(metric: Any) -> float:
    return metric.collect()[0].samples[0].value


def test_a_resumed_run_says_where_it_is_before_its_first_step() -> None:
    settings = TrainSettings.model_validate({"data": {"store": "s"}, "lanes": 2, "lane_batch": 4})
    for metric in (metrics.STEP, metrics.SAMPLES, metrics.LOSS, metrics.INTERRUPTIONS, metrics.LOST_SECONDS):
        metric.set(math.nan)
    state: Any = SimpleNamespace(
        world=SimpleNamespace(device=torch.device("cpu"), hosts=lambda: ["here"]),
        settings=settings,
        position=Position(step=5_000, interruptions=2, lost_seconds=30.0),
        timers=SimpleNamespace(waited=0.0, saved=0.0, validated=0.0),
    )
    LogCallback(state)
    assert (gauge(metrics.STEP), gauge(metrics.SAMPLES)) == (5_000, 40_000)
    assert (gauge(metrics.INTERRUPTIONS), gauge(metrics.LOST_SECONDS)) == (2, 30.0)
    assert math.isnan(gauge(metrics.LOSS))
