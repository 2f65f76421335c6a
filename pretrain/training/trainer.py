"""A training run from top to bottom: settings and a store in, checkpoints, metrics and a trained network out."""

import logging
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Literal

import torch

from pretrain import metrics
from pretrain.checkpoints.checkpointer import Checkpointer
from pretrain.data.device.transforms import network_input
from pretrain.data.sampling.order import mix
from pretrain.engine.autotune.process import PRESTARTED
from pretrain.engine.device_lost import ends_on_device_loss
from pretrain.engine.distributed import leave_world, names_lost_ranks, start_world
from pretrain.losses import loss as loss_of
from pretrain.losses import mixed
from pretrain.lr_schedule import learning_rate
from pretrain.models.network import seed_dropout
from pretrain.resilience.liveness import LivenessMonitor
from pretrain.resilience.loss_monitor import Verdict
from pretrain.resilience.progress import TRAINING
from pretrain.resilience.stop_signal import Stop
from pretrain.run_folder import Run
from pretrain.run_settings import Recipe
from pretrain.settings import PATIENCE, TrainSettings, longest_wait, require_memory
from pretrain.telemetry.run_served import run_served
from pretrain.training.batch_stream import Repeatable, batches_or_none, micro_steps, save_before, step_without_clips
from pretrain.training.callbacks import Callback
from pretrain.training.initial_network import prestart_autotune
from pretrain.training.preflight import ResolvedRun
from pretrain.training.resume import go_back
from pretrain.training.setup import callbacks_of, derived_from, open_same_sources, open_state
from pretrain.training.state import TrainState
from pretrain.training.step import StepReport

log = logging.getLogger("reelscale")

Outcome = Literal["finished", "stopped"]


def train(resolved: ResolvedRun, on_start: Callable[[int], None] | None = None) -> Outcome:
    """Train on this rank until the schedule ends ("finished") or all ranks agree to stop ("stopped", all saved).

    Called by every rank with what `preflight` gave; joins their process group. Goes on from the newest checkpoint in
    the run's folder.
    `on_start(rank)` is called once the run's log is open.
    Raises UserError for what a user can mend, CommandFailed where training fails. A lost device ends the process.
    """
    settings = resolved.settings
    folder = Path(settings.run or "run")
    with ExitStack() as leaving:
        leaving.callback(PRESTARTED.end)
        stop = leaving.enter_context(Stop(folder))
        prestart_autotune(settings, folder)
        world = start_world(longest_wait(settings), deterministic=settings.deterministic is True)
        leaving.enter_context(LivenessMonitor(world, settings.pulse))
        leaving.enter_context(names_lost_ranks())
        Checkpointer(folder, settings.checkpoint).fetch_settings()
        run = Run(folder, writes=world.rank == 0)
        sources = open_same_sources(resolved, run, world)
        quantities = derived_from(resolved, sources, world)
        require_memory(quantities["memory_per_rank_bytes"], world.device)
        stored = sources.stored() if world.rank == 0 else None
        recipe = Recipe(resolved.recipe, resolved.expected)
        run.begin(settings, sources.classes, sources.versions, quantities, stored, recipe)
        run.log_to_file()
        leaving.enter_context(run.tracked(settings))
        leaving.enter_context(run_served(run.folder, settings, resolved.recipe, sources.versions, world))
        if on_start:
            on_start(world.rank)
        with ends_on_device_loss():
            state = open_state(settings, world, run, sources, stop, leaving)
            callbacks = callbacks_of(state)
        leaving.enter_context(state.watchdog)
        state.loader.set_stop_check(lambda: stop.asked, state.watchdog.excuse)
        stop.begin(looks=world.rank == 0)
        with ends_on_device_loss(state.checkpointer.wait):
            outcome: Outcome = "finished" if state.ends_early else run_steps(state, callbacks)
            with state.watchdog.patience(PATIENCE), TRAINING.during("saving"):
                state.checkpointer.finish()
    if outcome == "stopped":
        log.info("stopped at step %d with everything saved; the same command goes on from here", state.position.step)
    elif state.ends_early:
        log.info("ended early at step %d of %d: its validations gain no more", state.position.step, settings.steps)
    stop.clear()
    world.barrier()  # the other ranks' heartbeats go by rank 0 until they have left
    leave_world()
    return outcome


