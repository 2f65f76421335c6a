"""How often a run went back to which checkpoint, kept beside its checkpoints, so that the limit holds over restarts."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pretrain.checkpoints.checkpoint import Checkpoint
from pretrain.checkpoints.checkpointer import Checkpointer
from pretrain.run_settings import with_former_names
from pretrain.settings import TrainSettings, what_matters
from sharding.base.errors import UserError
from sharding.base.settings import digest

MOST = 3  # times to the same checkpoint
REMEDY = "lower schedule.lr, or set engine.clip_gradient"
FILE = "rollbacks.json"
_FORMAT = 1


@dataclass(frozen=True)
class Rollback:
    """How often a run was set back to the checkpoint of a step that an attempt saved.

    `passed_over`: the samples passed over since, in steps' worth, with those of the last time.
    """

    step: int
    attempt: int
    times: int
    passed_over: int

    def is_to(self, checkpoint: Checkpoint) -> bool:
        """Whether it is this checkpoint."""
        return (self.step, self.attempt) == (checkpoint.step, checkpoint.attempt)


def next_rollback(before: Rollback | None, checkpoint: Checkpoint, passed_over: int) -> Rollback:
    """The roll-back to a checkpoint, counted with those before to the same one."""
    times = before.times if before and before.is_to(checkpoint) else 0
    return Rollback(checkpoint.step, checkpoint.attempt, times + 1, passed_over)


def rollback_json(rollback: Rollback, settings: TrainSettings) -> str:
    """A roll-back as JSON. With other settings that matter the count begins anew: they are the remedy."""
    return json.dumps({"format": _FORMAT, "settings": digest(what_matters(settings)), **asdict(rollback)}, indent=1)


def parse_rollback(text: str, settings: TrainSettings) -> Rollback | None:
    """What `rollback_json` wrote with these settings; None of others, and of what is damaged."""
    try:
        tree = json.loads(text)
        matters = what_matters(settings)
        if tree["format"] != _FORMAT or tree["settings"] not in (digest(matters), digest(with_former_names(matters))):
            return None
        return Rollback(*(int(tree[name]) for name in ("step", "attempt", "times", "passed_over")))
    except (ValueError, KeyError, TypeError):
        return None


def refuse_given_up(rollback: Rollback | None, checkpoint: Checkpoint | None, run: Path) -> None:
    """Raises UserError for a run that was given up, and has the same checkpoint and settings as then."""
    if rollback and checkpoint and rollback.is_to(checkpoint) and rollback.times > MOST:
        raise UserError(
            f"the run was given up: training went wrong each of the {rollback.times} times that it went on from the "
            f"checkpoint at step {rollback.step}",
            str(run),
            f"{REMEDY}: with other settings it goes on from there",
        )


def write_rollback(rollback: Rollback, checkpointer: Checkpointer, settings: TrainSettings) -> None:
    """Write it beside the checkpoints, in the run's folder and in the store. Raises UserError."""
    checkpointer.write_beside(FILE, rollback_json(rollback, settings).encode())


def rollback_text(checkpointer: Checkpointer) -> str:
    """The text beside the checkpoints, in the run's folder or else in the store; "{}" for none."""
    data = checkpointer.read_beside(FILE)
    return data.decode(errors="replace") if data else "{}"
