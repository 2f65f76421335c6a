"""A run's metrics history inside its checkpoints, so that it comes along to another machine."""

from __future__ import annotations

import re
from pathlib import Path

from sharding.aside import put_whole

HISTORY = "metrics.jsonl"
_STEP = re.compile(rb'"step": (\d+)')  # a long run's lines are many, and to parse them all would slow training


def write_history(run: Path, step: int, folder: Path) -> None:
    """Write the lines of a run's metrics.jsonl up to a step into a folder; what a kill cut short is left out."""
    if not (run / HISTORY).exists():
        return
    with (run / HISTORY).open("rb") as lines, (folder / HISTORY).open("wb") as file:
        file.writelines(line for line in lines if _is_up_to(line, step))


def restore_history(run: Path, checkpoint: Path) -> None:
    """Give a run that has no metrics.jsonl a checkpoint's."""
    if (run / HISTORY).exists() or not (checkpoint / HISTORY).exists():
        return
    with put_whole(run / HISTORY) as aside:
        aside.write_bytes((checkpoint / HISTORY).read_bytes())


def _is_up_to(line: bytes, step: int) -> bool:
    found = _STEP.search(line)
    return found is not None and line.endswith(b"}\n") and int(found[1]) <= step