def run_steps(state: TrainState, callbacks: Sequence[Callback]) -> Outcome:
    """The loop: a step is a batch of every lane, one optimizer step, and the callbacks after it.

    A GPU is never left idle: a step's figures are read, and what follows from them is done, when the next step's work
    has been sent, unless something must see the run right after it (`is_read_at_once`).
    """
    settings, engine, position, clock = state.settings, state.engine, state.position, state.timers.clock
    video: torch.Tensor | None = None  # the same memory for every micro-step
    steps, first = Repeatable(batches_or_none(state.loader)), position.step + 1
    sent = deque[StepReport]()  # whose figures are not read yet: of this step, and of the one before it
    for batches in steps:
        step = position.step
        report = StepReport(step + 1, (step + 1) * settings.batch, rate := rate_at(settings, step))
        engine.set_learning_rate(rate)
        if batches is None:
            step_without_clips(state, report)
        for lanes, clips in micro_steps(state.lanes, batches, settings.together) if batches else ():
            clock.begin()
            seeds = [seed_of(settings, step, lane) for lane in lanes]
            seed_dropout(engine.model, seeds, state.world.device)
            buffer = video if engine.input_buffer is None else engine.input_buffer
            video = network_input(clips.planes, settings.data.clip, out=buffer)  # N C T H W
            video, targets = mixed(settings.loss, video, clips.targets, seeds)
            clock.own.end(engine.forward_waits)
            logits = engine.forward(video)  # N classes
            loss = loss_of(settings.loss, logits, targets)
            clock.own.end(not engine.forward_waits)
            engine.backward(loss)
            engine.step()
            clock.whole.end()
            report.add(targets, logits, loss)
        position.step += 1
        report.send(state.world, state.stop.wanted, engine.verdict, clock.step())
        sent.append(report)
        at_once, stopping = report.step == first or is_read_at_once(settings, report.step), False
        while sent and (len(sent) > 1 or at_once or stopping):
            read = sent.popleft()
            read.read()
            TRAINING.advance()
            if read.absent:
                save_before(state, read)
                return "stopped"
            stopping |= read.stopping
            with state.watchdog.patience(PATIENCE):
                if judge(state, read) == "rollback":
                    go_back(state, read.step)
                    if sent:  # a step that was sent meanwhile was none: its samples come next
                        sent.clear()
                        steps.again()
                    stopping = False
                    break
                for callback in callbacks:
                    ending = stopping or read.stopping or read.step == settings.steps  # a validation may be broken off
                    read.last = ending and not sent
                    callback.after_step(state, read)
                stopping |= read.stopping
        if stopping and position.step < settings.steps:
            return "finished" if state.ends_early else "stopped"
    return "finished"


def judge(state: TrainState, report: StepReport) -> Verdict:
    """What the figures of a step that were read mean for the run. Called once a step, in order."""
    state.engine.record_verdict(not report.skipped)
    verdict = state.loss_monitor.step(report.mean_loss, report.skipped and not state.engine.was_overflow)
    if verdict == "spike":
        if state.world.rank == 0:
            metrics.LOSS_SPIKES.inc()
        log.warning("the loss of step %d, %.3f, is far above those before it", report.step, report.mean_loss)
    return verdict


def is_read_at_once(settings: TrainSettings, step: int) -> bool:
    """Whether the figures of a step, counted from 1, are read before the next one begins: the same on every rank.

    They are where a checkpoint or a validation is due, at the end, and in fp16, whose loss scale follows from them.
    """
    due = any(step % each == 0 for each in (settings.checkpoint.every_steps, settings.validation.every_steps))
    return due or step == settings.steps or settings.engine.precision == "fp16"


def rate_at(settings: TrainSettings, step: int) -> float:
    """Learning rate of step `step`, counted from 0."""
    return learning_rate(settings.schedule, settings.lanes, step * settings.batch)


def seed_of(settings: TrainSettings, step: int, lane: int) -> int:
    """What a lane's dropout and mixup are drawn from at a step."""
    return int(mix(settings.seed, step, lane)[0] >> 1)
