"""Training's figures every so many steps: a log line, an event of the run, and gauges."""

from __future__ import annotations

import logging
import math
import time

import torch

from pretrain import metrics
from pretrain.engine.mfu import mfu, peak_flops
from pretrain.resilience.memory import memory_in_use
from pretrain.resilience.stragglers import slow_ranks
from pretrain.training.state import TrainState
from pretrain.training.step import StepReport

log = logging.getLogger("reelscale")


class LogCallback:
    """A log line, an event and the gauges every `log_steps` steps, of all steps since the last ones.

    The time that validations took is not counted as training's.
    """

    def __init__(self, state: TrainState) -> None:
        """A collective, by which every rank's host is known."""
        self._peak = peak_flops(state.world.device, state.settings.engine.half)
        self._hosts = state.world.hosts()
        self._begin_interval(state)
        metrics.STEP.set(state.position.step)
        metrics.INTERRUPTIONS.set(state.position.interruptions)
        metrics.LOST_SECONDS.set(state.position.lost_seconds)
        metrics.SAMPLES.set(state.position.step * state.settings.batch)

    def after_step(self, state: TrainState, report: StepReport) -> None:
        """See `Callback`."""
        self._clips += report.clips
        self._skipped += report.skipped
        self._own_seconds += report.own_seconds
        if not report.skipped:
            self._loss += report.loss
            self._right += report.right
            self._learned += report.clips
        metrics.STEP.set(report.step)
        metrics.SAMPLES.set(report.samples)
        if report.step % state.settings.log_steps and not report.last:
            return
        seconds = time.perf_counter() - self._begin - (state.timers.validated - self._validated)
        waited = state.timers.waited - self._waited
        self._warn_of_slow_ranks(state, self._own_seconds + waited)
        rate = self._clips / seconds
        values = {
            "step": report.step,
            "epoch": report.samples / state.settings.schedule.epoch_clips,
            "samples": report.samples,
            "loss": self._loss / self._learned if self._learned else math.nan,
            "top1": self._right / self._learned if self._learned else math.nan,
            "lr": report.learning_rate,
            "grad_norm": report.gradient_norm,
            "clips_per_second": rate,
            "data_wait_ratio": waited / seconds,
            "saving_ratio": (state.timers.saved - self._saved) / seconds,
            "memory_bytes": memory_in_use(state.world.device),
            "skipped": self._skipped,
        }
        if self._peak is not None:
            values["mfu"] = mfu(rate, state.macs, self._peak, state.world.size)
        state.run.event("train", values)
        _set_gauges(values, state.world.device)
        _log_line(values, state.settings.steps)
        self._begin_interval(state)

    def _begin_interval(self, state: TrainState) -> None:
        self._loss = self._right = self._clips = self._learned = 0.0
        self._skipped, self._own_seconds = 0, 0.0
        self._begin = time.perf_counter()
        self._waited, self._saved = state.timers.waited, state.timers.saved
        self._validated = state.timers.validated

    def _warn_of_slow_ranks(self, state: TrainState, own_seconds: float) -> None:
        """A collective."""
        world = state.world
        if world.size == 1:
            return
        rows = world.gather(torch.tensor([own_seconds], device=world.device))
        for rank, host, times in slow_ranks(rows[:, 0].tolist(), self._hosts):
            log.warning("rank %d on %s is slow: its own work takes %.1f times the ranks' median", rank, host, times)
            metrics.SLOW_RANKS.inc()


def _set_gauges(values: dict[str, float], device: torch.device) -> None:
    metrics.LOSS.set(values["loss"])
    metrics.TOP1.set(values["top1"])
    metrics.LEARNING_RATE.set(values["lr"])
    metrics.GRADIENT_NORM.set(values["grad_norm"])
    metrics.CLIP_RATE.set(values["clips_per_second"])
    metrics.DATA_WAIT.set(values["data_wait_ratio"])
    metrics.SAVING.set(values["saving_ratio"])
    metrics.MEMORY.set(values["memory_bytes"])
    if "mfu" in values:
        metrics.MFU.labels(device=torch.cuda.get_device_name(device)).set(values["mfu"])


def _log_line(values: dict[str, float], steps: int) -> None:
    log.info(
        "step %d/%d  epoch %.2f  samples %s  loss %.3f  top-1 %.1f %%  lr %.4g  grad norm %.2f  %.0f clips/s  "
        "%swait %.0f %%  memory %.1f GB%s",
        values["step"], steps, values["epoch"], f"{values['samples']:,}", values["loss"], 100 * values["top1"],
        values["lr"], values["grad_norm"], values["clips_per_second"],
        f"MFU {100 * values['mfu']:.0f} %  " if "mfu" in values else "",
        100 * values["data_wait_ratio"], values["memory_bytes"] / 1e9,
        f"  left out {values['skipped']}" if values["skipped"] else "",
    )  # fmt: skip
