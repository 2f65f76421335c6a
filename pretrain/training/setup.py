"""A run that is about to train, put together from its settings: the same on every rank."""

from __future__ import annotations

import json
import logging
import math
from contextlib import ExitStack
from typing import Any

import torch

from pretrain import metrics
from pretrain.checkpoints.checkpointer import Checkpointer
from pretrain.data.loader import Loader
from pretrain.data.sources import Sources, describe_order, open_sources, order_of
from pretrain.engine.distributed import World
from pretrain.resilience.hang_watchdog import Watchdog
from pretrain.resilience.loss_monitor import LossMonitor
from pretrain.resilience.process_age import seconds_since_start
from pretrain.resilience.stop_signal import Stop
from pretrain.run_folder import Run
from pretrain.settings import TrainSettings, derived, is_deterministic
from pretrain.training.callbacks import (
    Callback,
    CheckpointCallback,
    FirstStepCallback,
    PreciseStatistics,
    ValidationCallback,
)
from pretrain.training.log_callback import LogCallback, StepMetrics
from pretrain.training.preflight import ResolvedRun
from pretrain.training.ready import ready_engine
from pretrain.training.resume import count_interruptions, restore_progress
from pretrain.training.rollbacks import parse_rollback, refuse_given_up, rollback_text
from pretrain.training.settings_history import record_start
from pretrain.training.state import Position, Timers, TrainState

log = logging.getLogger("reelscale")


def open_state(
    settings: TrainSettings, world: World, run: Run, sources: Sources, stop: Stop, leaving: ExitStack
) -> TrainState:
    """A run that is ready to train, with all as it was at its newest checkpoint; a new one is saved at once.

    `leaving` closes what is to be closed. A collective. Raises UserError for clips that do not fit into memory, and for
    what is wrong with checkpoints.
    """
    folder, data = run.folder, settings.data
    log.info("the stores are open, %.1f s after this process began", seconds_since_start())
    keep_threads(settings, world, run)
    checkpointer = Checkpointer(folder, settings.checkpoint, world)
    attempt = checkpointer.begin_attempt()
    newest = checkpointer.newest()
    checkpoint = checkpointer.load(newest) if newest else None
    rollback = parse_rollback(world.broadcast_text(lambda: rollback_text(checkpointer)), settings)
    refuse_given_up(rollback, checkpoint, folder)
    run.keep_up_to(checkpoint.step if checkpoint else 0)
    if world.rank == 0:
        record_start(folder, settings, world, attempt, checkpoint.step if checkpoint else 0, run.before)
    position, loss_monitor = Position(rollback=rollback), LossMonitor(settings.health)
    engine, macs = ready_engine(settings, folder, sources.classes, world, checkpoint)
    if newest and checkpoint:
        restore_progress(position, loss_monitor, checkpoint)
        count_interruptions(position, checkpoint, attempt - newest.attempt)
        if world.rank == 0:
            metrics.CHECKPOINT_TIME.set(checkpoint.state.get("time", math.nan))
        log.info("going on from the checkpoint at step %d of %d in %s", position.step, settings.steps, folder)

    order = order_of(sources, data, settings.seed, settings.lanes, settings.lane_batch)
    for line in describe_order(order, sources):
        log.info("%s", line)
    lanes = lanes_of(world, settings.lanes)

    def loader_of(first: int, last: int) -> Loader:
        loader = Loader(sources, order, data.clip, data.loader, lanes, world.device, last, data.reading)
        loader.step = first
        return loader

    loader = leaving.enter_context(loader_of(position.data_step, settings.steps + position.passed_over))
    watchdog = Watchdog(folder, world.rank, attempt, settings.watchdog.stall_seconds)
    timers = Timers(loader, world.device)
    engine.on_exchange(timers.clock.exchange.begin, timers.clock.exchange.end)
    state = TrainState(
        settings, world, run, engine, macs, loader, loader_of, lanes, position, loss_monitor, timers, checkpointer,
        watchdog, stop,
    )  # fmt: skip
    if not checkpoint:
        state.save()  # to go back to, should training go wrong at once; and what cannot be written shows now
    return state


def callbacks_of(state: TrainState) -> list[Callback]:
    """What is done after each step, in this order. A collective."""
    callbacks: list[Callback] = [StepMetrics(state), LogCallback(state)]
    if state.settings.precise_statistics:
        callbacks.append(PreciseStatistics())
    if state.loader.unseen_videos:
        callbacks.append(ValidationCallback(state))
    else:
        log.info("no validation: the store has no good video in its split 'val'")
    return [*callbacks, CheckpointCallback(), FirstStepCallback()]


def keep_threads(settings: TrainSettings, world: World, run: Run) -> None:
    """Have a rank that computes on its CPU do so with as many threads as the run began with, if it is deterministic.

    A convolution's sums depend on how many share them, and launchers set that number by cores and ranks.
    """
    if world.device.type != "cpu" or not is_deterministic(settings, world.device):
        return
    mine, kept = torch.get_num_threads(), world.broadcast(run.threads if world.rank == 0 else 0)
    if mine != kept:
        log.info("computing with %d threads a rank, not %d: the run began with them, and is deterministic", kept, mine)
        torch.set_num_threads(kept)


def open_same_sources(resolved: ResolvedRun, run: Run, world: World) -> Sources:
    """The stores, at the same versions of their indexes on every rank: all draw the same samples.

    These are what the run began with, by its folder on rank 0's machine, which a launcher need not see and which may
    just have been fetched from `checkpoint.store`; else those that rank 0 was started with.
    """
    data = resolved.settings.data
    versions = world.broadcast_text(lambda: json.dumps(run.versions(data) or resolved.index))
    return open_sources(data, json.loads(versions))


def derived_from(resolved: ResolvedRun, sources: Sources, world: World) -> dict[str, Any]:
    """The run's derived quantities, of these sources and this world size."""
    if sources.versions == resolved.index and resolved.derived["ranks"] == world.size:
        return resolved.derived
    return derived(resolved.settings, len(sources.classes), sources.samples, world.size)


def lanes_of(world: World, lanes: int) -> range:
    """The lanes that this rank runs, one after the other."""
    share = lanes // world.size
    return range(world.rank * share, (world.rank + 1) * share)
