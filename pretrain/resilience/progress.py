"""Whether this process gets on: what it is doing, since when, and how long it may; `cluster.monitor` serves it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from sharding.base.settings import Seconds, Settings

Phase = Literal["starting", "working", "validating", "saving", "waiting"]
Unit = Literal["step", "video"]

_LEAST_SECONDS = 30.0  # that a step may take, however short those before it were
_TIMES = 20.0  # as long as those before it may a step take
_WEIGHT = 0.1  # of the last step in the mean of all
_UNPACED: dict[Unit, float] = {"step": 300.0, "video": 1800.0}  # where no mean is known, or says little


class ReadinessSettings(Settings):
    """How long a process may take over what it is doing until it counts as not getting on."""

    start_seconds: Annotated[
        Seconds, Field(description="seconds until the first step is taken, or the first video")
    ] = 1800
    stall_seconds: Annotated[
        Seconds | None,
        Field(
            description="seconds without a step, or a video sharded or scored; unless named: of steps 20 times their "
            "mean and at least 30 (300 before the second), of videos 1800"
        ),
    ] = None
    validation_seconds: Annotated[Seconds, Field(description="seconds that a validation may take")] = 3600
    saving_seconds: Annotated[Seconds, Field(description="seconds that training may stand still for a checkpoint")] = (
        900
    )
    waiting_seconds: Annotated[
        Seconds, Field(description="seconds that a store which is out of reach is waited for")
    ] = 60

    def limit(self, stage: Stage, unit: Unit) -> float:
        """The seconds that a stage may last, work of that unit without any of it being done."""
        unpaced = _UNPACED[unit]
        paced = max(_LEAST_SECONDS, _TIMES * stage.pace) if unit == "step" and stage.pace is not None else unpaced
        limits: dict[Phase, float] = {
            "starting": self.start_seconds,
            "working": self.stall_seconds or paced,
            "validating": self.validation_seconds,
            "saving": self.saving_seconds,
            "waiting": self.waiting_seconds,
        }
        return limits[stage.phase]


@dataclass(frozen=True)
class Stage:
    """What a process is doing, and since when, by a clock that never goes back; or when it last got something done.

    `pace`: the mean seconds from one unit of work to the next, as far as there were two.
    """

    phase: Phase
    since: float
    pace: float | None = None


def stall(stage: Stage, unit: Unit, now: float, limits: ReadinessSettings) -> str | None:
    """Why a process in this stage does not get on, in one line; None where it does."""
    seconds, limit = now - stage.since, limits.limit(stage, unit)
    if seconds <= limit:
        return None
    if stage.phase == "working":
        return f"no {unit} for {seconds:.0f} s (limit {limit:.0f} s)"
    return f"{_DOES[stage.phase]} for {seconds:.0f} s (limit {limit:.0f} s)"


_DOES: dict[Phase, str] = {
    "starting": "starting",
    "validating": "validating",
    "saving": "standing still for a checkpoint",
    "waiting": "waiting for a store that is out of reach",
}


class Progress:
    """How far a process is, as it notes itself; read by other threads, without a lock."""

    def __init__(self, unit: Unit, clock: Callable[[], float] = time.monotonic) -> None:
        """`unit`: what its work is counted in."""
        self.unit: Unit = unit
        self._clock = clock
        self.begin()

    def begin(self) -> None:
        """Note that the process begins anew."""
        self._stage = Stage("starting", self._clock())

    def advance(self) -> None:
        """Note that a step was taken, or a video done."""
        stage, now = self._stage, self._clock()
        pace = stage.pace
        if stage.phase == "working":
            seconds = now - stage.since
            pace = seconds if pace is None else pace + _WEIGHT * (seconds - pace)
        self._stage = Stage("working", now, pace)

    def wait(self) -> None:
        """Note that work waits for a store out of reach; the wait is over with the next step."""
        if self._stage.phase == "working":
            self._enter("waiting")

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Inside the `with`, the process is in this phase; after it in the one before, as if that had just begun."""
        before = self._stage.phase
        self._enter(phase)
        try:
            yield
        finally:
            self._enter(before)

    def stall(self, limits: ReadinessSettings) -> str | None:
        """Why the process does not get on, in one line; None where it does."""
        return stall(self._stage, self.unit, self._clock(), limits)

    def describe(self) -> str:
        """What the process is doing, in one line."""
        stage = self._stage
        seconds = self._clock() - stage.since
        if stage.phase == "working":
            return f"the last {self.unit} {seconds:.0f} s ago"
        return f"{_DOES[stage.phase]} for {seconds:.0f} s"

    def _enter(self, phase: Phase) -> None:
        self._stage = Stage(phase, self._clock(), self._stage.pace)


TRAINING = Progress("step")  # of the run that this process is a rank of
