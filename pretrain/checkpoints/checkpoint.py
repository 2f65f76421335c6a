"""Checkpoints: whole tensors in safetensors, committed whole or not at all, readable at any world size."""

import contextlib
import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from safetensors.torch import load_file, save_file

from pretrain.checkpoints.attempts import claim, newest_attempt, require_newest
from pretrain.checkpoints.folder import (
    checkpoints_of,
    committed,
    manifest_in,
    problem,
    prune,
    put_in_place,
    writing,
)
from pretrain.checkpoints.history import restore_history, write_history
from pretrain.checkpoints.identity import fetch_settings
from pretrain.checkpoints.manifest import MANIFEST, manifest_of, step_name
from pretrain.checkpoints.remote import Remote
from sharding.base.atomic import sync, temporary_beside
from sharding.base.errors import DamagedStore, UserError
from sharding.base.settings import Settings

log = logging.getLogger("reelscale")

_FETCHING = ".fetching-"
_DEAD_SECONDS = 3600.0  # a download into which nothing was written for so long is a dead process'


class CheckpointSettings(Settings):
    """When checkpoints are saved, and which are kept."""

    every_steps: Annotated[int, Field(ge=1, description="optimizer steps between two checkpoints")] = 1000
    keep: Annotated[
        int, Field(ge=1, description="newest checkpoints that are kept; the best by clip@1 is kept besides")
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
    parameter; state: JSON values, `clip1` among them if the step was validated.
    attempt: which start of the run saved it, known of a loaded one.
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


def begin_attempt(run: Path, settings: CheckpointSettings | None = None) -> int:
    """Number this start of the run, one more than any before; what older ones write is not committed any more.

    Raises UserError if the settings' store cannot be used, or if it holds another run of that name.
    """
    return claim(run, remote_of(run, settings))


def prepare_folder(run: Path, settings: CheckpointSettings) -> None:
    """Before a run begins on an empty disk: bring its settings, which tell what it began with, from the store."""
    remote = remote_of(run, settings)
    if remote:
        fetch_settings(run, remote)


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
        manifest = manifest_of(aside, checkpoint.step, attempt, checkpoint.state.get("clip1"))
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


def load_newest(run: Path, settings: CheckpointSettings | None = None) -> Checkpoint | None:
    """The newest undamaged checkpoint of a run, or None; a damaged one is skipped with a warning.

    It is the last of the last attempt that saved any. With settings, which only a run that goes on gives, the one in
    their store counts, too, and comes into the run's folder first; so does the metrics' history.
    Raises UserError if the store or the disk cannot be used, for another version's checkpoint, and if there are some
    and all are damaged: to begin anew would take the place of what may still be saved.
    """
    remote = remote_of(run, settings)
    here: dict[tuple[int, int], list[Path]] = {}
    for folder in committed(run):
        try:
            manifest = manifest_in(folder)
        except ValueError as error:
            _skip(folder, error)
        else:
            here.setdefault((manifest.attempt, manifest.step), []).append(folder)
    there = {(attempt, step) for step, attempt in remote.committed()} if remote else set()
    for attempt, step in sorted({*here, *there}, reverse=True):
        for folder in sorted(here.get((attempt, step), []), reverse=True):  # a replaced one last
            found = _sound(folder, step, attempt)
            if isinstance(found, Path):
                return _loaded(run, found, settings)
            _skip(folder, found)
        if remote and (attempt, step) in there:
            fetched = _fetched(run, remote, step, attempt)
            if isinstance(fetched, Path):
                return _loaded(run, fetched, settings)
            _skip(f"{remote.where}, step {step}, attempt {attempt}", fetched)
    if committed(run) or there:
        raise UserError(
            "none of the run's checkpoints is undamaged",
            str(checkpoints_of(run)),
            "move them away (and those in checkpoint.store) to begin the run anew",
        )
    return None


def has_checkpoint(run: Path, settings: CheckpointSettings) -> bool:
    """Whether a run has something to go on from, in its folder or in the settings' store."""
    remote = remote_of(run, settings)
    return bool(committed(run)) or bool(remote and any(remote.committed()))


def load_step(run: Path, step: int, attempt: int, settings: CheckpointSettings) -> Checkpoint:
    """The checkpoint that another rank chose, from the run's folder or else from the settings' store.

    Raises UserError if it is in neither.
    """
    folder = checkpoints_of(run) / step_name(step)
    replaced = [place for place in committed(run) if place != folder and place.name.endswith(folder.name)]
    judged = [_sound(place, step, attempt) for place in (folder, *replaced)]
    found = next((each for each in judged if isinstance(each, Path)), judged[0])
    remote = None if isinstance(found, Path) else remote_of(run, settings)
    if remote:
        found = _fetched(run, remote, step, attempt)
    if isinstance(found, Path):
        return load_checkpoint(found)
    raise UserError(
        f"rank 0 goes on from step {step} of attempt {attempt}, which this rank cannot read ({found})",
        str(folder),
        "put the run's folder on a file system that all machines share, or set checkpoint.store=URL",
    )


def load_checkpoint(folder: Path) -> Checkpoint:
    """Read a checkpoint's folder."""
    state = json.loads((folder / "state.json").read_text())
    average = folder / "average.safetensors"
    return Checkpoint(
        step=int(state["step"]),
        model=load_file(folder / "model.safetensors"),
        optimizer=load_file(folder / "optimizer.safetensors"),
        average=load_file(average) if average.exists() else {},
        state=state,
        attempt=manifest_in(folder).attempt,
    )


def load_run(run: Path) -> Checkpoint:
    """The newest checkpoint in the folder of a run that must have one. Raises UserError otherwise."""
    checkpoint = load_newest(run) if run.is_dir() else None
    if checkpoint is None:
        raise UserError("no checkpoint to start from", str(run), "train this run first, or name another run's folder")
    return checkpoint


def remote_of(run: Path, settings: CheckpointSettings | None, ask: bool = True) -> Remote | None:
    """The run's place in the settings' store, if they name one."""
    return Remote(settings.store, run, ask) if settings and settings.store else None


def _write(folder: Path, checkpoint: Checkpoint) -> None:
    save_file(_plain(checkpoint.model), folder / "model.safetensors")
    save_file(_plain(checkpoint.optimizer), folder / "optimizer.safetensors")
    if checkpoint.average:
        save_file(_plain(checkpoint.average), folder / "average.safetensors")
    (folder / "state.json").write_text(json.dumps(checkpoint.state, indent=1))


def _plain(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _sound(folder: Path, step: int, attempt: int) -> Path | str:
    """The folder if it is this checkpoint and undamaged, or what is wrong."""
    try:
        manifest = manifest_in(folder)
    except ValueError as error:
        return str(error)
    if (manifest.step, manifest.attempt) != (step, attempt):
        return f"it is step {manifest.step} of attempt {manifest.attempt}"
    return problem(folder, manifest) or folder


def _loaded(run: Path, folder: Path, settings: CheckpointSettings | None) -> Checkpoint:
    if settings:
        restore_history(run, folder)
    return load_checkpoint(folder)


def _fetched(run: Path, remote: Remote, step: int, attempt: int) -> Path | str:
    """The folder of a checkpoint that was downloaded, once for all ranks of a machine, or what is wrong with it."""
    folder = checkpoints_of(run)
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / step_name(step)
    aside = folder / f"{_FETCHING}{temporary_beside(final).name}"
    with _alone(folder):
        if isinstance(found := _sound(final, step, attempt), Path):
            return found
        for left in folder.glob(f"{_FETCHING}*"):
            if _idle_seconds(left) > _DEAD_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        aside.mkdir()
        try:
            manifest = remote.download(step, attempt, aside)
            wrong = problem(aside, manifest)
            if wrong is None:
                log.info("fetched the checkpoint at step %d from %s", step, remote.where)
                _settle(aside, final, step, attempt)
            return wrong or final
        except (ValueError, FileNotFoundError, DamagedStore) as error:
            return f"{type(error).__name__}: {error}"
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _settle(aside: Path, final: Path, step: int, attempt: int) -> None:
    """Give a download its name, unless another machine, whose locks are its own, has done so and may be reading it."""
    try:
        aside.rename(final)
    except OSError:  # something is there
        if not isinstance(_sound(final, step, attempt), Path):
            put_in_place(aside, final)
    else:
        sync(final.parent)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process of this machine at a time; any where the file system, as some of a network, has no locks."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _idle_seconds(folder: Path) -> float:
    """Since when nothing was written in a folder; 0 if it is gone."""
    try:
        return time.time() - max(path.stat().st_mtime for path in (folder, *folder.iterdir()))
    except FileNotFoundError:
        return 0.0


def _skip(where: object, why: object) -> None:
    log.warning("skipping the damaged checkpoint %s (%s)", where, why)
