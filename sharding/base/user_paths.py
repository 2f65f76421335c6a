"""Paths that a user names: expanded, absolute, and tried before work begins, so that a wrong one is refused at once."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from sharding.base.atomic import temporary_beside
from sharding.base.errors import UserError

_REMEDY = "name a folder that this account may write to, on a disk with free space"


def expanded(text: str | os.PathLike[str]) -> Path:
    """The path of `text`, `~` and `~name` expanded. Raises UserError for `~name` without such a user."""
    try:
        return Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(str(error), os.fspath(text), "write the path without ~") from error


def absolute(text: str) -> str:
    """The absolute path of `text`, as `expanded`: the same for every process; a URL as it is."""
    return text if "://" in text else str(expanded(text).absolute())


def writable_folder(text: str, setting: str) -> str:
    """The absolute path of a folder that can be written to or made. Raises UserError for any other."""
    path = absolute(text)
    require_writable(Path(path), f"{setting}={text}")
    return path


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
