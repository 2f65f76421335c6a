"""A run's histories, of metrics and of settings, inside its checkpoints: they come along to another machine."""

from __future__ import annotations

import re
from pathlib import Path

from sharding.base.atomic import atomic_write, atomic_write_bytes

HISTORY = "metrics.jsonl"
SETTINGS_HISTORY = "settings-history.jsonl"
_STEP = re.compile(rb'"step": (\d+)')  # a long run's lines are many, and to parse them all would slow training


def write_history(run: Path, step: int, folder: Path) -> None:
    """Write the lines of a run's histories up to a step into a folder; what a kill cut short is left out."""
    for name in (HISTORY, SETTINGS_HISTORY):
        if (run / name).exists():
            with (run / name).open("rb") as lines, (folder / name).open("wb") as file:
                file.writelines(line for line in lines if _is_up_to(line, step))


def restore_history(run: Path, checkpoint: Path) -> None:
    """Give a run a checkpoint's of those histories that it has not."""
    for name in (HISTORY, SETTINGS_HISTORY):
        if (checkpoint / name).exists() and not (run / name).exists():
            atomic_write_bytes(run / name, (checkpoint / name).read_bytes())


def cut_history(run: Path, step: int) -> None:
    """Leave out of a run's metrics what came after a step, from which it goes on: those steps are taken anew."""
    path = run / HISTORY
    if not path.exists():
        return
    with path.open("rb") as lines, atomic_write(path) as aside, aside.open("wb") as file:
        file.writelines(line for line in lines if _is_up_to(line, step))


def _is_up_to(line: bytes, step: int) -> bool:
    found = _STEP.search(line)
    return found is not None and line.endswith(b"}\n") and int(found[1]) <= step
