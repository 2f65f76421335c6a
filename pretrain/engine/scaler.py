"""The factor that keeps fp16's gradients above its smallest numbers: found by trial, as the run goes."""

from __future__ import annotations

from collections.abc import Mapping


class LossScale:
    """Halved by a step whose gradients are not finite, doubled after 2000 in a row that are (torch's GradScaler's way).

    `factor` is a power of two, so that scaling by it and back rounds nothing. It is the host's number, since a
    step's verdict is the host's anyway: no device memory, no further wait. Where the precision needs none it stays 1.
    """

    patience = 2000
    largest, smallest = 2.0**24, 2.0**-24

    def __init__(self, needed: bool) -> None:
        self._needed = needed
        self.factor = 2.0**16 if needed else 1.0
        self._good = 0

    def after_step(self, finite: bool) -> None:
        """Learn from a step's verdict."""
        if not self._needed:
            return
        self._good = self._good + 1 if finite else 0
        if not finite:
            self.factor = max(self.factor / 2, self.smallest)
        elif self._good == self.patience:
            self.factor, self._good = min(self.factor * 2, self.largest), 0

    def state(self) -> dict[str, float]:
        """What `load` takes; empty where no scale is needed."""
        return {"factor": self.factor, "good_steps": float(self._good)} if self._needed else {}

    def load(self, state: Mapping[str, float]) -> None:
        """Go on from `state`; from the beginning where it is empty, as a run's is that had another precision."""
        if self._needed and state:
            self.factor, self._good = float(state["factor"]), int(state["good_steps"])
