"""A run in training, on one rank: what trains, where it is, and what it is saved with."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch

from pretrain.checkpoints.checkpoint import Checkpoint
from pretrain.checkpoints.checkpointer import Checkpointer
from pretrain.data.loader import Loader
from pretrain.engine.distributed import World
from pretrain.engine.engine import Engine
from pretrain.resilience.early_stop import EarlyStopState
from pretrain.resilience.hang_watchdog import Watchdog
from pretrain.resilience.loss_monitor import LossMonitor
from pretrain.resilience.progress import TRAINING
from pretrain.resilience.stop_signal import Stop
from pretrain.run_folder import Run
from pretrain.settings import TrainSettings
from pretrain.training.rollbacks import Rollback
from pretrain.training.step import StepClock


@dataclass
class Position:
    """Where a run is: optimizer steps taken, and steps' worth of samples that were shown in vain.

    `best`: the highest clip@1 of a validation so far; `early_stop`: whether validations still gain; `rollback`: how
    often the run went back to its checkpoint.
    `interruptions`: how often it went on without having stopped in order, and `lost_seconds` from the checkpoints to
    there.
    """

    step: int = 0
    passed_over: int = 0
    best: float | None = None
    early_stop: EarlyStopState = field(default_factory=EarlyStopState)
    rollback: Rollback | None = None
    interruptions: int = 0
    lost_seconds: float = 0.0

    @property
    def data_step(self) -> int:
        """The step of the order whose samples come next."""
        return self.step + self.passed_over


class Timers:
    """Seconds that this rank has spent in training so far, by what they went to.

    `saved`: stood still for checkpoints; `validated`: in validations; `clock`: of a single step.
    """

    def __init__(self, loader: Loader, device: torch.device) -> None:
        self._loader, self.clock = loader, StepClock(device)
        self.saved = self.validated = 0.0

    @property
    def waited(self) -> float:
        """Seconds spent waiting for the loader's clips."""
        return self._loader.stats.wait_seconds

    @contextmanager
    def saving(self) -> Iterator[None]:
        """Inside the `with`, training stands still for a checkpoint."""
        begin = time.perf_counter()
        with TRAINING.during("saving"):
            yield
        self.saved += time.perf_counter() - begin

    @contextmanager
    def validating(self) -> Iterator[None]:
        """Inside the `with`, the run is validated."""
        begin = time.perf_counter()
        with TRAINING.during("validating"):
            yield
        self.validated += time.perf_counter() - begin


@dataclass
class TrainState:
    """All that the training loop and its callbacks share.

    macs: multiply-accumulates of a clip's forward pass. lanes: those that this rank runs, one after the other.
    loader_of: `loader_of(first, last)` is a loader of these steps of the order.
    """

    settings: TrainSettings
    world: World
    run: Run
    engine: Engine
    macs: int
    loader: Loader
    loader_of: Callable[[int, int], Loader]
    lanes: range
    position: Position
    loss_monitor: LossMonitor
    timers: Timers
    checkpointer: Checkpointer
    watchdog: Watchdog
    stop: Stop

    @property
    def ends_early(self) -> bool:
        """Whether the run ends where it is, as its validations gain no more."""
        return self.position.early_stop.ends(self.settings.validation.early_stop)

    def save(self, clip1: float | None = None, last: bool = False) -> None:
        """Save a checkpoint of where the run is, in the background. A collective.

        `clip1`: of its validation now. `last`: the run ends or stops in order with it.
        """
        with self.timers.saving():
            whole, position = self.engine.state(), self.position
            values = {
                "step": position.step,
                "samples": position.step * self.settings.batch,
                "passed_over": position.passed_over,
                "best": position.best,
                "early_stop": asdict(position.early_stop),
                "watch": self.loss_monitor.state(),
                "scaler": whole.scaler,
                "clip1": clip1,
                "time": time.time(),
                "last": last,
                "interruptions": position.interruptions,
                "lost_seconds": position.lost_seconds,
            }
            self.checkpointer.save(Checkpoint(position.step, whole.model, whole.optimizer, whole.average, values))
