"""Checkpoints of the store brought into a run's folder, once for all ranks that share it, and verified there."""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from pretrain.checkpoints.checkpoint_manifest import CheckpointId, step_name
from pretrain.checkpoints.folder import DamagedCheckpoint, checkpoints_of, put_in_place, require_sound
from pretrain.checkpoints.remote import Remote
from sharding.base.atomic import sync, temporary_beside
from sharding.base.errors import DamagedStore

log = logging.getLogger("reelscale")

_FETCHING = ".fetching-"
_DEAD_SECONDS = 3600.0  # a download into which nothing was written for so long is a dead process'


def fetch(run: Path, remote: Remote, which: CheckpointId) -> Path:
    """The folder of a checkpoint of the store, downloaded once for all ranks of a machine.

    Raises DamagedCheckpoint for one that is not whole in the store.
    """
    folder = checkpoints_of(run)
    folder.mkdir(parents=True, exist_ok=True)
    final = folder / step_name(which.step)
    aside = folder / f"{_FETCHING}{temporary_beside(final).name}"
    with _locked(folder):
        if _is_sound(final, which):
            return final
        for left in folder.glob(f"{_FETCHING}*"):
            if _idle_seconds(left) > _DEAD_SECONDS:
                shutil.rmtree(left, ignore_errors=True)
        aside.mkdir()
        try:
            remote.download(which, aside)
            require_sound(aside, which)
            log.info("fetched the checkpoint at step %d from %s", which.step, remote.where)
            _rename_download(aside, final, which)
            return final
        except (ValueError, FileNotFoundError, DamagedStore) as error:
            raise DamagedCheckpoint(f"{type(error).__name__}: {error}") from error
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _is_sound(folder: Path, which: CheckpointId) -> bool:
    try:
        require_sound(folder, which)
    except DamagedCheckpoint:
        return False
    return True


def _rename_download(aside: Path, final: Path, which: CheckpointId) -> None:
    """Give a download its name, unless another machine, whose locks are its own, has done so and may be reading it."""
    try:
        aside.rename(final)
    except OSError:  # the name is taken
        if not _is_sound(final, which):
            put_in_place(aside, final)
    else:
        sync(final.parent)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
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
