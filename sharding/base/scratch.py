"""Temporary folders that do not outlive their process: one whose process was killed is removed by the next."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

from sharding.base import environment
from sharding.base.errors import UserError

_NAME = "reelscale-scratch-"
_LOCK = ".lock"


@contextlib.contextmanager
def scratch(purpose: str) -> Iterator[Path]:
    """An empty folder in the folder for temporary files (TMPDIR), removed when the `with` ends.

    `purpose` is part of its name. A lock file beside it is locked by this process; folders of this user whose lock no
    process holds any more are removed first. Raises UserError if no folder can be made.
    """
    try:
        parent = Path(tempfile.gettempdir())
        _sweep(parent)
        lock, handle = _new_lock(parent, purpose)
        folder = lock.with_suffix("")
        try:
            folder.mkdir(mode=0o700)
        except BaseException:
            lock.unlink(missing_ok=True)
            os.close(handle)
            raise
    except OSError as error:
        remedy = "set TMPDIR to a folder on a disk with free space"
        at = str(error.filename or environment.temporary_folder())
        raise UserError(f"no temporary folder can be made: {error.strerror or error}", at, remedy) from error
    try:
        yield folder
    finally:
        _remove(folder, lock)
        os.close(handle)


def _new_lock(parent: Path, purpose: str) -> tuple[Path, int]:
    """A new lock file, and the open handle that has it locked."""
    while True:
        lock = parent / f"{_NAME}{purpose}-{uuid.uuid4().hex[:12]}{_LOCK}"
        handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        # Between the two calls a sweeper may take it for a dead process' lock and remove it.
        if _try_lock(handle) and _is_at(lock, handle):
            return lock, handle
        os.close(handle)


def _sweep(parent: Path) -> None:
    """Remove the folders of killed processes; those that cannot be removed are left to the next call."""
    for lock in parent.glob(f"{_NAME}*{_LOCK}"):
        with contextlib.suppress(OSError):
            handle = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(handle).st_uid == os.getuid() and _try_lock(handle) and _is_at(lock, handle):
                    _remove(lock.with_suffix(""), lock)
            finally:
                os.close(handle)


def _remove(folder: Path, lock: Path) -> None:
    """Remove a folder and then its lock, which stays if something of the folder does."""
    shutil.rmtree(folder, ignore_errors=True)
    if not os.path.lexists(folder):
        lock.unlink(missing_ok=True)


def _try_lock(handle: int) -> bool:
    """Lock an open file; False if another process has it locked."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(lock: Path, handle: int) -> bool:
    """Whether the open file still has this name."""
    try:
        return os.path.samestat(lock.lstat(), os.fstat(handle))
    except FileNotFoundError:
        return False
