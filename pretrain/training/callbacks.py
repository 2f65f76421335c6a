"""What is done after a step besides training: validation, checkpoints, precise statistics, a line at the first step."""

from __future__ import annotations

import logging
from typing import Protocol

import torch

from pretrain import metrics
from pretrain.data.device.transforms import network_input
from pretrain.data.loader import ClipBatch
from pretrain.data.reading.outage import NoMoreClips
from pretrain.resilience.process_age import seconds_since_start
from pretrain.resilience.progress import TRAINING
from pretrain.training.state import TrainState
from pretrain.training.step import StepReport, right_clips

log = logging.getLogger("reelscale")


class Callback(Protocol):
    """Something done after steps; every rank calls it at every step, in order.

    The engine may have been sent the next step by then, but not where a checkpoint or a validation is due.
    """

    def after_step(self, state: TrainState, report: StepReport) -> None:
        """Act on a step whose figures are read; `report.last` says that the run ends or stops with it."""


class PreciseStatistics:
    """Precise batch normalisation: at the end, the mean statistics of many batches instead of the moving ones."""

    def after_step(self, state: TrainState, report: StepReport) -> None:
        """See `Callback`."""
        settings = state.settings
        if report.step < settings.steps:
            return
        first = state.position.data_step
        steps = first, first + settings.precise_statistics
        with TRAINING.during("validating"), state.loader_of(*steps) as loader:
            clip, together = settings.data.clip, settings.together
            batches = (each for step in loader for each in ([ClipBatch.joined(step)] if together else step))
            state.engine.predictor.recompute_statistics(network_input(each.planes, clip) for each in batches)
        log.info("batch statistics taken anew of %d steps' clips", settings.precise_statistics)


class ValidationCallback:
    """One centre clip of unseen videos, each counted once, spread over the ranks; by averaged weights where kept.

    Damaged videos are left out, and the figures say of how many. A request to stop breaks a validation off, but for
    the run's last one, and where early stopping counts them: a run that goes on is to end where it would have ended.
    """

    def __init__(self, state: TrainState) -> None:
        videos = state.loader.unseen_videos
        count = min(videos, state.settings.validation.videos)
        self._rows = [i * videos // count for i in range(count)]

    def after_step(self, state: TrainState, report: StepReport) -> None:
        """See `Callback`.

        Enters `clip1` and `best` in the report, unless all videos are damaged; `stopping`, where it was broken off on
        any rank.
        """
        finished = report.step == state.settings.steps
        if report.step % state.settings.validation.every_steps and not finished:
            return
        log.info("validating on %d videos", len(self._rows))
        with state.timers.validating():
            may_stop = not finished and state.settings.validation.early_stop is None
            loss, right, videos, broken_off = self._sums(state, may_stop)
        if broken_off:
            report.stopping = True
            log.warning("the validation at step %d was broken off: it has no figures", report.step)
        elif not videos:
            log.warning("no validation at step %d: all %d videos are damaged", report.step, len(self._rows))
        else:
            report.clip1 = right / videos
            report.best = state.position.best is None or report.clip1 > state.position.best
            if report.best:
                state.position.best = report.clip1
            self._publish(state, report, report.clip1, loss / videos, int(videos))
            if not finished:
                self._stop_early(state, report, report.clip1, loss / videos)

    def _stop_early(self, state: TrainState, report: StepReport, clip1: float, loss: float) -> None:
        """Have the run end with this step where validations gain no more; the same on every rank."""
        settings, position = state.settings.validation.early_stop, state.position
        if settings is None:
            return
        position.early_stop = position.early_stop.after(settings, clip1, loss)
        if state.ends_early:
            report.stopping = True
            log.info("%s has not gained more than %g in %d validations", settings.metric, settings.min_gain,
                     position.early_stop.without_gain)  # fmt: skip

    def _sums(self, state: TrainState, may_stop: bool) -> list[float]:
        """Over all ranks: losses, right clips, videos, and ranks on which it was broken off."""
        sums = torch.zeros(4, device=state.world.device)
        averaged = state.settings.engine.average is not None
        model = state.engine.model
        state.engine.predictor.gather(averaged)
        model.eval()
        rows = self._rows[state.world.rank :: state.world.size]
        try:
            for clips in state.loader.unseen_clips(rows, state.settings.lane_batch):
                sums[:3] += _sums_of(state, clips, averaged)
                if may_stop and state.stop.asked:
                    raise NoMoreClips("the run is asked to stop")
        except NoMoreClips as error:
            log.warning("%s", error)
            sums[3] = 1
        model.train()
        state.world.sum_(sums)
        return sums.tolist()

    def _publish(self, state: TrainState, report: StepReport, clip1: float, loss: float, videos: int) -> None:
        damaged = len(self._rows) - videos
        values = {"step": report.step, "samples": report.samples, "loss": loss, "clip1": clip1}
        state.run.event("validation", {**values, "videos": videos, "damaged": damaged})
        if state.world.rank == 0:
            metrics.VALIDATION_CLIP1.set(clip1)
            metrics.VALIDATION_TIME.set_to_current_time()
        log.info("validation at step %d: loss %.3f, clip@1 %.1f %% on %d%s videos%s", report.step, loss, 100 * clip1,
                 videos, f" of {len(self._rows)}" if damaged else "",
                 f", the other {damaged} damaged" if damaged else "")  # fmt: skip


class CheckpointCallback:
    """A checkpoint every so many steps, at a validation's best and at the end, written while training goes on."""

    def after_step(self, state: TrainState, report: StepReport) -> None:
        """See `Callback`."""
        if report.step % state.settings.checkpoint.every_steps and not (report.last or report.best):
            return
        state.save(report.clip1, report.last)


class FirstStepCallback:
    """A log line after the first step that this process takes."""

    def __init__(self) -> None:
        self._is_logged = False

    def after_step(self, state: TrainState, report: StepReport) -> None:
        """See `Callback`."""
        if not self._is_logged:
            log.info("step %d is taken, %.1f s after this process began", report.step, seconds_since_start())
            self._is_logged = True


def _sums_of(state: TrainState, clips: ClipBatch, averaged: bool) -> torch.Tensor:
    """Of a batch: losses, right clips, videos."""
    video = network_input(clips.planes, state.settings.data.clip)
    logits = state.engine.predictor.predict(video, averaged)
    loss = torch.nn.functional.cross_entropy(logits, clips.targets, reduction="sum")
    count = torch.tensor(float(len(logits)), device=logits.device)
    return torch.stack([loss, right_clips(logits, clips.targets), count])
