"""Which software a process runs, and what for: the metrics `reelscale_build_info` and `reelscale_run_info`."""

from __future__ import annotations

import json
from importlib import metadata
from typing import Literal

from sharding.telemetry.declare import info, set_info

BUILD_INFO = info(
    "reelscale_build_info",
    "Always 1; by its labels the version of Reelscale, the commit that it was installed from, and torch's version.",
    "every process",
    ["version", "commit", "torch"],
)
RUN_INFO = info(
    "reelscale_run_info",
    "Always 1; by its labels what the process does, with which recipe, network, index of the store, ranks and device.",
    "every process",
    ["kind", "recipe", "network", "store_version", "world_size", "device"],
)


def set_run_info(
    kind: Literal["pretrain", "finetune", "shard", "evaluate"],
    recipe: str = "",
    network: str = "",
    store_version: str = "",
    world_size: int | str = "",
    device: str = "",
) -> None:
    """Say what this process does, and by what software. `recipe`: the file's name; what there is none of stays ""."""
    set_info(BUILD_INFO, version=_version("reelscale"), commit=installed_commit(), torch=_version("torch"))
    set_info(
        RUN_INFO,
        kind=kind,
        recipe=recipe,
        network=network,
        store_version=store_version,
        world_size=world_size,
        device=device,
    )


def installed_commit() -> str:
    """The commit from which pip installed Reelscale, as pip noted it (PEP 610); "" where it came from no repository."""
    try:
        noted = json.loads(metadata.distribution("reelscale").read_text("direct_url.json") or "{}")
        return str(noted.get("vcs_info", {}).get("commit_id", ""))
    except (metadata.PackageNotFoundError, ValueError, AttributeError):
        return ""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""
