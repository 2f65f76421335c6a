"""Training's figures: each step in metrics, and every so many steps a log line, an event of the run, and gauges."""

from __future__ import annotations

import logging
import math
import time

import torch

from pretrain import metrics
from pretrain.engine.mfu import mfu, peak_flops
from pretrain.resilience.eta import Eta
from pretrain.resilience.memory import memory_in_use
from pretrain.resilience.process_age import seconds_since_start
from pretrain.resilience.stragglers import slow_ranks
from pretrain.training.state import TrainState
from pretrain.training.step import StepReport
from sharding.base.printable import duration

log = logging.getLogger("reelscale")


class StepMetrics:
    """Counts each step of this rank, and on rank 0 where the run is."""

    def __init__(self, state: TrainState) -> None:
        self._begin, self._still = time.perf_counter(), _stood_still(state)
        metrics.STEP.set(state.position.step)
        if state.world.rank == 0:
            metrics.ATTEMPTS.set(state.checkpointer.attempt)
            metrics.INTERRUPTIONS.set(state.position.interruptions)
            metrics.LOST_SECONDS.set(state.position.lost_seconds)
            _set_position(state, state.position.step * state.settings.batch)

    def after_step(self, state: TrainState, report: StepReport) -> None:
        """See `Callback`."""
        now, still = time.perf_counter(), _stood_still(state)
        metrics.STEP_SECONDS.observe(max(0.0, now - self._begin - (still - self._still)))
        self._begin, self._still = now, still
        if not state.engine.forward_waits:
            metrics.COMPUTE_SECONDS.observe(max(0.0, report.times.whole - report.times.exchange))
            if state.world.size > 1:
                metrics.EXCHANGE_SECONDS.observe(report.times.exchange)
        metrics.STEP.set(report.step)
        metrics.LAST_STEP_TIME.set_to_current_time()
        if state.world.rank == 0:
            metrics.THROUGHPUT.step()
            _set_position(state, report.samples)


class LogCallback:
    """A log line, an event and the gauges every `log_steps` steps, of all steps since the last ones.

    The time that validations took is not counted as training's.
    """

    def __init__(self, state: TrainState) -> None:
        """A collective, by which every rank's host is known."""
        self._peak = peak_flops(state.world.device, state.settings.engine.half)
        self._hosts = state.world.hosts()
        still, every = state.timers, state.settings.validation.every_steps
        self._eta = Eta(time.perf_counter(), state.position.step, every, still.validated, still.saved)
        self._begin_interval(state)

    def after_step(self, state: TrainState, report: StepReport) -> None:
        """See `Callback`."""
        self._clips += report.clips
        self._skipped += report.skipped
        self._own_seconds += report.times.own
        if not report.skipped:
            self._loss += report.loss
            self._right += report.right
            self._learned += report.clips
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
        _set_own_gauges(values)
        if state.world.rank == 0:
            metrics.THROUGHPUT.measured(self._clips, seconds)
            _set_run_gauges(values, state.world.device)
        still, steps = state.timers, state.settings.steps
        eta = self._eta.at(time.perf_counter(), report.step, steps, still.validated, still.saved)
        _log_line(values, steps, eta)
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
        slow = slow_ranks(rows[:, 0].tolist(), self._hosts)
        for rank, host, times in slow:
            log.warning("rank %d on %s is slow: its own work takes %.1f times the ranks' median", rank, host, times)
        if world.rank == 0:
            metrics.SLOW_RANKS.inc(len(slow))
            metrics.STRAGGLER_RANK.set(slow[0].rank if slow else math.nan)


def _set_position(state: TrainState, samples: int) -> None:
    metrics.SAMPLES.set(samples)
    metrics.EPOCH.set(samples / state.settings.schedule.epoch_clips)
    scale = state.engine.loss_scale
    if scale is not None:
        metrics.LOSS_SCALE.set(scale)


def _stood_still(state: TrainState) -> float:
    return state.timers.validated + state.timers.saved


def _set_own_gauges(values: dict[str, float]) -> None:
    """Of this rank."""
    metrics.DATA_WAIT.set(values["data_wait_ratio"])
    metrics.SAVING.set(values["saving_ratio"])
    metrics.MEMORY.set(values["memory_bytes"])


def _set_run_gauges(values: dict[str, float], device: torch.device) -> None:
    """Of all ranks, on rank 0."""
    metrics.LOSS.set(values["loss"])
    metrics.TOP1.set(values["top1"])
    metrics.LEARNING_RATE.set(values["lr"])
    metrics.GRADIENT_NORM.set(values["grad_norm"])
    if "mfu" in values:
        metrics.MFU.labels(device=torch.cuda.get_device_name(device)).set(values["mfu"])


def _log_line(values: dict[str, float], steps: int, eta: float | None) -> None:
    log.info(
        "step %d/%d  epoch %.2f  samples %s  loss %.3f  top-1 %.1f %%  lr %.4g  grad norm %.2f  %.0f clips/s  "
        "%swait %.0f %%  memory %.1f GB%s%s",
        values["step"], steps, values["epoch"], f"{values['samples']:,}", values["loss"], 100 * values["top1"],
        values["lr"], values["grad_norm"], values["clips_per_second"],
        f"MFU {100 * values['mfu']:.0f} %  " if "mfu" in values else "",
        100 * values["data_wait_ratio"], values["memory_bytes"] / 1e9,
        f"  left out {values['skipped']}" if values["skipped"] else "",
        f"  elapsed {duration(seconds_since_start())}" + (f"  ETA {duration(eta)}" if eta else ""),
    )  # fmt: skip
