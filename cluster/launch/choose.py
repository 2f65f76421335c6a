"""Which launcher runs a job: Ray, processes of our own, or the one that already started this process."""

import importlib.util
from typing import Annotated, Literal

from pydantic import Field

from sharding.errors import UserError

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
