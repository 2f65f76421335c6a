"""A file written beside its name under one that nobody else has, and renamed once it is whole."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

TEMPORARY = ".tmp-"


def temporary_beside(path: Path) -> Path:
    """A path in the same folder that no other process takes, on this host or any other that shares the disk.

    Process ids are no such names: containers on two hosts have equal ones.
    """
    return path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Where to write a file that has its name, and is on the disk, once the `with` ends well, and is gone otherwise.

    Its folder must be there. Raises OSError.
    """
    temporary = temporary_beside(path)
    try:
        yield temporary
        handle = os.open(temporary, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
        temporary.replace(path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
