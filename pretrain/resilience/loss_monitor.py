"""Is training still sound? Losses that jump, and steps left out in a row: a pure judge whose state is a few numbers."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from sharding.base.settings import Settings, unit

Verdict = Literal["fine", "spike", "rollback"]

_NORMAL = 1.4826  # a normal distribution's σ in its median absolute deviations
_LEAST = 0.01  # of the median: a smaller σ is none


class HealthSettings(Settings):
    """Which losses count as unsound, and what is done about them."""

    spike_sigmas: Annotated[
        float | None,
        Field(
            gt=0,
            description="standard deviations above the median of the last losses from which a loss is a spike; "
            "null: no loss is",
        ),
    ] = 6.0
    spike_window: Annotated[
        int,
        Field(
            json_schema_extra=unit("steps"),
            ge=4,
            le=10**6,
            description="last losses, one a step, with which a loss is compared",
        ),
    ] = 200
    on_spike: Annotated[
        Literal["warn", "rollback"],
        Field(description="warn: log it and go on; rollback: return to the newest checkpoint and skip the clips since"),
    ] = "warn"
    skipped_in_a_row: Annotated[
        int,
        Field(
            json_schema_extra=unit("steps"),
            ge=1,
            description="steps in a row without a finite gradient or loss after which to roll back",
        ),
    ] = 10


class LossMonitor:
    """Judges each step by the losses before it; nothing is a spike before the window is half full.

    σ is taken from the median absolute deviation. So spikes that enter the window hardly move it, and a loss that
    stays high is the new measure after half a window.
    """

    def __init__(self, settings: HealthSettings) -> None:
        self._settings = settings
        self._losses: deque[float] = deque(maxlen=settings.spike_window)
        self._skipped = 0

    def step(self, loss: float, skipped: bool) -> Verdict:
        """The verdict on a step of this loss; `skipped`: the optimizer left it out.

        Such a loss, and one that is not finite, counts as a step left out and tells nothing of later ones.
        """
        if skipped or not math.isfinite(loss):
            self._skipped += 1
            if self._skipped < self._settings.skipped_in_a_row:
                return "fine"
            self._skipped = 0
            return "rollback"
        self._skipped = 0
        spike = self._is_spike(loss)
        self._losses.append(loss)
        if spike:
            return "rollback" if self._settings.on_spike == "rollback" else "spike"
        return "fine"

    def state(self) -> dict[str, Any]:
        """JSON numbers from which `load` goes on as if nothing had happened."""
        return {"losses": list(self._losses), "skipped": self._skipped}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over a state, of which a smaller window keeps the last losses."""
        self._losses = deque(state["losses"], maxlen=self._settings.spike_window)
        self._skipped = state["skipped"]

    def _is_spike(self, loss: float) -> bool:
        sigmas = self._settings.spike_sigmas
        if sigmas is None or 2 * len(self._losses) < self._settings.spike_window:
            return False
        middle = statistics.median(self._losses)
        deviation = _NORMAL * statistics.median(abs(each - middle) for each in self._losses)
        return loss > middle + sigmas * max(deviation, _LEAST * abs(middle))
