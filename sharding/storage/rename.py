"""Give a written file its final name, unless the name is taken."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
from pathlib import Path

_NOT_HERE = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EMLINK)
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


def rename_new(source: Path, target: Path) -> None:
    """Rename `source` to `target` in the same folder; FileExistsError if `target` is there.

    Whoever reads `target` finds it whole. Of many who create it one wins: by a hard link, or, where the file
    system has none (exFAT, SMB, many FUSE mounts), by a rename that replaces nothing, and where it has
    not that either, by a lock on the folder, which may hold on this machine only.
    """
    for attempt in (_link, _rename_noreplace):
        try:
            attempt(source, target)
            return
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
    _rename_locked(source, target)


def _link(source: Path, target: Path) -> None:
    os.link(source, target)
    source.unlink()


def _rename_noreplace(source: Path, target: Path) -> None:
    renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if renameat2 is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(target))
    if renameat2(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), _RENAME_NOREPLACE):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(target))


def _rename_locked(source: Path, target: Path) -> None:
    folder = os.open(target.parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        source.replace(target)
    finally:
        os.close(folder)
