"""A run taken up where it was: from its newest checkpoint as it begins, and set back to it when training goes wrong."""

from __future__ import annotations

import logging

from pretrain import metrics
from pretrain.checkpoints.checkpoint import Checkpoint
from pretrain.checkpoints.checkpointer import Checkpointer
from pretrain.engine.distributed import World
from pretrain.engine.engine import Engine, EngineState
from pretrain.resilience.loss_monitor import LossWatch
from pretrain.settings import TrainSettings
from pretrain.training.rollbacks import MOST, REMEDY, keep, once_more
from pretrain.training.step import Position
from sharding.base.errors import InVain, UserError

log = logging.getLogger("reelscale")


def restore(checkpoint: Checkpoint, engine: Engine, position: Position, watch: LossWatch) -> None:
    """Have all that is trained, and what follows from the steps taken, as it was when the checkpoint was saved."""
    state = checkpoint.state
    engine.load(EngineState(checkpoint.model, checkpoint.optimizer, checkpoint.average, state.get("scaler", {})))
    position.step, position.passed_over = checkpoint.step, state.get("passed_over", 0)
    position.best = state.get("best")
    if "watch" in state:
        watch.load(state["watch"])
    if position.rollback and position.rollback.is_to(checkpoint):  # also where a new process goes on after it
        position.passed_over = position.rollback.passed_over
        watch.load({**watch.state(), "skipped": 0})


def go_back(
    checkpointer: Checkpointer,
    settings: TrainSettings,
    engine: Engine,
    position: Position,
    watch: LossWatch,
    world: World,
) -> None:
    """Set the run back to its last checkpoint, and go on from there with the samples that come next.

    Raises InVain where there is no checkpoint, or the run was set back to the same one before, in vain.
    """
    newest = checkpointer.newest()
    wrong, data_step = position.step, position.data_step
    if newest is None:
        raise InVain(f"training went wrong by step {wrong}, and there is no checkpoint to go back to: {REMEDY}")
    checkpoint = checkpointer.load(newest)
    position.rollback = once_more(position.rollback, checkpoint, data_step - checkpoint.step)
    if world.rank == 0:
        try:
            keep(position.rollback, checkpointer, settings)
        except (OSError, UserError) as error:
            what = error.what if isinstance(error, UserError) else str(error)
            log.warning("that the run goes back could not be kept for its next start: %s", what)
    if position.rollback.times > MOST:
        raise InVain(
            f"training went wrong by step {wrong}, as it did the {MOST} times before that it went on "
            f"from step {checkpoint.step} with other samples: {REMEDY}"
        )
    restore(checkpoint, engine, position, watch)
    metrics.ROLLBACKS.inc()
    log.warning(
        "training went wrong by step %d: going on from the checkpoint at step %d, with the samples of step %d on",
        wrong, checkpoint.step, data_step + 1,
    )  # fmt: skip
