"""Ranks that take steps on trial: what came out of each case, for `test_trial.py` to judge. Rank 0 saves it."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from pretrain.engine.autotune.trial import trial
from pretrain.engine.deepspeed_config import EngineSettings
from pretrain.engine.distributed import World, leave_world, start_world
from pretrain.engine.engine import Engine
from pretrain.engine.precision import MicroStep
from pretrain.models.compute.compute_path import Convolution
from sharding.base.errors import UserError
from tests.support.training.engine_ranks import LANE_BATCH, LANES, RATE, lane_clips, network

ALL_IN_PARTS = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
CASES: dict[str, dict[str, Any]] = {
    "0": {"zero": 0, "average": 0.9},
    "1": {"zero": 1, "average": 0.9, "clip_gradient": 0.5},
    "2": {"zero": 2, "optimizer": "adamw"},
    "3": {"zero": 3, "average": 0.9, "deepspeed": ALL_IN_PARTS},
    "whole3": {"zero": 3, "optimizer": "adamw"},  # the weights are small enough to stay whole on every rank
    "fp16": {"zero": 1, "precision": "fp16"},
    "alone": {"zero": 0, "precision": "fp16", "optimizer": "adamw"},
}
STEPS = 2
ON_TWO = ("0", "1", "3")
TRAINING = MicroStep((3, 4, 24, 24), LANE_BATCH, "fp32")


def fresh(case: dict[str, Any], world: World) -> Engine:
    """The engine of a case, at its beginning."""
    settings = EngineSettings(**{"precision": "fp32", "momentum": 0.9, "weight_decay": 0.01, **case})
    return Engine(network(relu=True), settings, world, LANES, LANE_BATCH)


def take_step(engine: Engine, step: int) -> None:
    """A step of all lanes, with random numbers drawn before it, of which the network's come."""
    engine.set_learning_rate(RATE)
    share = LANES // engine.world.size
    for lane in range(engine.world.rank * share, (engine.world.rank + 1) * share):
        video, labels = lane_clips(step, lane)
        engine.backward(functional.cross_entropy(engine.forward(video + torch.rand(1)), labels))
        engine.step()
    engine.record_verdict(bool(engine.verdict[0]))


def run_case(case: dict[str, Any], world: World) -> dict[str, Any]:
    """The states of two engines that took the same steps, of which the second had trials before and between them."""
    states: dict[str, list[Any]] = {
        "without": [],
        "with": [],
        "after a trial": [],
        "outcome": [],
        "counts": [],
        "verdicts": [],
    }
    for kind in ("without", "with"):
        torch.manual_seed(3)
        engine = fresh(case, world)
        for step in range(STEPS):
            if kind == "with":
                states["outcome"].append(trial(engine, TRAINING).name)
                states["after a trial"].append((asdict(engine.state()), torch.get_rng_state()))
                inner = engine._engine
                states["counts"].append((inner.global_steps, inner.micro_steps, inner.skipped_steps))
                states["verdicts"].append(engine.verdict.tolist())
            states[kind].append((asdict(engine.state()), torch.get_rng_state()))
            take_step(engine, step)
        states[kind].append((asdict(engine.state()), torch.get_rng_state()))
    return states


def failures(world: World) -> dict[str, Any]:
    """What becomes of a trial where the last rank's convolutions fail, forward or backward, or are short of memory."""
    results: dict[str, Any] = {}
    compute = Convolution.compute
    for name, error in (("forward", RuntimeError("an odd address")), ("memory", torch.OutOfMemoryError("short"))):

        def failing(self: Convolution, x: torch.Tensor, weight: torch.Tensor, error: Exception = error) -> torch.Tensor:
            if world.rank == world.size - 1 and self.out_channels == 64:
                raise error
            return compute(self, x, weight)

        engine = fresh(CASES["1"], world)
        Convolution.compute = failing  # type: ignore[method-assign]
        begin = time.monotonic()
        try:
            results[name] = trial(engine, TRAINING).name
        except UserError as mistake:
            results[name] = str(mistake)
        results[f"{name} seconds"] = time.monotonic() - begin
        Convolution.compute = compute  # type: ignore[method-assign]
    # Another engine takes the place of one that failed.
    engine = fresh(CASES["1"], world)
    results["afterwards"] = trial(engine, TRAINING).name
    return results


def main() -> None:
    """A rank: its world is the environment's, and its folder the first argument."""
    torch.set_num_threads(1)
    world = start_world(200.0)
    names = CASES if world.size == 1 else ON_TWO
    results: dict[str, Any] = {name: run_case(CASES[name], world) for name in names}
    results["failures"] = failures(world)
    torch.save(results, Path(sys.argv[1]) / f"{world.size}-{world.rank}.pt")
    leave_world()


if __name__ == "__main__":
    main()
    os._exit(0)
