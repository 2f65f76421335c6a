"""The run's settings beside its checkpoints in a store: a place belongs to one run, and is enough to go on from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pretrain.checkpoints.remote import Remote
from pretrain.run_settings import CLASSES, SETTINGS, identity_changes, parse_settings, read_settings_file
from sharding.base.atomic import atomic_write_bytes
from sharding.base.errors import UserError

_FILES = (CLASSES, SETTINGS)


def keep_settings(run: Path, remote: Remote) -> None:
    """Put the settings of a run, once it has begun, into its place in the store.

    Raises UserError if another run of that name has it: the two would go on from each other's checkpoints.
    """
    if not (run / SETTINGS).exists():
        return
    stored = remote.get(SETTINGS)
    changes = identity_changes(_identity(stored, remote.where), read_settings_file(run).identity) if stored else ""
    if changes:
        raise UserError(
            f"the store holds the checkpoints of another run of this name ({changes})",
            remote.where,
            "give this one a folder of another name, run=runs/NAME, or another checkpoint.store",
        )
    for name in _FILES:
        if (run / name).exists():
            remote.put(name, (run / name).read_bytes())


def fetch_settings(run: Path, remote: Remote) -> None:
    """Give a run's folder without settings those in the store, if there are some."""
    if (run / SETTINGS).exists():
        return
    run.mkdir(parents=True, exist_ok=True)
    for name in _FILES:  # the settings last: with them the run has begun
        data = remote.get(name)
        if data is not None:
            atomic_write_bytes(run / name, data)


def _identity(data: bytes, where: str) -> dict[str, Any]:
    return parse_settings(data, f"{where}/{SETTINGS}").identity
