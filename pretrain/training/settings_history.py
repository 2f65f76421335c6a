"""What a run was trained with at each of its starts: a line an attempt, and what changed from one to the next."""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Any

import torch

from pretrain.checkpoints.history import SETTINGS_HISTORY
from pretrain.engine.distributed import World
from pretrain.run_settings import with_current_names
from pretrain.settings import TrainSettings, what_matters
from sharding.base.atomic import append_line
from sharding.base.settings import differences

log = logging.getLogger("reelscale")

_FORMAT = 1


def record_start(
    run: Path, settings: TrainSettings, world: World, attempt: int, step: int, before: dict[str, Any] | None
) -> None:
    """Log what matters and has changed since the run's last start, and append this start. Called on rank 0 alone.

    step: of the checkpoint that it goes on from. before: the settings of that start, where the history has none.
    """
    dumped = settings.model_dump(mode="json")
    computed_by = _computed_by(world)
    last = _last(run) or {"settings": before, "computed_by": computed_by}
    changed = []
    if last["settings"] is not None:
        changed = changes(last["settings"], settings)
        changed += differences(last["computed_by"], computed_by, "computed by")
    for name, old, new in changed:
        log.warning("changed since the run's last start: %s is %s, was %s", name, json.dumps(new), json.dumps(old))
    entry = {
        "step": step,  # first: by which lines go along with checkpoints
        "format": _FORMAT,
        "attempt": attempt,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "changed": [{"setting": name, "old": old, "new": new} for name, old, new in changed],
        "computed_by": computed_by,
        "settings": dumped,
    }
    try:
        append_line(run / SETTINGS_HISTORY, json.dumps(entry), durable=True)
    except OSError as error:
        log.warning("%s cannot be written: %s; training goes on", SETTINGS_HISTORY, error)


def changes(before: dict[str, Any], settings: TrainSettings) -> list[tuple[str, Any, Any]]:
    """(setting, old, new) of what matters and is not as in a former dump; what that has not is as it was."""
    current = what_matters(settings)
    try:
        former = what_matters(TrainSettings.model_validate(with_current_names(before)))
    except ValueError:  # of a version whose settings were others
        former = {name: value for name, value in before.items() if name in current}
    return differences(former, current)


def _computed_by(world: World) -> dict[str, Any]:
    """What sums are rounded by, whatever the settings are."""
    device = world.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"ranks": world.size, "device": name, "threads": torch.get_num_threads(), "torch": torch.__version__}


def _last(run: Path) -> dict[str, Any] | None:
    try:
        lines = (run / SETTINGS_HISTORY).read_text(errors="replace").splitlines()
    except OSError:
        return None
    for line in reversed(lines):
        try:
            entry = json.loads(line)
            if isinstance(entry["settings"], dict) and isinstance(entry["computed_by"], dict):
                return dict(entry)
        except (ValueError, KeyError, TypeError):  # a line that a kill cut short
            continue
    return None
