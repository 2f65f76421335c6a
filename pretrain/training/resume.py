"""A run taken up where it was: from its newest checkpoint as it begins, and set back to it when training goes wrong."""

from __future__ import annotations

import logging
import time

from pretrain import metrics
from pretrain.checkpoints.checkpoint import Checkpoint
from pretrain.engine.engine import Engine, EngineState
from pretrain.resilience.early_stop import EarlyStopState
from pretrain.resilience.loss_monitor import LossMonitor
from pretrain.resilience.progress import TRAINING
from pretrain.training.rollbacks import MOST, REMEDY, next_rollback, write_rollback
from pretrain.training.state import Position, TrainState
from sharding.base.errors import NotRetryable, UserError

log = logging.getLogger("reelscale")


def load_engine(engine: Engine, checkpoint: Checkpoint) -> None:
    """Have all that is trained as it was when the checkpoint was saved."""
    scaler = checkpoint.state.get("scaler", {})
    engine.load(EngineState(checkpoint.model, checkpoint.optimizer, checkpoint.average, scaler))


def restore_progress(position: Position, loss_monitor: LossMonitor, checkpoint: Checkpoint) -> None:
    """Have what follows from the steps taken as it was when the checkpoint was saved."""
    state = checkpoint.state
    position.step, position.passed_over = checkpoint.step, state.get("passed_over", 0)
    position.best, position.early_stop = state.get("best"), EarlyStopState.of_checkpoint(state)
    if "watch" in state:
        loss_monitor.load(state["watch"])
    if position.rollback and position.rollback.is_to(checkpoint):  # also where a new process goes on after it
        position.passed_over = position.rollback.passed_over
        loss_monitor.load({**loss_monitor.state(), "skipped": 0})


def count_interruptions(position: Position, checkpoint: Checkpoint, starts: int) -> None:
    """Count that a run goes on which did not stop in order, and the time since its checkpoint, which is lost.

    starts: of the run since the one that saved the checkpoint; those between saved none.
    """
    state = checkpoint.state
    position.interruptions, position.lost_seconds = state.get("interruptions", 0), state.get("lost_seconds", 0.0)
    in_order = state.get("last", True)  # also of a version that did not say
    position.interruptions += starts - 1 if in_order else starts
    if not in_order:
        seconds = max(0.0, time.time() - state["time"])
        position.lost_seconds += seconds
        log.info(
            "the run was interrupted, for the %s time: %.0f s since its checkpoint at step %d was saved are lost, "
            "%.0f s in all", _ordinal(position.interruptions), seconds, checkpoint.step, position.lost_seconds,
        )  # fmt: skip


def _ordinal(number: int) -> str:
    """1st, 2nd, 3rd, 4th."""
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th") if number % 100 not in (11, 12, 13) else "th"
    return f"{number}{ending}"


@TRAINING.during("starting")
def go_back(state: TrainState, step: int) -> None:
    """Set a run that went wrong by `step` back to its last checkpoint, to go on with the samples that come next.

    A collective. Raises NotRetryable where there is no checkpoint, or the run was set back to the same one before, in
    vain.
    """
    position, checkpointer = state.position, state.checkpointer
    checkpointer.wait()
    state.world.barrier()
    position.step = step
    data_step = position.data_step
    newest = checkpointer.newest()
    if newest is None:
        raise NotRetryable(f"training went wrong by step {step}, and there is no checkpoint to go back to: {REMEDY}")
    checkpoint = checkpointer.load(newest)
    position.rollback = next_rollback(position.rollback, checkpoint, data_step - checkpoint.step)
    if state.world.rank == 0:
        try:
            write_rollback(position.rollback, checkpointer, state.settings)
        except UserError as error:
            log.warning("that the run goes back could not be kept for its next start: %s", error.what)
    if position.rollback.times > MOST:
        raise NotRetryable(
            f"training went wrong by step {step}, as it did the {MOST} times before that it went on "
            f"from step {checkpoint.step} with other samples: {REMEDY}"
        )
    load_engine(state.engine, checkpoint)
    restore_progress(position, state.loss_monitor, checkpoint)
    state.run.keep_up_to(checkpoint.step)
    state.loader.last = state.settings.steps + position.passed_over
    if state.world.rank == 0:
        metrics.ROLLBACKS.inc()
    log.warning(
        "training went wrong by step %d: going on from the checkpoint at step %d, with the samples of step %d on",
        step, checkpoint.step, data_step + 1,
    )  # fmt: skip
