"""Saving while training goes on: a thread writes one checkpoint after the other; a failure is not fatal."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from pretrain import metrics
from pretrain.checkpoints.checkpoint import Checkpoint
from sharding.base.errors import UserError

log = logging.getLogger("reelscale")


class AsyncSaver:
    """Saves checkpoints in a thread, one at a time."""

    def __init__(self, save: Callable[[Checkpoint], UserError | None]) -> None:
        """`save(checkpoint)`: saves it; returns why it could not be, where training may go on without it."""
        self._save = save
        self._thread: threading.Thread | None = None
        self._fatal: BaseException | None = None
        self._failure: UserError | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Have a checkpoint saved, which is left alone from now on. Returns at once; `wait` comes before the next."""
        # At the end of a process that fails, what is half written may be left: it is no checkpoint.
        self._thread = threading.Thread(target=self._run, args=(checkpoint,), name="checkpoint", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Wait until nothing is being saved. Raises what `save` raised, if it did, from then on at each call."""
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._fatal:
            raise self._fatal

    def finish(self) -> None:
        """Wait until all is saved. Raises as `wait`, or why the last checkpoint could not be saved."""
        self.wait()
        if self._failure:
            raise self._failure

    def _run(self, checkpoint: Checkpoint) -> None:
        begin = time.perf_counter()
        try:
            self._failure = self._save(checkpoint)
        except BaseException as error:  # raised in the thread that trains, by `wait`
            self._fatal = error
            return
        if self._failure:
            metrics.CHECKPOINT_FAILURES.inc()
            log.warning("%s; training goes on", self._failure.what)
            return
        metrics.CHECKPOINTS.inc()
        metrics.CHECKPOINT_SECONDS.observe(time.perf_counter() - begin)
        metrics.CHECKPOINT_TIME.set_to_current_time()
