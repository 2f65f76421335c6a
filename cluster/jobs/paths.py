"""Paths that a user names: absolute, so that every process means the same, and refused before anything begins."""

import os
from pathlib import Path

from sharding.errors import UserError


def absolute(text: str) -> str:
    """A path made absolute, `~` included; a URL as it is. Raises UserError for a `~name` that is nobody's."""
    if "://" in text:
        return text
    try:
        return str(Path(text).expanduser().absolute())
    except RuntimeError as error:
        raise UserError(f"{error}", text, "write the path without ~") from error


def writable_folder(text: str, setting: str) -> str:
    """The absolute path of a folder that is there or could be made. Raises UserError where it could not."""
    path = Path(absolute(text))
    there = next(place for place in (path, *path.parents) if place.exists() or place.is_symlink())
    if not there.is_dir():
        raise UserError(f"{there} is no folder", f"{setting}={text}", "name another folder")
    if not os.access(there, os.W_OK | os.X_OK):
        raise UserError(f"{there} cannot be written to", f"{setting}={text}", "name one that this account may write to")
    return str(path)
