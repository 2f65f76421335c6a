"""Saving while training goes on: a thread writes each checkpoint, here and in the store; a failure is not fatal."""

from __future__ import annotations

import logging
import threading
import time
from pathlib import Path

from safetensors import SafetensorError

from pretrain import metrics
from pretrain.checkpoints.attempts import highest, newest_attempt, require_newest
from pretrain.checkpoints.checkpoint import Checkpoint, CheckpointSettings, remote_of, save_checkpoint
from pretrain.checkpoints.folder import manifest_in
from sharding.base.errors import UserError

log = logging.getLogger("reelscale")

_REMEDY = "make room on the disk, then give the same command: it goes on from the checkpoint before"


class Saver:
    """Saves a run's checkpoints one after the other in a thread. Rank 0's alone."""

    def __init__(self, run: Path, attempt: int, settings: CheckpointSettings) -> None:
        """`attempt`: what `begin_attempt` gave."""
        self._run, self._attempt, self._settings = run, attempt, settings
        self._remote = remote_of(run, settings, ask=False)
        self._thread: threading.Thread | None = None
        self._fatal: BaseException | None = None
        self._failure: UserError | None = None

    def save(self, checkpoint: Checkpoint) -> None:
        """Have a checkpoint saved; returns at once unless the one before is still being written.

        Its tensors lie in host memory and are left alone from now on. Raises Superseded if a newer attempt has begun,
        also where only the checkpoint before found that out. One that cannot be saved costs a warning; those before
        it stay as they are.
        """
        self.wait()
        require_newest(self._attempt, newest_attempt(self._run), str(self._run))
        # At the end of a process that fails, what is half written may be left: it is no checkpoint.
        self._thread = threading.Thread(target=self._save, args=(checkpoint,), name="checkpoint", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait until all is saved. Raises Superseded, or UserError if the last checkpoint could not be."""
        self.wait()
        if self._failure:
            raise self._failure

    def wait(self) -> None:
        """Wait until nothing is being saved. Raises Superseded."""
        if self._thread:
            self._thread.join()
            self._thread = None
        if self._fatal:
            raise self._fatal

    def _save(self, checkpoint: Checkpoint) -> None:
        begin = time.perf_counter()
        try:
            self._failure = self._failed(checkpoint)
        except BaseException as error:  # the thread that trains is told
            self._fatal = error
            return
        if self._failure:
            metrics.CHECKPOINT_FAILURES.inc()
            log.warning("%s; training goes on", self._failure.what)
            return
        metrics.CHECKPOINTS.inc()
        metrics.CHECKPOINT_SECONDS.set(time.perf_counter() - begin)

    def _failed(self, checkpoint: Checkpoint) -> UserError | None:
        """Save a checkpoint; what went wrong with the disk or the store."""
        try:
            folder = save_checkpoint(self._run, self._attempt, checkpoint, self._settings.keep)
        except (OSError, SafetensorError) as error:
            what = f"the checkpoint at step {checkpoint.step} could not be saved: {error}"
            return UserError(what, str(self._run), _REMEDY)
        log.info("checkpoint %s", folder)
        try:
            self._keep_in_store(folder)
        except (UserError, OSError) as error:
            told = error if isinstance(error, UserError) else UserError(str(error), str(folder), "look after the disk")
            what = f"the checkpoint at step {checkpoint.step} could not be kept in the store: {told.what}"
            return UserError(what, told.where, f"{told.remedy}; it is in {folder}")
        return None

    def _keep_in_store(self, folder: Path) -> None:
        if not self._remote:
            return
        manifest = manifest_in(folder)
        self._remote.upload(folder, manifest, self._fence)
        self._remote.prune(manifest, self._settings.keep)
        log.info("checkpoint %s, step %d", self._remote.where, manifest.step)

    def _fence(self) -> None:
        if self._remote:
            require_newest(self._attempt, highest(self._remote.attempts()), self._remote.where)
