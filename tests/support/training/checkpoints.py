"""A run's checkpoints, made and looked at as tests need them."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from pretrain.checkpoints.checkpoint import Checkpoint, CheckpointSettings
from pretrain.checkpoints.checkpoint_manifest import CheckpointId
from pretrain.checkpoints.checkpointer import Checkpointer
from sharding.storage.store import Store


def made(step: int, megabytes: float) -> Checkpoint:
    """A checkpoint of a step, every number of it that step's, half of it weights and half momentum."""
    weights = torch.full((round(megabytes * 2**20 / 8),), float(step))
    state = {"step": step, "clip1": step / 1000}
    return Checkpoint(step, {"weight": weights}, {"momentum_buffer:weight": weights.clone()}, {}, state)


def is_whole(checkpoint: Checkpoint) -> bool:
    """Whether all of a loaded checkpoint is of its step."""
    tensors = [*checkpoint.model.values(), *checkpoint.optimizer.values()]
    return len(tensors) == 2 and all(bool((tensor == float(checkpoint.step)).all()) for tensor in tensors)


def begin_run(run: Path, seed: int) -> None:
    """Write what a run of this seed begins with."""
    run.mkdir(parents=True, exist_ok=True)
    identity = {"seed": seed, "data": {"index": ["v1"]}}
    (run / "settings.json").write_text(json.dumps({"settings": {}, "identity": identity}))
    (run / "classes.json").write_text('["a"]')


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


def save_steps(run: Path, settings: CheckpointSettings, *steps: int, attempt: int | None = None) -> Checkpointer:
    """Save these steps by a start of the run, a new one or `attempt`; returns its checkpointer."""
    checkpointer = started(run, settings, attempt)
    for step in steps:
        checkpointer.save(made(step, 0.1))
    checkpointer.finish()
    return checkpointer


def newest(run: Path, settings: CheckpointSettings) -> tuple[int, int]:
    """(step, attempt) of the newest sound checkpoint, which is whole."""
    found = load_newest(run, settings)
    assert found is not None and is_whole(found)
    return found.step, found.attempt


def committed(store: Store, run: str) -> list[str]:
    """The places of a run's committed checkpoints in a store, `step-…/attempt-…`."""
    found = store.list(f"{run}/checkpoints/")
    return [
        path.removeprefix(f"{run}/checkpoints/").removesuffix("/manifest.json") for path in found if "manif" in path
    ]


def names(run: Path) -> list[str]:
    """What is in the folder of a run's checkpoints, by name."""
    return sorted(path.name for path in (run / "checkpoints").iterdir())
