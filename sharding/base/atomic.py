"""Files and folders that appear whole or not at all: written under another name, synced, renamed; a file's sha256."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import shutil
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = ".tmp-"  # what the names of temporary files begin with
_NO_SUCH_CALL = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EMLINK)
_AT_FDCWD = -100
_RENAME_NOREPLACE = 1


def temporary_beside(path: Path) -> Path:
    """A path in the same folder that no other process takes, on this host or any other that shares the disk.

    Process ids are no such names: containers on two hosts have equal ones.
    """
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")


@contextlib.contextmanager
def atomic_write(path: Path, create: bool = False, durable: bool = True) -> Iterator[Path]:
    """A temporary path to write a file to, which is renamed to `path` once the `with` ends well, and else removed.

    `create`: only where there is no file yet (see `rename_new`). `durable`: the file and its name are on the disk when
    the `with` ends, and not in the system's memory alone.
    The file's folder must exist. Raises OSError; with `create` FileExistsError if `path` is taken.
    """
    temporary = temporary_beside(path)
    try:
        yield temporary
        if durable:
            sync(temporary)
        if create:
            rename_new(temporary, path)
        else:
            temporary.replace(path)
        if durable:
            sync(path.parent)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def atomic_write_bytes(path: Path, data: bytes, create: bool = False) -> None:
    """Write a file, whole or not at all; `create` and errors as of `atomic_write`."""
    with atomic_write(path, create) as temporary:
        temporary.write_bytes(data)


def atomic_write_text(path: Path, text: str) -> None:
    """Write a file of text in UTF-8, whole or not at all. Raises OSError."""
    atomic_write_bytes(path, text.encode())


def append_line(path: Path, line: str, durable: bool = False) -> None:
    """Append a line, without its end, to a file; one before it that a kill or a full disk cut short is ended first.

    `durable`: it is on the disk then. Raises OSError.
    """
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                file.write(b"\n")
        file.write(f"{line}\n".encode())
        if durable:
            file.flush()
            os.fsync(file.fileno())


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A temporary path to make a folder at, which is renamed to `path` once the `with` ends well, and else removed.

    An empty folder at `path` is replaced. Raises OSError, also where anything else is there.
    """
    temporary = temporary_beside(path)
    try:
        yield temporary
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def replace_folder(written: Path, path: Path, former: Path) -> None:
    """Rename the folder `written` to `path`; what has that name is whole under `former` until then, and removed after.

    Raises OSError.
    """
    if path.exists():
        shutil.rmtree(former, ignore_errors=True)
        path.rename(former)
    written.rename(path)
    sync(path.parent)
    shutil.rmtree(former, ignore_errors=True)


def remove_folder(path: Path, removed: Path) -> None:
    """Remove a folder, first renamed to `removed`: killed meanwhile, it leaves no half of it under its name.

    One that cannot be renamed stays as it is.
    """
    shutil.rmtree(removed, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.rename(removed)
        shutil.rmtree(removed, ignore_errors=True)


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk. Raises OSError; not for a disk that syncs no folders."""
    # A file as it is written: SMB passes no sync on by a handle that only reads.
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_WRONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        # SMB and some FUSE mounts sync no folders.
        if error.errno not in (errno.EINVAL, errno.ENOTSUP) or not stat.S_ISDIR(os.fstat(handle).st_mode):
            raise
    finally:
        os.close(handle)


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
            if error.errno not in _NO_SUCH_CALL:
                raise
    _rename_locked(source, target)


def sha256_of(file: Path) -> str:
    """The sha256 (hex) of a file, read piece by piece. Raises OSError."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


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
