"""Checks that a folder can be written into, before work begins and while it is written."""

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
    """Raise UserError unless the folder (an absolute path) can be made and written into.

    It is tried, and nothing is left of the trial: permissions do not show a read-only mount, or /proc. `where`: the
    place that names the folder, for the message.
    """
    existing = folder
    try:
        existing = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
        if not existing.is_dir():
            raise UserError(f"{existing} is no folder", where, "name another folder")
        probe = temporary_beside(existing / "probe")
        try:
            (probe / folder.relative_to(existing)).mkdir(parents=True)
        finally:
            shutil.rmtree(probe, ignore_errors=True)
    except (OSError, ValueError) as error:  # a ValueError for a null character
        raise _refusal(existing, where, error) from error


@contextlib.contextmanager
def writing(folder: Path, where: str) -> Iterator[None]:
    """Raise UserError where something cannot be written into the folder, inside the `with`."""
    try:
        yield
    except OSError as error:
        raise _refusal(folder, where, error) from error


def _refusal(folder: Path, where: str, error: OSError | ValueError) -> UserError:
    why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return UserError(f"{folder} cannot be written to: {why}", where, _REMEDY)
