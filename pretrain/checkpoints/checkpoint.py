"""Checkpoints: whole tensors in safetensors, committed whole or not at all, readable at any world size."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file

from pretrain.checkpoints.attempts import newest_attempt, require_newest
from pretrain.checkpoints.checkpoint_manifest import MANIFEST, checkpoint_manifest_of, step_name
from pretrain.checkpoints.folder import checkpoints_of, manifest_in, prune, put_in_place, writing
from pretrain.checkpoints.history import write_history
from sharding.base.atomic import sync
from sharding.base.settings import Settings, unit

CheckpointChoice = Annotated[
    Literal["newest", "best"],
    Field(description="which of the run's checkpoints: the newest, or the best by the clip@1 of its validations"),
]


class CheckpointSettings(Settings):
    """When checkpoints are saved, and which are kept."""

    every_steps: Annotated[
        int, Field(json_schema_extra=unit("steps"), ge=1, description="optimizer steps between two checkpoints")
    ] = 1000
    keep: Annotated[
        int,
        Field(
            json_schema_extra=unit("checkpoints"),
            ge=1,
            description="newest checkpoints that are kept; the best by clip@1 is kept besides",
        ),
    ] = 2
    store: Annotated[
        str | None,
        Field(
            description="directory or URL to copy checkpoints to, below the run's name, so that any machine can "
            "continue the run; null: none are copied"
        ),
    ] = None


@dataclass(frozen=True)
class Checkpoint:
    """A run at a step.

    model: the network's state dict; optimizer: by "<state>:<parameter>"; average: weights averaged over steps, by
    parameter; state: JSON values, `clip1` among them if the step was validated; attempt: which start of the run saved
    it, of a loaded one.
    """

    step: int
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]
    state: dict[str, Any]
    attempt: int = 0

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The network to use: its state dict, with averaged weights where there are some."""
        return {**self.model, **self.average}


def save_checkpoint(run: Path, attempt: int, checkpoint: Checkpoint, keep: int) -> Path:
    """Commit a checkpoint: written aside, digests in a manifest put last, then renamed into place.

    Raises Superseded if a newer attempt has begun; OSError or SafetensorError if it cannot be written. Then nothing
    of it is left.
    """
    checkpoints_of(run).mkdir(parents=True, exist_ok=True)
    aside = writing(run, attempt, checkpoint.step)
    shutil.rmtree(aside, ignore_errors=True)
    try:
        aside.mkdir()
        _write(aside, checkpoint)
        write_history(run, checkpoint.step, aside)
        manifest = checkpoint_manifest_of(aside, checkpoint.step, attempt, checkpoint.state.get("clip1"))
        (aside / MANIFEST).write_bytes(manifest.encoded())
        for path in (*aside.iterdir(), aside):
            sync(path)
        require_newest(attempt, newest_attempt(run), str(run))
        final = checkpoints_of(run) / step_name(checkpoint.step)
        put_in_place(aside, final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    prune(run, manifest, keep)
    return final


def load_checkpoint(folder: Path, optimizer: bool = True) -> Checkpoint:
    """The checkpoint in a folder, as it lies there; without `optimizer`, that state is not read and is {}."""
    state = json.loads((folder / "state.json").read_text())
    average = folder / "average.safetensors"
    return Checkpoint(
        step=int(state["step"]),
        model=load_file(folder / "model.safetensors"),
        optimizer=load_file(folder / "optimizer.safetensors") if optimizer else {},
        average=load_file(average) if average.exists() else {},
        state=state,
        attempt=manifest_in(folder).attempt,
    )


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    save_file(_plain(checkpoint.model), folder / "model.safetensors")
    save_file(_plain(checkpoint.optimizer), folder / "optimizer.safetensors")
    if checkpoint.average:
        save_file(_plain(checkpoint.average), folder / "average.safetensors")
    (folder / "state.json").write_text(json.dumps(checkpoint.state, indent=1))


def _plain(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
