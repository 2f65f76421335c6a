"""A run's checkpoints, made and looked at as tests need them."""

from __future__ import annotations

from pathlib import Path

from pretrain.checkpoints.checkpoint import Checkpoint, CheckpointSettings
from pretrain.checkpoints.checkpointer import Checkpointer
from pretrain.checkpoints.manifest import CheckpointId


def begin_attempt(run: Path, settings: CheckpointSettings | None = None) -> int:
    """Number a start of the run, as a process of its own does."""
    return Checkpointer(run, settings).begin_attempt()


def started(run: Path, settings: CheckpointSettings | None = None, attempt: int | None = None) -> Checkpointer:
    """The checkpointer of a start of the run: a new one, or `attempt`."""
    checkpointer = Checkpointer(run, settings)
    if attempt is None:
        checkpointer.begin_attempt()
    else:
        checkpointer.attempt = attempt
    return checkpointer


def commit(run: Path, checkpoint: Checkpoint) -> Path:
    """Give a run a checkpoint, by a new start of it; returns the checkpoint's folder."""
    return started(run).commit(checkpoint)


def load_newest(run: Path, settings: CheckpointSettings | None = None) -> Checkpoint | None:
    """The newest sound checkpoint of a run, or None."""
    checkpointer = Checkpointer(run, settings)
    newest = checkpointer.newest()
    return checkpointer.load(newest) if newest else None


def load_run(run: Path) -> Checkpoint:
    """The newest sound checkpoint of a run that has one."""
    return Checkpointer(run).load()


def load_step(run: Path, step: int, attempt: int, settings: CheckpointSettings) -> Checkpoint:
    """The checkpoint that rank 0 chose, as another rank loads it."""
    return Checkpointer(run, settings).load(CheckpointId(attempt, step))
