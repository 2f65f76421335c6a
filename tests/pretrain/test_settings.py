"""What follows from a run's settings, and settings that do not fit together."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from pretrain.settings import (
    TrainSettings,
    check_lane,
    derived,
    fitting_world_size,
    held_bytes,
    is_deterministic,
    require_memory,
    state_bytes,
)
from sharding.base.errors import UserError


def settings(**values: Any) -> TrainSettings:
    return TrainSettings.model_validate({"data": {"store": "store"}} | values)


@pytest.mark.parametrize(
    ("engine", "tensors"),  # of 4 ranks: whole weights, gradients, and states; or quarters of them
    [
        ({"zero": 0}, 3),
        ({"zero": 1}, 2.25),
        ({"zero": 2}, 1.5),
        ({"zero": 3}, 0.75),
        ({"zero": 0, "optimizer": "adamw"}, 4),
        ({"zero": 1, "optimizer": "adamw", "average": 0.999}, 2.75),
    ],
)
def test_what_a_rank_holds(engine: dict[str, Any], tensors: float) -> None:
    assert state_bytes(settings(engine=engine), 1000, 4) == 4000 * tensors


@pytest.mark.parametrize(
    ("engine", "tensors"),
    [
        ({"zero": 0}, 1 + 1 + 1),  # momentum, a bucket, the CUDA graph's
        ({"zero": 0, "cuda_graph": False}, 1 + 1),
        ({"zero": 0, "optimizer": "adamw", "average": 0.9}, 3 + 1 + 1),
        ({"zero": 1}, (1 + 1) / 4 + 1 + 1),  # with ZeRO's own weights, shared out
        ({"zero": 3, "optimizer": "adamw"}, (2 + 1) / 4 + 1),
    ],
)
def test_what_is_held_beside_a_whole_network(engine: dict[str, object], tensors: float) -> None:
    assert held_bytes(settings(engine=engine), 1000, 4) == 4000 * tensors


@pytest.mark.parametrize(
    ("lanes", "ranks", "size"), [(8, 8, 8), (8, 7, 4), (8, 3, 2), (8, 1, 1), (12, 5, 4), (7, 6, 1), (4, 100, 4)]
)
def test_as_many_ranks_train_as_share_the_lanes_evenly(lanes: int, ranks: int, size: int) -> None:
    assert fitting_world_size(lanes, ranks) == size


def test_channels_follow_the_input() -> None:
    flow = {"data": {"store": "store", "clip": {"input": "flow"}}}
    made = settings(**flow, model={"depth": 18})
    assert (made.model.in_channels, made.model.depth) == (2, 18) and settings().model.in_channels == 3
    assert TrainSettings.model_validate(made.model_dump()) == made
    assert settings(**flow, model={"in_channels": 3}).model.in_channels == 3  # what preflight refuses


def test_mixup_needs_another_clip() -> None:
    check_lane(settings(lane_batch=2, loss={"mixup": 0.2}), 5)
    with pytest.raises(UserError, match="blends a clip with another") as caught:
        check_lane(settings(lane_batch=1, loss={"mixup": 0.2}), 5)
    assert "lane_batch=2" in caught.value.remedy


def test_clips_that_no_machine_holds() -> None:
    clip = {"frames": 10_000, "crop": 4_096, "resize": [4_096, 4_096]}
    huge = TrainSettings.model_validate({"data": {"store": "there", "clip": clip}, "model": {"depth": 10}})
    needed = derived(huge, 10, 1000, 1)["memory_per_rank_bytes"]
    with pytest.raises(UserError, match=r"a rank needs about [\d,]+ GiB, and this machine has"):
        require_memory(needed, torch.device("cpu"))
    usual = TrainSettings.model_validate({"data": {"store": "there"}, "model": {"depth": 10}, "lane_batch": 2})
    require_memory(derived(usual, 10, 1000, 1)["memory_per_rank_bytes"], torch.device("cpu"))


def test_runs_on_a_cpu_repeat_unless_told_otherwise() -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert is_deterministic(settings(), cpu) and not is_deterministic(settings(), gpu)
    assert is_deterministic(settings(deterministic=True), gpu)
    assert not is_deterministic(settings(deterministic=False), cpu)
