"""A run that is about to train, put together from its settings: the same on every rank."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import torch

from pretrain.checkpoints.checkpointer import Checkpointer
from pretrain.data.loader import Loader
from pretrain.data.sources import Sources, described, open_sources, order_of
from pretrain.engine.distributed import World
from pretrain.engine.engine import Engine
from pretrain.resilience.hang_watchdog import Watchdog
from pretrain.resilience.loss_monitor import LossWatch
from pretrain.resilience.stop_signal import Stop
from pretrain.run_folder import Run
from pretrain.settings import TrainSettings, is_deterministic
from pretrain.training.callbacks import CheckpointHook, Hook, LogHook, StatisticsHook, ValidationHook
from pretrain.training.preflight import ResolvedRun
from pretrain.training.ready import ready_engine
from pretrain.training.rollbacks import decoded, kept, require_hope
from pretrain.training.settings_history import record_start
from pretrain.training.startup import FirstStepHook, seconds_since_start
from pretrain.training.step import OwnTime, Position

log = logging.getLogger("reelscale")


@dataclass
class Session:
    """What trains, where it is, and what hangs on it. `lanes`: those that this rank runs, one after the other."""

    engine: Engine
    loader: Loader
    lanes: range
    position: Position
    watch: LossWatch
    own_time: OwnTime
    saving: CheckpointHook
    checkpointer: Checkpointer
    hooks: list[Hook]
    watchdog: Watchdog


def open_session(
    settings: TrainSettings,
    world: World,
    run: Run,
    checkpointer: Checkpointer,
    sources: Sources,
    extra_hooks: Sequence[Hook],
    leaving: ExitStack,
    stop: Stop,
) -> Session:
    """The session, with all as it was at the run's newest checkpoint; what is to be closed is closed by `leaving`.

    Raises UserError for clips that do not fit into memory, and for what is wrong with checkpoints.
    """
    folder, data = run.folder, settings.data
    log.info("the stores are open, %.1f s after this process began", seconds_since_start())
    keep_threads(settings, world, run)
    attempt = checkpointer.begin_attempt()
    newest = checkpointer.newest()
    checkpoint = checkpointer.load(newest) if newest else None
    rollback = decoded(world.share(lambda: kept(checkpointer)), settings)
    require_hope(rollback, checkpoint, folder)
    if world.rank == 0:
        record_start(folder, settings, world, attempt, checkpoint.step if checkpoint else 0, run.before)
    position, watch = Position(rollback=rollback), LossWatch(settings.health)
    engine, cost = ready_engine(settings, folder, sources.classes, world, checkpoint, position, watch)
    if checkpoint:
        log.info("going on from the checkpoint at step %d of %d in %s", position.step, settings.steps, folder)

    order = order_of(sources, data, settings.seed, settings.lanes, settings.lane_batch)
    for line in described(order, sources):
        log.info("%s", line)
    lanes = lanes_of(world, settings.lanes)

    def loader_of(first: int, last: int) -> Loader:
        loader = Loader(sources, order, data.clip, data.loader, lanes, world.device, last, data.reading)
        loader.step = first
        return loader

    loader = leaving.enter_context(loader_of(position.data_step, settings.steps + position.passed_over))
    own_time = OwnTime(world.device)
    saving = CheckpointHook(settings, engine, world, position, watch, checkpointer)
    if not checkpoint:
        saving.save()  # to go back to, should training go wrong at once; and what cannot be written is told now
    validation = None
    if loader.videos_unseen:
        validation = ValidationHook(settings, engine, world, run, loader, position, lambda: stop.asked)
    hooks: list[Hook] = [LogHook(settings, world, run, loader, saving, validation, cost)]
    if settings.precise_statistics:
        hooks.append(StatisticsHook(settings, engine, position, loader_of))
    if validation:
        hooks.append(validation)
    else:
        log.info("no validation: the store has no good video in its split 'val'")
    hooks += [saving, FirstStepHook(), *extra_hooks]
    watchdog = leaving.enter_context(Watchdog(folder, world.rank, attempt, settings.watchdog.stall_seconds))
    loader.heed(lambda: stop.asked, watchdog.excuse)
    return Session(engine, loader, lanes, position, watch, own_time, saving, checkpointer, hooks, watchdog)


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


def open_same_sources(resolved: ResolvedRun, world: World) -> Sources:
    """The stores, at the versions of their indexes that rank 0 was started with: all ranks draw the same samples.

    A launcher starts every rank with the same; under torchrun each has looked by itself, and a store may have grown.
    """
    versions = json.loads(world.share(lambda: json.dumps(resolved.index)))
    return open_sources(resolved.settings.data, versions)


def lanes_of(world: World, lanes: int) -> range:
    """The lanes that this rank runs, one after the other."""
    share = lanes // world.size
    return range(world.rank * share, (world.rank + 1) * share)
