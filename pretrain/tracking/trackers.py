"""A run's figures handed to experiment trackers by a thread of its own, so that none holds up training."""

from __future__ import annotations

import importlib.util
import logging
import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from pretrain.tracking.settings import TrackingSettings
from pretrain.tracking.tensorboard import TensorBoardTracker
from pretrain.tracking.weights_and_biases import WandbTracker
from sharding.base.errors import UserError

log = logging.getLogger("reelscale")

_WAITING = 10_000  # events that wait for a tracker at most
_END_SECONDS = 60.0  # that a tracker may take to send what is left


class Tracker(Protocol):
    """What shows a run's figures elsewhere. May be slow, and may raise."""

    @property
    def name(self) -> str:
        """The tracker's name, for messages."""

    def event(self, kind: str, values: dict[str, Any]) -> None:
        """Take figures of a kind ("train", "validation") at the step `values["step"]`; None for one not finite."""

    def rewind(self, step: int) -> None:
        """Take back what is of a later step: the run goes on from this one."""

    def close(self, succeeded: bool) -> None:
        """Send what is left. `succeeded` says whether the run ended or stopped in order."""


class InBackground:
    """Hands events to a tracker in their order, by a thread: whoever has them never waits for it.

    What a tracker raises is logged, and it gets no more; events beyond what may wait are left out, and that is logged.
    """

    def __init__(self, tracker: Tracker, waiting: int = _WAITING) -> None:
        self._tracker, self._is_lossy = tracker, False
        self._queue: queue.Queue[Callable[[], None] | None] = queue.Queue(waiting)
        self._thread = threading.Thread(target=self._work, name=f"to {tracker.name}", daemon=True)
        self._thread.start()

    def event(self, kind: str, values: dict[str, Any]) -> None:
        """See `Tracker`."""
        self._put(lambda: self._tracker.event(kind, values))

    def rewind(self, step: int) -> None:
        """See `Tracker`."""
        self._put(lambda: self._tracker.rewind(step))

    def close(self, succeeded: bool, seconds: float = _END_SECONDS) -> None:
        """Wait for what is left to be sent, at most so many seconds."""
        self._put(lambda: self._tracker.close(succeeded))
        self._put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            log.warning("%s has not taken all figures within %.0f s: some may be missing there", self._name, seconds)

    @property
    def _name(self) -> str:
        return self._tracker.name

    def _put(self, work: Callable[[], None] | None) -> None:
        try:
            self._queue.put_nowait(work)
        except queue.Full:
            if not self._is_lossy:
                log.warning("%s is too slow: figures are left out there; metrics.jsonl has them all", self._name)
            self._is_lossy = True

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                work()
            except Exception as error:  # of a library, its disk or its network: a run is worth more than its picture
                log.warning("%s takes no figures: %s; training goes on without it", self._name, error)
                return


@contextmanager
def trackers(
    settings: TrackingSettings, folder: Path, run_id: str, config: dict[str, Any], begins: bool
) -> Iterator[list[InBackground]]:
    """The trackers that are asked for, ready for the figures of the run `run_id` in `folder`, until the `with` ends.

    Raises UserError where the run begins and a tracker's package or key is missing; one that goes on goes on without.
    """
    ready = [InBackground(tracker) for tracker in _opened(settings, folder, run_id, config, begins)]
    succeeded = False
    try:
        yield ready
        succeeded = True
    finally:
        for tracker in ready:
            tracker.close(succeeded)


def require_packages(settings: TrackingSettings) -> None:
    """Raises UserError unless the packages of the trackers that are asked for are installed here."""
    for package in settings.wanted:
        if importlib.util.find_spec(package) is None:
            raise UserError(
                f"the package {package} is not installed",
                f"tracking.{package}",
                f"pip install 'reelscale[{package}]' on every machine that has a rank, or leave the setting out",
            )


def _opened(
    settings: TrackingSettings, folder: Path, run_id: str, config: dict[str, Any], begins: bool
) -> Iterator[Tracker]:
    try:
        require_packages(settings)
        if settings.tensorboard:
            yield TensorBoardTracker(folder / "tensorboard", config)
        if settings.wandb is not None:
            yield WandbTracker(settings.wandb, folder, run_id, config)
    except UserError as error:
        if begins:
            raise
        log.warning("%s (%s): training goes on without it; %s", error.what, error.where, error.remedy)
