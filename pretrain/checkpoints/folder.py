"""Checkpoints in a run's folder: listed, verified, put in place in one step, taken away in one step."""

from __future__ import annotations

import functools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from pretrain.checkpoints.checkpoint_manifest import (
    MANIFEST,
    CheckpointId,
    CheckpointManifest,
    read_checkpoint_manifest,
)
from pretrain.checkpoints.retention import to_discard
from sharding.base.atomic import remove_folder, replace_folder, sha256_of
from sharding.base.errors import UserError

T = TypeVar("T")

_TRIES, _PAUSE_SECONDS = 4, 1.0  # of reading what is there
_WRITING, _REPLACED, _REMOVED = ".writing-", ".replaced-", ".removed-"


class DamagedCheckpoint(Exception):
    """A checkpoint is not whole, or not the one that was looked for; says in what."""


def checkpoints_of(run: Path) -> Path:
    """The folder of a run's checkpoints."""
    return run / "checkpoints"


def writing(run: Path, attempt: int, step: int) -> Path:
    """The folder that an attempt writes a checkpoint in before it has its name."""
    return checkpoints_of(run) / f"{_WRITING}{attempt:06d}-{step:08d}"


def committed(run: Path) -> list[Path]:
    """The folders of all committed checkpoints, damaged ones with them, in no order.

    One that a save of the same step was replacing when it was killed is among them.
    """
    folder = checkpoints_of(run)
    return [*folder.glob("step-*"), *folder.glob(f"{_REPLACED}step-*")]


def manifest_in(folder: Path) -> CheckpointManifest:
    """A checkpoint's manifest.

    Raises ValueError if it is missing or damaged, UserError for another version's, or if the disk does not give it.
    """
    try:
        data = _patiently((folder / MANIFEST).read_bytes, folder)
    except FileNotFoundError as error:
        raise ValueError("it has no manifest") from error
    return read_checkpoint_manifest(data, str(folder))


def require_sound(folder: Path, which: CheckpointId) -> None:
    """Read all of a folder that is to hold this checkpoint. Raises DamagedCheckpoint unless every file has its sha256.

    Raises UserError for another version's, or if the disk does not give what is there.
    """
    try:
        manifest = manifest_in(folder)
    except ValueError as error:
        raise DamagedCheckpoint(str(error)) from error
    if manifest.id != which:
        raise DamagedCheckpoint(f"it is step {manifest.step} of attempt {manifest.attempt}")
    for name, expected in manifest.files.items():
        try:
            digest = _patiently(functools.partial(sha256_of, folder / name), folder)
        except FileNotFoundError as error:
            raise DamagedCheckpoint(f"{name} is not there") from error
        if digest != expected.sha256:
            raise DamagedCheckpoint(f"{name} does not have its sha256")


def _patiently(read: Callable[[], T], folder: Path) -> T:
    """What `read` returns, tried for some seconds: a mount that comes and goes is no damage.

    Raises FileNotFoundError, or UserError for another error that stays.
    """
    for left in reversed(range(_TRIES)):
        try:
            return read()
        except (FileNotFoundError, NotADirectoryError) as error:
            raise FileNotFoundError(str(error)) from error
        except OSError as error:
            if not left:
                raise UserError(
                    f"a checkpoint cannot be read: {error.strerror or error}",
                    str(folder),
                    "look after the disk or the mount; move this folder away to go on from the checkpoint before",
                ) from error
            time.sleep(_PAUSE_SECONDS)
    raise AssertionError


def put_in_place(aside: Path, final: Path) -> None:
    """Rename a written checkpoint. One that has its name already can be loaded until the new one can."""
    replace_folder(aside, final, final.with_name(f"{_REPLACED}{final.name}"))


def prune(run: Path, saved: CheckpointManifest, keep: int) -> None:
    """Remove the checkpoints that are not to be kept (`to_discard`), but leave what cannot be read just now.

    Another version's are left, too.
    """
    manifests: dict[Path, CheckpointManifest | None] = {}
    for path in checkpoints_of(run).glob("step-*"):
        try:
            manifest = read_checkpoint_manifest((path / MANIFEST).read_bytes(), str(path))
            newer = manifest.attempt > saved.attempt
            # By length: to read it all would take too long at each save.
            whole = newer or all((path / name).stat().st_size == of.bytes for name, of in manifest.files.items())
        except (ValueError, FileNotFoundError):
            manifests[path] = None
        except (OSError, UserError):
            continue  # it may be sound
        else:
            manifests[path] = manifest if whole else None
    for path in to_discard(manifests, saved, keep):
        _discard(path)
    _sweep(run, saved.attempt)


def _discard(folder: Path) -> None:
    """Remove a checkpoint; one that cannot be removed is tried again by the next save."""
    remove_folder(folder, folder.with_name(f"{_REMOVED}{folder.name}"))


def _sweep(run: Path, attempt: int) -> None:
    """Remove what killed processes left: of this attempt only what it does not need any more."""
    for left in checkpoints_of(run).glob(f"{_WRITING}*"):
        if int(left.name.split("-")[1]) < attempt:
            shutil.rmtree(left, ignore_errors=True)
    for pattern in (f"{_REPLACED}*", f"{_REMOVED}*"):
        for left in checkpoints_of(run).glob(pattern):
            shutil.rmtree(left, ignore_errors=True)
