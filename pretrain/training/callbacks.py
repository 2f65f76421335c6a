"""What hangs on the training loop: log lines and metrics, validation, checkpoints."""

import logging
import math
import time
from collections.abc import Callable
from typing import Protocol

import torch

from pretrain import metrics
from pretrain.checkpoints.checkpoint import Checkpoint
from pretrain.checkpoints.checkpointer import Checkpointer
from pretrain.data.device.transforms import network_input
from pretrain.data.loader import Clips, Loader
from pretrain.data.reading.outage import NoMoreClips
from pretrain.engine.distributed import World
from pretrain.engine.engine import Engine
from pretrain.engine.mfu import mfu, peak_flops
from pretrain.resilience.loss_monitor import LossWatch
from pretrain.resilience.memory import memory_in_use
from pretrain.resilience.stragglers import slow_ranks
from pretrain.run_folder import Run
from pretrain.settings import TrainSettings
from pretrain.training.step import Position, StepReport, right_clips

log = logging.getLogger("reelscale")


class Hook(Protocol):
    """Something done after steps; every rank calls it at every step, in order.

    The engine may have been sent the next step by then, but not where a checkpoint or a validation is due.
    """

    def after_step(self, report: StepReport, last: bool) -> None:
        """`report` of a step, its figures read; `last` says that the run ends or stops with it."""


class LogHook:
    """A log line, an event and the gauges every `log_steps` steps."""

    def __init__(
        self,
        settings: TrainSettings,
        world: World,
        run: Run,
        loader: Loader,
        saving: "CheckpointHook",
        validation: "ValidationHook | None",
        cost: int,
    ) -> None:
        """`cost`: multiply-accumulates of a clip's forward pass. What a validation takes is no time of training."""
        self._settings, self._world, self._run, self._loader = settings, world, run, loader
        self._saving, self._validation = saving, validation
        self._macs = cost
        self._peak = peak_flops(world.device, settings.engine.half)
        self._hosts = world.hosts()
        self._begin_interval()
        metrics.STEPS.set(settings.steps)

    def after_step(self, report: StepReport, last: bool) -> None:
        """See `Hook`."""
        self._clips += report.clips
        self._skipped += report.skipped
        self._own_seconds += report.own_seconds
        if not report.skipped:
            self._loss += report.loss
            self._right += report.right
            self._learned += report.clips
        metrics.STEP.set(report.step)
        metrics.SAMPLES.set(report.samples)
        if report.step % self._settings.log_steps and not last:
            return
        seconds = time.perf_counter() - self._begin - (self._validating() - self._validated)
        waited = self._loader.told.wait_seconds - self._waited
        self._tell_slow(self._own_seconds + waited)
        rate = self._clips / seconds
        values = {
            "step": report.step,
            "epoch": report.samples / self._settings.schedule.epoch_clips,
            "samples": report.samples,
            "loss": self._loss / self._learned if self._learned else math.nan,
            "top1": self._right / self._learned if self._learned else math.nan,
            "lr": report.learning_rate,
            "grad_norm": report.gradient_norm,
            "clips_per_second": rate,
            "data_wait_ratio": waited / seconds,
            "saving_ratio": (self._saving.seconds - self._saved) / seconds,
            "memory_bytes": memory_in_use(self._world.device),
            "skipped": self._skipped,
        }
        if self._peak is not None:
            values["mfu"] = mfu(rate, self._macs, self._peak, self._world.size)
        self._report(values)
        self._begin_interval()

    def _begin_interval(self) -> None:
        self._loss = self._right = self._clips = self._learned = 0.0
        self._skipped, self._own_seconds = 0, 0.0
        self._begin = time.perf_counter()
        self._waited, self._saved = self._loader.told.wait_seconds, self._saving.seconds
        self._validated = self._validating()

    def _validating(self) -> float:
        return self._validation.seconds if self._validation else 0.0

    def _tell_slow(self, own_seconds: float) -> None:
        if self._world.size == 1:
            return
        rows = self._world.gather(torch.tensor([own_seconds], device=self._world.device))
        for rank, host, times in slow_ranks(rows[:, 0].tolist(), self._hosts):
            log.warning("rank %d on %s is slow: its own work takes %.1f times the ranks' median", rank, host, times)
            metrics.SLOW_RANKS.inc()

    def _report(self, values: dict[str, float]) -> None:
        self._run.event("train", values)
        metrics.LOSS.set(values["loss"])
        metrics.TOP1.set(values["top1"])
        metrics.LEARNING_RATE.set(values["lr"])
        metrics.GRADIENT_NORM.set(values["grad_norm"])
        metrics.CLIP_RATE.set(values["clips_per_second"])
        metrics.DATA_WAIT.set(values["data_wait_ratio"])
        metrics.SAVING.set(values["saving_ratio"])
        metrics.MEMORY.set(values["memory_bytes"])
        used = ""
        if "mfu" in values:
            metrics.MFU.labels(device=torch.cuda.get_device_name(self._world.device)).set(values["mfu"])
            used = f"MFU {100 * values['mfu']:.0f} %  "
        log.info(
            "step %d/%d  epoch %.2f  samples %s  loss %.3f  top-1 %.1f %%  lr %.4g  grad norm %.2f  %.0f clips/s  "
            "%swait %.0f %%  memory %.1f GB%s",
            values["step"], self._settings.steps, values["epoch"], f"{values['samples']:,}", values["loss"],
            100 * values["top1"], values["lr"], values["grad_norm"], values["clips_per_second"], used,
            100 * values["data_wait_ratio"], values["memory_bytes"] / 1e9,
            f"  left out {values['skipped']}" if values["skipped"] else "",
        )  # fmt: skip


