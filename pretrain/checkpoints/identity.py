"""The run's settings beside its checkpoints in a store: a place belongs to one run, and is enough to go on from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pretrain.checkpoints.remote import Remote
from sharding.aside import put_whole
from sharding.errors import UserError
from sharding.settings import differences

_SETTINGS = "settings.json"
_FILES = ("classes.json", _SETTINGS)


def keep_settings(run: Path, remote: Remote) -> None:
    """Put the settings of a run, once it has begun, into its place in the store.

    Raises UserError if another run of that name has it: the two would go on from each other's checkpoints.
    """
    if not (run / _SETTINGS).exists():
        return
    there = remote.get(_SETTINGS)
    changed = differences(_identity(there, remote), _identity((run / _SETTINGS).read_bytes(), run)) if there else []
    if changed:
        lines = "; ".join(f"{path}: {old!r} there, {new!r} here" for path, old, new in changed[:6])
        raise UserError(
            f"the store holds the checkpoints of another run of this name ({lines})",
            remote.where,
            "give this one a folder of another name, run=runs/NAME, or another checkpoint.store",
        )
    for name in _FILES:
        if (run / name).exists():
            remote.put(name, (run / name).read_bytes())


def fetch_settings(run: Path, remote: Remote) -> None:
    """Give a run's folder without settings those in the store, if there are some."""
    if (run / _SETTINGS).exists():
        return
    run.mkdir(parents=True, exist_ok=True)
    for name in _FILES:  # the settings last: with them the run has begun
        data = remote.get(name)
        if data is not None:
            with put_whole(run / name) as aside:
                aside.write_bytes(data)


def _identity(data: bytes, where: Path | Remote) -> Any:
    try:
        return json.loads(data)["identity"]
    except (ValueError, KeyError, TypeError) as error:
        place = where.where if isinstance(where, Remote) else str(where)
        raise UserError(
            f"the run's settings are damaged: {error}", f"{place}/{_SETTINGS}", "name a new folder: run=runs/NAME"
        ) from error
