"""A temporary folder that is removed even after its process was killed: by the next one that wants a folder."""

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
    """An empty folder for as long as the `with` lasts, in the folder for temporary files (TMPDIR).

    It is named by `purpose` and a lock file beside it that this process holds. Folders of this user whose lock
    nobody holds any more are removed first. Raises UserError if no folder can be made.
    """
    try:
        where = Path(tempfile.gettempdir())
        _sweep(where)
        lock, handle = _held(where, purpose)
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


def _held(where: Path, purpose: str) -> tuple[Path, int]:
    """A new lock file and the handle that holds it."""
    while True:
        lock = where / f"{_NAME}{purpose}-{uuid.uuid4().hex[:12]}{_LOCK}"
        handle = os.open(lock, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600)
        # Between the two calls a sweeper may take it for a dead process' lock and remove it.
        if _taken(handle) and _leads_to(lock, handle):
            return lock, handle
        os.close(handle)


def _sweep(where: Path) -> None:
    """Remove what killed processes left behind; whatever cannot be removed stays for another time."""
    for lock in where.glob(f"{_NAME}*{_LOCK}"):
        with contextlib.suppress(OSError):
            handle = os.open(lock, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                if os.fstat(handle).st_uid == os.getuid() and _taken(handle) and _leads_to(lock, handle):
                    _remove(lock.with_suffix(""), lock)
            finally:
                os.close(handle)


def _remove(folder: Path, lock: Path) -> None:
    """Remove a folder and then its lock, which stays if something of the folder does."""
    shutil.rmtree(folder, ignore_errors=True)
    if not os.path.lexists(folder):
        lock.unlink(missing_ok=True)


def _taken(handle: int) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _leads_to(lock: Path, handle: int) -> bool:
    """Whether the name still means the open file."""
    try:
        return os.path.samestat(lock.lstat(), os.fstat(handle))
    except FileNotFoundError:
        return False
