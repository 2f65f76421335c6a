"""A trial of a sweep: commands of its own, one after the other, watched by the validations of the run they make."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pretrain.evaluation.files import SUMMARY, evaluations_of
from pretrain.report.run_data import read_metrics
from sharding.base import environment
from sharding.base.child_process import exit_code
from sharding.base.exit_codes import DONE
from sharding.base.parent_death import dying_with

_LOOK_SECONDS = 0.3
_SAVE_SECONDS = 600.0  # that a command may take to save and end


@dataclass(frozen=True)
class Trial:
    """What a trial runs: its commands' lines, without `reelscale`, from the first to the last; and its run's folder.

    `directory`: where the commands run. `steps`: of the whole run. `needs_validation`: whether trials are compared, or
    ended early, by their validations.
    """

    number: int
    run: str
    commands: Sequence[Sequence[str]]
    settings: Mapping[str, Any]
    directory: str
    steps: int
    needs_validation: bool = True


class TrialFailed(Exception):
    """A command of a trial did not end well; says how, and where its output is."""


class TrialStopped(Exception):
    """A trial was asked to stop, and all of it is saved."""


@dataclass
class TrialProcess:
    """A trial at work in this process' child: the newest validation that was reported, and the command that runs.

    `asked`: whether the trial is to stop.
    """

    trial: Trial
    asked: Callable[[], bool]
    step: int = 0
    best: float | None = None
    _next: int = 0
    _child: subprocess.Popen[bytes] | None = None
    _read: list[dict[str, Any]] = field(default_factory=list)

    def report(self) -> dict[str, Any]:
        """The figures of the next validation, once there is one; or, when the last command has ended, the trial's.

        `step`, `clip1`, the highest so far, and `finished`; of a trial with an evaluation, then `video1`, too, and
        `clip1` is None where it was not validated.
        Raises TrialFailed, and TrialStopped.
        """
        while True:
            if self.asked():
                self.end()
                raise TrialStopped
            if event := self._next_validation():
                self.step = int(event["step"])
                clip1 = float(event["clip1"])
                self.best = clip1 if self.best is None else max(self.best, clip1)
                return {"step": self.step, "clip1": self.best, "finished": False}
            if self._child is None:
                self._start()
            elif (code := self._child.poll()) is not None:
                if event := self._next_validation():  # since the look above
                    continue
                self._child = None
                if code != DONE:
                    raise TrialFailed(f"{self._named()} ended with exit code {code}; see {self._log()}")
                self._next += 1
                if self._next == len(self.trial.commands):
                    return self._figures()
            time.sleep(_LOOK_SECONDS)

    def end(self) -> None:
        """Have the command save what it has and end; the trial goes on from there when it is run again."""
        if self._child is not None:
            self._child.terminate()
            exit_code(self._child, _SAVE_SECONDS)
            self._child = None

    def _start(self) -> None:
        log = self._log()
        log.parent.mkdir(parents=True, exist_ok=True)
        words = list(self.trial.commands[self._next])
        with log.open("ab") as out:
            self._child = subprocess.Popen(
                dying_with(os.getpid(), [sys.executable, "-m", "cluster.cli", *words]),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self.trial.directory,
                env=environment.of_a_stage(),
            )

    def _log(self) -> Path:
        """Where all that the commands print is kept, beside the run."""
        return Path(f"{self.trial.run}.log")

    def _named(self) -> str:
        return f"reelscale {self.trial.commands[self._next][0]}"

    def _next_validation(self) -> dict[str, Any] | None:
        """The first validation beyond the step that was reported, if there is one."""
        _, events, _ = read_metrics(Path(self.trial.run) / "metrics.jsonl")
        return next((each for each in events if each["step"] > self.step and each.get("clip1") is not None), None)

    def _figures(self) -> dict[str, Any]:
        """The figures of a trial that is done. Raises TrialFailed where it has none to be compared by."""
        if self.best is None and self.trial.needs_validation:
            what = "the run has no validation: its store has no good video in its split 'val'"
            raise TrialFailed(f"{what}; see {self._log()}")
        step = self.trial.steps if self.best is None else self.step
        figures: dict[str, Any] = {"step": step, "clip1": self.best, "finished": True}
        if len(self.trial.commands) > 1:
            newest = evaluations_of(Path(self.trial.run))[-1]
            figures["video1"] = float(json.loads((newest / SUMMARY).read_text())["video1"])
        return figures
