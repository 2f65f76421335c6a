"""Paths that a user names: absolute, so that every process means the same, and refused before anything begins."""

from pathlib import Path

from sharding.base.errors import UserError
from sharding.base.writable import require_writable


def absolute(text: str) -> str:
    """The absolute path of `text`, `~` included; a URL as it is. Raises UserError for `~name` without such a user."""
    if "://" in text:
        return text
    try:
        return str(Path(text).expanduser().absolute())
    except RuntimeError as error:
        raise UserError(f"{error}", text, "write the path without ~") from error


def writable_folder(text: str, setting: str) -> str:
    """The absolute path of a folder that can be written to or made. Raises UserError for any other."""
    path = absolute(text)
    require_writable(Path(path), f"{setting}={text}")
    return path