class StatisticsHook:
    """Precise batch normalisation: at the end, the mean statistics of many batches instead of the moving ones."""

    def __init__(
        self, settings: TrainSettings, engine: Engine, position: Position, batches: Callable[[int, int], Loader]
    ) -> None:
        """`batches(first, last)`: a loader of these steps of the order."""
        self._settings, self._engine, self._position, self._batches = settings, engine, position, batches

    def after_step(self, report: StepReport, last: bool) -> None:
        """See `Hook`."""
        if report.step < self._settings.steps:
            return
        first = self._position.data_step
        with self._batches(first, first + self._settings.precise_statistics) as loader:
            clip = self._settings.data.clip
            together = self._settings.together
            seen = (each for step in loader for each in ([Clips.together(step)] if together else step))
            self._engine.recompute_statistics(network_input(each.planes, clip) for each in seen)
        log.info("batch statistics taken anew of %d steps' clips", self._settings.precise_statistics)


class ValidationHook:
    """One centre clip of unseen videos, each counted once, spread over the ranks; by averaged weights where kept.

    Damaged videos are left out, and the figures say of how many. `seconds`: that it took so far.
    """

    def __init__(
        self,
        settings: TrainSettings,
        engine: Engine,
        world: World,
        run: Run,
        loader: Loader,
        position: Position,
        stopping: Callable[[], bool],
    ) -> None:
        """`stopping`: whether this rank is asked to stop, which breaks a validation off, but for the run's last one."""
        self._settings, self._engine, self._world, self._run = settings, engine, world, run
        self._loader, self._position, self._stopping = loader, position, stopping
        self._averaged = settings.engine.average is not None
        videos = loader.videos_unseen
        count = min(videos, settings.validation.videos)
        self._rows = [i * videos // count for i in range(count)]
        self.seconds = 0.0

    def after_step(self, report: StepReport, last: bool) -> None:
        """See `Hook`. Enters `clip1` and `best` in the report, unless all videos are damaged; `stopping`, where it was
        broken off on any rank.
        """
        finished = report.step == self._settings.steps
        if report.step % self._settings.validation.every_steps and not finished:
            return
        begin = time.perf_counter()
        sums = torch.zeros(4, device=self._world.device)
        model = self._engine.model
        self._engine.gather_for_predictions(self._averaged)
        model.eval()
        mine = self._rows[self._world.rank :: self._world.size]
        try:
            for clips in self._loader.unseen_clips(mine, self._settings.lane_batch):
                sums[:3] += self._batch(clips)
                if self._stopping() and not finished:
                    raise NoMoreClips("the run is asked to stop")
        except NoMoreClips as error:
            log.warning("%s", error)
            sums[3] = 1
        model.train()
        self._world.sum_(sums)
        loss, right, videos, broken_off = sums.tolist()
        self.seconds += time.perf_counter() - begin
        if broken_off:
            report.stopping = True
            log.warning("the validation at step %d was broken off: it has no figures", report.step)
            return
        if not videos:
            log.warning("no validation at step %d: all %d videos are damaged", report.step, len(self._rows))
            return
        report.clip1 = right / videos
        report.best = self._position.best is None or report.clip1 > self._position.best
        if report.best:
            self._position.best = report.clip1
        damaged = len(self._rows) - int(videos)
        values = {
            "step": report.step,
            "samples": report.samples,
            "loss": loss / videos,
            "clip1": report.clip1,
        }
        self._run.event("validation", {**values, "videos": int(videos), "damaged": damaged})
        metrics.VALIDATION_CLIP1.set(report.clip1)
        log.info("validation at step %d: loss %.3f, clip@1 %.1f %% on %d%s videos%s", report.step, loss / videos,
                 100 * report.clip1, int(videos), f" of {len(self._rows)}" if damaged else "",
                 f", the other {damaged} damaged" if damaged else "")  # fmt: skip

    def _batch(self, clips: Clips) -> torch.Tensor:
        video = network_input(clips.planes, self._settings.data.clip)
        logits = self._engine.predict(video, self._averaged)
        loss = torch.nn.functional.cross_entropy(logits, clips.targets, reduction="sum")
        count = torch.tensor(float(len(logits)), device=logits.device)
        return torch.stack([loss, right_clips(logits, clips.targets), count])


class CheckpointHook:
    """A checkpoint every so many steps, at a validation's best and at the end, written while training goes on.

    `seconds`: that training stood still for it.
    """

    def __init__(
        self,
        settings: TrainSettings,
        engine: Engine,
        world: World,
        position: Position,
        watch: LossWatch,
        checkpointer: Checkpointer,
    ) -> None:
        self._settings, self._engine, self._world = settings, engine, world
        self._position, self._watch, self._checkpointer = position, watch, checkpointer
        self.seconds = 0.0

    def after_step(self, report: StepReport, last: bool) -> None:
        """See `Hook`."""
        if report.step % self._settings.checkpoint.every_steps and not (last or report.best):
            return
        self.save(report.clip1)

    def save(self, clip1: float | None = None) -> None:
        """A checkpoint of where the run is. A collective. `clip1`: of its validation just now."""
        begin = time.perf_counter()
        whole = self._engine.state()
        step = self._position.step
        state = {
            "step": step,
            "samples": step * self._settings.batch,
            "passed_over": self._position.passed_over,
            "best": self._position.best,
            "watch": self._watch.state(),
            "scaler": whole.scaler,
            "clip1": clip1,
        }
        self._checkpointer.save(Checkpoint(step, whole.model, whole.optimizer, whole.average, state))
        self.seconds += time.perf_counter() - begin
