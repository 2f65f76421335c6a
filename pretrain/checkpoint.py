"""Checkpoints: whole tensors in safetensors, committed whole or not at all, readable at any world size."""

import hashlib
import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from sharding.errors import UserError
from sharding.settings import Settings

log = logging.getLogger("reelscale")

FORMAT = 1
_MANIFEST = "manifest.json"


class CheckpointSettings(Settings):
    """When to save and what to keep."""

    every_steps: Annotated[int, Field(ge=1, description="steps between two checkpoints")] = 1000
    keep: Annotated[int, Field(ge=1, description="newest checkpoints kept")] = 2


class Superseded(Exception):
    """A newer attempt of the run has begun; this one must not write any more."""


@dataclass(frozen=True)
class Checkpoint:
    """A run at a step. model: the network's state dict; optimizer: momentum by parameter; state: JSON values."""

    step: int
    model: dict[str, torch.Tensor]
    optimizer: dict[str, torch.Tensor]
    state: dict[str, Any]


def begin_attempt(run: Path) -> int:
    """Number this start of the run: one more than any before. A file made exclusively is the claim."""
    folder = run / "attempts"
    folder.mkdir(parents=True, exist_ok=True)
    number = newest_attempt(run) + 1
    while True:
        try:
            (folder / f"{number:06d}").touch(exist_ok=False)
            return number
        except FileExistsError:
            number += 1


def newest_attempt(run: Path) -> int:
    """The highest attempt number of the run; 0 if it never began."""
    return max((int(path.name) for path in (run / "attempts").glob("[0-9]*")), default=0)


def save_checkpoint(run: Path, attempt: int, checkpoint: Checkpoint, keep: int) -> Path:
    """Commit a checkpoint: written aside, digests in a manifest put last, then renamed into place.

    Raises Superseded, with nothing written in the run's name, if a newer attempt has begun.
    """
    folder = run / "checkpoints"
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / f".writing-{attempt:06d}-{checkpoint.step:08d}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    save_file(_plain(checkpoint.model), aside / "model.safetensors")
    save_file(_plain(checkpoint.optimizer), aside / "optimizer.safetensors")
    (aside / "state.json").write_text(json.dumps(checkpoint.state, indent=1))
    files = {path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)} for path in sorted(aside.iterdir())}
    manifest = {"format": FORMAT, "step": checkpoint.step, "attempt": attempt, "files": files}
    (aside / _MANIFEST).write_text(json.dumps(manifest, indent=1))
    for path in aside.iterdir():
        _sync(path)
    final = folder / f"step-{checkpoint.step:08d}"
    if newest_attempt(run) > attempt:
        shutil.rmtree(aside, ignore_errors=True)
        raise Superseded(f"attempt {attempt} of {run} was replaced by attempt {newest_attempt(run)}")
    shutil.rmtree(final, ignore_errors=True)
    aside.rename(final)
    _sync(folder)
    _prune(folder, final, keep, attempt)
    return final


def load_newest(run: Path) -> Checkpoint | None:
    """The newest undamaged checkpoint of a run, or None; a damaged one is skipped with a warning."""
    for folder in sorted((run / "checkpoints").glob("step-*"), reverse=True):
        problem = _problem(folder)
        if problem is None:
            return load_checkpoint(folder)
        log.warning("skipping the damaged checkpoint %s (%s)", folder, problem)
    return None


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's folder."""
    state = json.loads((folder / "state.json").read_text())
    return Checkpoint(
        step=int(state["step"]),
        model=load_file(folder / "model.safetensors"),
        optimizer=load_file(folder / "optimizer.safetensors"),
        state=state,
    )


def load_run(run: Path) -> Checkpoint:
    """The newest checkpoint of a run that must have one. Raises UserError otherwise."""
    checkpoint = load_newest(run) if run.is_dir() else None
    if checkpoint is None:
        raise UserError("no checkpoint to start from", str(run), "train this run first, or name another run's folder")
    return checkpoint


def _problem(folder: Path) -> str | None:
    """Why a checkpoint cannot be read, or None."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        if manifest["format"] != FORMAT:
            return f"format {manifest['format']}, this version reads {FORMAT}"
        for name, expected in manifest["files"].items():
            if _sha256(folder / name) != expected["sha256"]:
                return f"{name} does not have its sha256"
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        return f"{type(error).__name__}: {error}"
    return None


def _prune(folder: Path, saved: Path, keep: int, attempt: int) -> None:
    """Leave the newest `keep` up to the one just saved. What is beyond it was damaged, or this run had begun there."""
    steps = sorted(folder.glob("step-*"))
    for other in steps:
        if other > saved or other not in steps[: steps.index(saved) + 1][-keep:]:
            shutil.rmtree(other, ignore_errors=True)
    for left in folder.glob(".writing-*"):
        if int(left.name.split("-")[1]) < attempt:
            shutil.rmtree(left, ignore_errors=True)


def _plain(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
