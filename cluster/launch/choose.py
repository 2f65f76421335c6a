"""Which launcher runs a job: Ray, processes of our own, or the one that already started this process."""

import importlib.util
import os
from typing import Annotated, Literal

from pydantic import Field

from sharding.base.errors import UserError

Launcher = Annotated[
    Literal["auto", "ray", "none"],
    Field(description="auto: Ray where it is installed; none: processes of this machine, no Ray needed"),
]


def choose_launcher(wanted: Literal["auto", "ray", "none"]) -> Literal["ray", "none"]:
    """The launcher to use. Raises UserError for `ray` where Ray is not installed."""
    installed = importlib.util.find_spec("ray") is not None
    if wanted == "ray" and not installed:
        raise UserError(
            "Ray is not installed",
            "launcher=ray",
            "install it (pip install 'reelscale[ray]') or use launcher=none",
        )
    return "ray" if wanted != "none" and installed else "none"


def require_room(processes: int, setting: str) -> None:
    """Raises UserError for more processes than this machine, by its cores, could ever do anything with."""
    most = max(64, 8 * (os.cpu_count() or 1))
    if processes > most:
        raise UserError(
            f"{processes:,} processes are too many for this machine of {os.cpu_count()} cores",
            f"{setting}={processes}",
            f"set {setting}={most} or less, or share the work out over machines with Ray",
        )
