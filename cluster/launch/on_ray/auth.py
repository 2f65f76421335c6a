"""Ray's tokens: one of its own for a cluster of this machine, and the user's for any other.

Whoever may submit to a Ray cluster may run code on it, so that none is used over a network without a token.
"""

from __future__ import annotations

import importlib
import ipaddress
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sharding.base import environment
from sharding.base.errors import UserError

_TOKEN, _DISABLED = "token", "disabled"
_REMEDY = (
    "on the head node: ray get-auth-token --generate; copy ~/.ray/auth_token to every node and to here (mode 600); "
    "start all nodes with RAY_AUTH_MODE=token in the environment. In a network that only you can reach, "
    "RAY_AUTH_MODE=disabled here does without"
)


@contextmanager
def own_token() -> Iterator[None]:
    """Inside the `with`, a cluster that is started takes a token that only this user's processes can read.

    Left alone where RAY_AUTH_MODE says what the user wants. Ray would leave a token that everyone can read in the home
    folder, and from then on demand it of all clusters.
    """
    if environment.variable(environment.RAY_AUTH_MODE):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="reelscale-") as folder:  # mode 700
        file = Path(folder) / "token"
        file.write_text(secrets.token_hex(32))
        values = {environment.RAY_AUTH_MODE: _TOKEN, environment.RAY_AUTH_TOKEN_PATH: str(file)}
        with environment.variables_set(values):
            _read_anew()
            yield
    _read_anew()


def authenticate(address: str) -> None:
    """Have Ray send the user's token to the cluster at `address`, where there is one.

    Raises UserError without one for an address of another machine, unless RAY_AUTH_MODE says that none is wanted.
    """
    mode = environment.variable(environment.RAY_AUTH_MODE).lower()
    if mode == _DISABLED:
        return
    if environment.variable(environment.RAY_AUTH_TOKEN) or environment.ray_token_file().is_file():
        environment.adopt_variables({environment.RAY_AUTH_MODE: _TOKEN})
        _read_anew()
    elif mode == _TOKEN or not is_here(address):
        what = "no token for this Ray cluster: without one, whoever reaches it may run code on it"
        raise UserError(what, f"RAY_ADDRESS={address}", _REMEDY)


def is_here(address: str) -> bool:
    """Whether an address of a Ray cluster is of this machine alone: loopback, or a word by which Ray looks here."""
    host = address.removeprefix("ray://").rpartition(":")[0].strip("[]") or address
    if host in ("auto", "local", "localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_about_token(words: str) -> bool:
    """Whether an error's words, or a line that Ray wrote, say that a connection was refused for its token."""
    return any(each in words for each in ("AuthenticationError", "InvalidAuthToken", "Unauthenticated"))


def token_refused(address: str) -> UserError:
    """The error of a token that a cluster does not take."""
    return UserError("the Ray cluster does not take this token, or wants one", f"RAY_ADDRESS={address}", _REMEDY)


def _read_anew() -> None:
    """Have Ray (2.59, 2.60), which reads the mode and the token once, read them again, by what its `_raylet` has."""
    raylet: Any = importlib.import_module("ray._raylet")
    raylet.Config.initialize("")
    raylet.AuthenticationTokenLoader.instance().reset_cache()
