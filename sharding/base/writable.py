"""Folders to write into: refused before anything begins where they cannot be, and told where they no longer can."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from sharding.base.atomic import temporary_beside
from sharding.base.errors import UserError

_REMEDY = "name a folder that this account may write to, on a disk with free space"


def require_writable(folder: Path, where: str) -> None:
    """Raises UserError, which says `where` the absolute path was named, unless it can be made and written to.

    It is tried, and nothing is left of the trial: permissions tell of no read-only mount, nor of /proc.
    """
    there = folder
    try:
        there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
        if not there.is_dir():
            raise UserError(f"{there} is no folder", where, "name another folder")
        probe = temporary_beside(there / "probe")
        try:
            (probe / folder.relative_to(there)).mkdir(parents=True)
        finally:
            shutil.rmtree(probe, ignore_errors=True)
    except (OSError, ValueError) as error:  # a ValueError for a null character
        raise _refusal(there, where, error) from error


@contextlib.contextmanager
def writing(folder: Path, where: str) -> Iterator[None]:
    """Inside the `with`, that something cannot be written into the folder is a UserError."""
    try:
        yield
    except OSError as error:
        raise _refusal(folder, where, error) from error


def _refusal(folder: Path, where: str, error: OSError | ValueError) -> UserError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UserError(f"{folder} cannot be written to: {why}", where, _REMEDY)
