"""A training run from top to bottom: settings and a store in, checkpoints, metrics and a trained network out."""

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import torch

from pretrain import metrics
from pretrain.begin import network
from pretrain.checkpoint import begin_attempt, prepare_folder
from pretrain.data.loader import Clips, Loader
from pretrain.data.order import mix
from pretrain.data.sources import described, open_sources, order_of
from pretrain.data.transforms import network_input
from pretrain.engine.engine import Engine
from pretrain.engine.world import World, leave_world, ranks_are_there, start_world
from pretrain.health import LossWatch
from pretrain.hooks import CheckpointHook, Hook, LogHook, StatisticsHook, ValidationHook
from pretrain.losses import loss as loss_of
from pretrain.losses import mixed
from pretrain.models.network import seed_dropout
from pretrain.pulse import Pulse
from pretrain.restore import go_back, newest, restore
from pretrain.run import Run
from pretrain.saver import Saver
from pretrain.schedule import learning_rate
from pretrain.settings import TrainSettings, check_ranks, derived
from pretrain.step import OwnTime, Position, StepReport
from pretrain.stop import Stop
from pretrain.watchdog import Watchdog

log = logging.getLogger("reelscale")

Outcome = Literal["finished", "stopped"]
PATIENCE = 7200.0  # seconds that a validation or a save may take


def train(
    settings: TrainSettings, extra_hooks: Sequence[Hook] = (), on_start: Callable[[int], None] | None = None
) -> Outcome:
    """Train on this rank until the schedule ends ("finished") or all ranks agree to stop ("stopped", all saved).

    Called by every rank; joins their process group. Goes on from the newest checkpoint in the run's folder.
    `on_start(rank)` is called once the run's log is open.
    Raises UserError for what a user can mend, CannotGoOn where training fails.
    """
    world = start_world(deterministic=settings.deterministic is True)
    check_ranks(settings.lanes, world.size)
    folder = Path(settings.run or "run")
    stop = Stop(folder, looks=world.rank == 0)
    prepare_folder(folder, settings.checkpoint)
    run = Run(folder, writes=world.rank == 0)
    sources = open_sources(settings.data, run.versions(settings.data))
    classes = sources.classes
    run.begin(settings, classes, sources.versions, derived(settings, len(classes), sources.samples, world.size))
    run.log_to_file()
    if on_start:
        on_start(world.rank)
    with ExitStack() as leaving:
        leaving.enter_context(Pulse(world, settings.pulse))
        leaving.enter_context(ranks_are_there())
        attempt = world.broadcast(begin_attempt(folder, settings.checkpoint) if world.rank == 0 else 0)
        checkpoint = newest(folder, settings.checkpoint, world)
        model = network(settings, folder, classes, world, checkpoint.model if checkpoint else None)
        rates, together = settings.schedule.rates, settings.together
        engine = Engine(model, settings.engine, world, settings.lanes, settings.lane_batch, together, rates)
        position, watch = Position(), LossWatch(settings.health)
        if checkpoint:
            restore(checkpoint, engine, position, watch)
            log.info("going on from the checkpoint at step %d of %d in %s", position.step, settings.steps, folder)

        order = order_of(sources, settings.data, settings.seed, settings.lanes, settings.lane_batch)
        for line in described(order, sources):
            log.info("%s", line)
        data, lanes = settings.data, lanes_of(world, settings.lanes)

        def loader_of(first: int, last: int) -> Loader:
            loader = Loader(sources, order, data.clip, data.loader, lanes, world.device, last, data.reading)
            loader.step = first
            return loader

        loader = leaving.enter_context(loader_of(position.data_step, settings.steps + position.passed_over))
        own_time = OwnTime(world.device)
        saver = Saver(folder, attempt, settings.checkpoint) if world.rank == 0 else None
        saving = CheckpointHook(settings, engine, world, position, watch, saver)
        hooks: list[Hook] = [LogHook(settings, engine, world, run, loader, own_time, saving)]
        if settings.precise_statistics:
            hooks.append(StatisticsHook(settings, engine, position, loader_of))
        if loader.videos_unseen:
            hooks.append(ValidationHook(settings, engine, world, run, loader, position))
        else:
            log.info("no validation: the store has no good video in its split 'val'")
        hooks += [saving, *extra_hooks]

        outcome: Outcome = "finished"
        watchdog = Watchdog(folder, world.rank, attempt, settings.watchdog.stall_seconds)
        leaving.enter_context(watchdog)
        video: torch.Tensor | None = None  # the same memory for every pass
        for batches in loader:
            step = position.step
            report = StepReport(step + 1, (step + 1) * settings.batch, rate := rate_at(settings, step))
            engine.set_learning_rate(rate)
            own_time.begin()
            for numbers, clips in passes(lanes, batches, together):
                seeds = [seed_of(settings, step, lane) for lane in numbers]
                seed_dropout(model, seeds, world.device)
                video = network_input(clips.planes, data.clip, out=video)  # N C T H W
                video, targets = mixed(settings.loss, video, clips.targets, seeds)
                logits = engine.forward(video)  # N classes
                loss = loss_of(settings.loss, logits, targets)
                if numbers[-1] == lanes[-1]:
                    own_time.end()  # from here on this rank may wait for others
                engine.backward(loss)
                engine.step()
                report.add(clips.targets, logits, loss)
            position.step += 1
            stopping = report.agree(world, stop.wanted)
            report.skipped = engine.was_skipped
            watchdog.beat()
            verdict = watch.step(report.mean_loss, report.skipped and not engine.was_overflow)
            if verdict == "rollback":
                with watchdog.patience(PATIENCE):
                    saving.finish()
                go_back(folder, settings.checkpoint, engine, position, watch, world)
                loader.last = settings.steps + position.passed_over
                continue
            if verdict == "spike":
                metrics.LOSS_SPIKES.inc()
                log.warning("the loss of step %d, %.3f, is far above those before it", step + 1, report.mean_loss)
            with watchdog.patience(PATIENCE):
                for hook in hooks:
                    hook.after_step(report, last=stopping or position.step == settings.steps)
            if stopping and position.step < settings.steps:
                outcome = "stopped"
                break
        with watchdog.patience(PATIENCE):
            saving.finish()
    if outcome == "stopped":
        log.info("stopped at step %d with everything saved; the same command goes on from here", position.step)
    stop.clear()
    leave_world()
    return outcome


def passes(lanes: range, batches: list[Clips], together: bool) -> Iterator[tuple[Sequence[int], Clips]]:
    """(lanes, clips) of each pass of a step: a lane at a time, or all lanes at once."""
    if together:
        yield lanes, Clips.together(batches)
        return
    for lane, clips in zip(lanes, batches, strict=True):
        yield [lane], clips


def rate_at(settings: TrainSettings, step: int) -> float:
    """Learning rate of step `step`, counted from 0."""
    return learning_rate(settings.schedule, settings.lanes, step * settings.batch)


def seed_of(settings: TrainSettings, step: int, lane: int) -> int:
    """What a lane's dropout and mixup are drawn from at a step."""
    return int(mix(settings.seed, step, lane)[0] >> 1)


def lanes_of(world: World, lanes: int) -> range:
    """The lanes that this rank runs, one after the other."""
    share = lanes // world.size
    return range(world.rank * share, (world.rank + 1) * share)
