"""A folder for Ray's session, where its sockets get names that the system takes."""

import os
import sys
from collections.abc import Iterable
from pathlib import Path

from sharding.base import environment
from sharding.base.errors import UserError
from sharding.base.printable import visible

_LONGEST = 107  # bytes of a socket's path in Linux
_SOCKET = "/ray/session_2000-12-31_23-59-59_999999_4194304/sockets/plasma_store"  # Ray's longest, below the folder
ROOM = _LONGEST - len(_SOCKET)
_SHORT = ("/tmp", "/var/tmp", "/dev/shm")


def session_folder() -> str | None:
    """Where Ray is to keep its session; None where it finds a fitting folder by itself.

    Another than Ray would take is named on standard error. Raises UserError where there is none.
    """
    wanted, chosen = wanted_folder(), fitting_folder()
    if chosen is None:
        what = f"Ray's sockets need a folder that can be written to and has a path of at most {ROOM} bytes"
        raise UserError(what, f"TMPDIR={wanted}", "set RAY_TMPDIR to such a folder, or launcher=none")
    if chosen == wanted:
        return None
    why = "too long a path for sockets" if len(os.fsencode(wanted)) > ROOM else "no folder that can be written to"
    notice = f"Ray keeps its session in {chosen}/ray: {wanted} is {why} (RAY_TMPDIR names another)"
    print(visible(notice), file=sys.stderr)
    return f"{chosen}/ray"


def wanted_folder() -> str:
    """The folder that Ray takes by itself."""
    return environment.variable("RAY_TMPDIR") or environment.variable("TMPDIR") or _SHORT[0]


def fitting_folder() -> str | None:
    """The folder in which Ray is to make its own: the wanted one, else a usual one that fits; None where none does."""
    return fitting([wanted_folder(), *_SHORT])


def fitting(folders: Iterable[str]) -> str | None:
    """The first folder with a path short enough in which Ray can make its own."""
    return next((each for each in folders if len(os.fsencode(each)) <= ROOM and _usable(Path(each))), None)


def _usable(folder: Path) -> bool:
    made = folder / "ray"
    place = made if made.exists() else folder
    return place.is_dir() and os.access(place, os.W_OK | os.X_OK)
