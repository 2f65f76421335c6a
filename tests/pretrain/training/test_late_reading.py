"""The loop sends a step before it reads the one before, unless something must see the run right after it."""

from __future__ import annotations

import contextlib
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pretrain.checkpoints.checkpoint import Checkpoint
from pretrain.checkpoints.checkpoint_manifest import CheckpointId
from pretrain.engine.distributed import World
from pretrain.resilience.loss_monitor import LossMonitor
from pretrain.settings import TrainSettings
from pretrain.training import trainer
from pretrain.training.callbacks import Callback
from pretrain.training.state import Position, TrainState
from pretrain.training.step import StepClock, StepReport

CPU = torch.device("cpu")
STEPS, CHECKPOINT, VALIDATION = 12, 5, 7


def settings(**changes: Any) -> TrainSettings:
    """A run of twelve steps, a checkpoint at the 5th and 10th, a validation at the 7th, none logged in between."""
    plain: dict[str, Any] = {
        "lanes": 1,
        "lane_batch": 2,
        "data": {"store": "nowhere"},
        "schedule": {"epoch_clips": 2, "epochs": STEPS},
        "checkpoint": {"every_steps": CHECKPOINT},
        "validation": {"every_steps": VALIDATION},
        "health": {"skipped_in_a_row": 2},
    }
    return TrainSettings.model_validate(plain | changes)


class Run:
    """Stand-ins for all that a step needs, which note what is done in which order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, unsound: tuple[int, ...] = (), stop_in: int = 0) -> None:
        self.done: list[str] = []
        self.position, self.shown, self.unsound = Position(), list[int](), unsound
        self.stop = SimpleNamespace(wanted=False)
        self.stop_in = stop_in
        read = StepReport.read

        def reading(report: StepReport) -> None:
            self.done.append(f"read {report.step}")
            read(report)

        monkeypatch.setattr(StepReport, "read", reading)
        monkeypatch.setattr(trainer, "network_input", lambda planes, clip, out: planes)
        monkeypatch.setattr(trainer, "seed_dropout", lambda *_: None)

    def train(self, settings: TrainSettings) -> str:
        clips = [SimpleNamespace(planes=number, targets=torch.eye(2)) for number in range(1, 40)]
        engine = SimpleNamespace(
            model=None, forward_waits=False, was_overflow=False, backward=lambda loss: None, forward=self.forward,
            step=self.step, verdict=None, set_learning_rate=lambda rate: None, input_buffer=None,
            record_verdict=self.record_verdict, load=self.load,
        )  # fmt: skip
        self.engine = engine
        state: Any = SimpleNamespace(
            settings=settings, world=World(0, 1, CPU), engine=engine, position=self.position, lanes=range(1),
            timers=SimpleNamespace(clock=StepClock(CPU)), loader=Loader([[each] for each in clips]), stop=self.stop,
            loss_monitor=LossMonitor(settings.health), checkpointer=self.checkpointer(),
            watchdog=SimpleNamespace(patience=lambda seconds: contextlib.nullcontext()),
            ends_early=False, run=SimpleNamespace(keep_up_to=lambda step: self.done.append(f"keep up to {step}")),
        )  # fmt: skip
        return trainer.run_steps(state, [self.callback()])

    def forward(self, number: Any) -> torch.Tensor:
        self.shown.append(number)
        return torch.eye(2)

    def step(self) -> None:
        taken = self.shown[-1] not in self.unsound
        self.engine.verdict = torch.tensor([float(taken), 1.0 if taken else math.inf])
        self.stop.wanted = self.position.step + 1 == self.stop_in or self.stop.wanted
        self.done.append(f"sent {self.position.step + 1}")

    def record_verdict(self, finite: bool) -> None:
        self.done.append("sound" if finite else "unsound")

    def checkpointer(self) -> Any:
        """Of a run whose one checkpoint is at step 0."""
        saved = CheckpointId(attempt=1, step=0)
        checkpoint = Checkpoint(0, {}, {}, {}, {}, attempt=1)
        return SimpleNamespace(
            wait=lambda: self.done.append("saved"), newest=lambda: saved, load=lambda which: checkpoint,
            write_beside=lambda name, data: None,
        )  # fmt: skip

    def load(self, _: Any) -> None:
        self.done.append(f"back from {self.position.step}")

    def callback(self) -> Callback:
        class Noting:
            def after_step(callback, state: TrainState, report: StepReport) -> None:
                self.done.append(f"callbacks {report.step}{' last' if report.last else ''}")

        return Noting()


class Loader(list[Any]):
    """Batches, up to `last` of them."""

    last = STEPS

    def __iter__(self) -> Any:
        number = 0
        while number < self.last:
            yield self[number]
            number += 1


def steps(done: list[str], *kinds: str) -> list[str]:
    return [each for each in done if each.split()[0] in kinds]


def test_a_step_is_read_when_the_next_one_has_been_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    assert run.train(settings()) == "finished"
    due = {1, CHECKPOINT, 2 * CHECKPOINT, VALIDATION, STEPS}  # and the first, whose figures are waited for
    expected: list[str] = []
    for step in range(1, STEPS + 1):
        expected.append(f"sent {step}")
        if step - 1 not in due and step > 1:
            expected += [f"read {step - 1}", f"callbacks {step - 1}"]
        if step in due:
            expected += [f"read {step}", f"callbacks {step}{' last' if step == STEPS else ''}"]
    assert steps(run.done, "sent", "read", "callbacks") == expected
    assert run.done.count("sound") == STEPS and run.shown == list(range(1, STEPS + 1))


def test_in_fp16_every_step_is_read_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(monkeypatch)
    assert run.train(settings(engine={"precision": "fp16"})) == "finished"
    assert steps(run.done, "sent", "read") == [f"{word} {step}" for step in range(1, 13) for word in ("sent", "read")]


@pytest.mark.parametrize(("asked", "last"), [(1, 1), (2, 3), (3, 4), (4, 5), (5, 5), (11, 12)])
def test_a_stop_comes_with_the_step_that_was_sent_by_then(
    monkeypatch: pytest.MonkeyPatch, asked: int, last: int
) -> None:
    """What is saved is the state that all ranks have, and every sample shown is part of it."""
    run = Run(monkeypatch, stop_in=asked)
    assert run.train(settings()) == ("stopped" if last < STEPS else "finished")
    assert run.done[-1] == f"callbacks {last} last" and run.position.step == last
    assert run.shown == list(range(1, last + 1))
    assert [each for each in run.done if each.endswith(" last")] == [f"callbacks {last} last"]


def test_a_step_sent_before_training_was_found_unsound_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its samples come again, as if it had not been sent: as where every step is read at once."""
    run = Run(monkeypatch, unsound=(2, 3))
    assert run.train(settings()) == "finished"
    back = run.done.index("back from 3")
    assert run.done[back - 6 : back] == ["unsound", "callbacks 2", "sent 4", "read 3", "unsound", "saved"]
    assert "callbacks 3" not in run.done[:back] and "read 4" not in run.done[:back]
    assert run.shown == [1, 2, 3, 4, 4, *range(5, STEPS + 4)]
    assert run.position.passed_over == 3

    at_once = Run(monkeypatch, unsound=(2, 3))
    at_once.train(settings(engine={"precision": "fp16"}))
    assert at_once.position == run.position and sorted(set(at_once.shown)) == sorted(set(run.shown))
