"""What hangs on the training loop: log lines and metrics, validation, checkpoints."""

import logging
import math
import time
from dataclasses import dataclass, field
from typing import Protocol

import torch

from pretrain import metrics
from pretrain.checkpoint import Checkpoint, save_checkpoint
from pretrain.data.loader import Clips, Loader
from pretrain.data.transforms import network_input
from pretrain.engine.engine import Engine
from pretrain.engine.world import World
from pretrain.run import Run
from pretrain.settings import TrainSettings

log = logging.getLogger("reelscale")


@dataclass
class StepReport:
    """One finished step. loss and right are this rank's sums over its clips, on the device."""

    step: int
    samples: int
    learning_rate: float
    clips: int = 0
    loss: torch.Tensor = field(default_factory=lambda: torch.zeros(()))
    right: torch.Tensor = field(default_factory=lambda: torch.zeros(()))

    def add(self, clips: Clips, logits: torch.Tensor, loss: torch.Tensor) -> None:
        """Add one lane's batch; a clip is right if its top class is among its labels."""
        self.clips += len(logits)
        self.loss = self.loss.to(loss.device) + loss.detach() * len(logits)
        self.right = self.right.to(loss.device) + right_clips(logits.detach(), clips.targets)


def right_clips(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """How many rows of logits [N, classes] have their top class among the labels of targets [N, classes]."""
    return (targets.gather(1, logits.argmax(1, keepdim=True)) > 0).sum().float()


class Hook(Protocol):
    """Something done after steps; every rank calls it at every step."""

    def after_step(self, report: StepReport, last: bool) -> None:
        """`report` of the step just taken; `last` says that the run ends or stops with it."""


class LogHook:
    """A log line, an event and the gauges every `log_steps` steps."""

    def __init__(self, settings: TrainSettings, engine: Engine, world: World, run: Run, loader: Loader) -> None:
        self._settings, self._engine, self._world, self._run = settings, engine, world, run
        self._loader = loader
        self._sums = torch.zeros(3, dtype=torch.float64, device="cpu")
        self._begin, self._waited = time.perf_counter(), 0.0
        metrics.STEPS.set(settings.steps)

    def after_step(self, report: StepReport, last: bool) -> None:
        """See `Hook`."""
        clips = report.loss.new_tensor(float(report.clips))
        self._sums += torch.stack([report.loss, report.right, clips]).cpu().double()
        metrics.STEP.set(report.step)
        metrics.SAMPLES.set(report.samples)
        if report.step % self._settings.log_steps and not last:
            return
        sums = self._sums.to(self._world.device, torch.float32)
        self._world.sum_(sums)
        loss, right, seen = sums.tolist()
        seconds = time.perf_counter() - self._begin
        wait = (self._loader.told.wait_seconds - self._waited) / seconds
        norm = self._engine.gradient_norm()
        self._report(report, loss / seen, right / seen, seen / seconds, wait, norm)
        self._sums.zero_()
        self._begin, self._waited = time.perf_counter(), self._loader.told.wait_seconds

    def _report(self, report: StepReport, loss: float, top1: float, rate: float, wait: float, norm: float) -> None:
        epoch = report.samples / self._settings.schedule.epoch_clips
        values = {
            "step": report.step,
            "epoch": epoch,
            "samples": report.samples,
            "loss": loss,
            "top1": top1,
            "lr": report.learning_rate,
            "grad_norm": norm if math.isfinite(norm) else None,
            "clips_per_second": rate,
            "data_wait_ratio": wait,
        }
        self._run.event("train", values)
        metrics.LOSS.set(loss)
        metrics.TOP1.set(top1)
        metrics.LEARNING_RATE.set(report.learning_rate)
        metrics.GRADIENT_NORM.set(norm)
        metrics.CLIP_RATE.set(rate)
        metrics.DATA_WAIT.set(wait)
        log.info(
            "step %d/%d  epoch %.2f  loss %.3f  top-1 %.1f %%  lr %.4g  grad norm %.2f  %.0f clips/s  wait %.0f %%",
            report.step, self._settings.steps, epoch, loss, 100 * top1, report.learning_rate, norm, rate, 100 * wait,
        )  # fmt: skip


class ValidationHook:
    """One centre clip of unseen videos, each counted once, spread over the ranks."""

    def __init__(self, settings: TrainSettings, engine: Engine, world: World, run: Run, loader: Loader) -> None:
        self._settings, self._engine, self._world, self._run = settings, engine, world, run
        self._loader = loader
        videos = loader.videos_unseen
        count = min(videos, settings.validation.videos)
        self._rows = [i * videos // count for i in range(count)]

    def after_step(self, report: StepReport, last: bool) -> None:
        """See `Hook`."""
        finished = report.step == self._settings.steps
        if report.step % self._settings.validation.every_steps and not finished:
            return
        sums = torch.zeros(3, device=self._world.device)
        model = self._engine.model
        model.eval()
        mine = self._rows[self._world.rank :: self._world.size]
        for clips in self._loader.unseen_clips(mine, self._settings.lane_batch):
            sums += self._batch(clips)
        model.train()
        self._world.sum_(sums)
        loss, right, videos = sums.tolist()
        values = {
            "step": report.step,
            "samples": report.samples,
            "loss": loss / videos,
            "clip1": right / videos,
        }
        self._run.event("validation", {**values, "videos": int(videos)})
        metrics.VALIDATION_CLIP1.set(right / videos)
        log.info("validation at step %d: loss %.3f, clip@1 %.1f %% on %d videos", report.step, loss / videos,
                 100 * right / videos, int(videos))  # fmt: skip

    def _batch(self, clips: Clips) -> torch.Tensor:
        logits = self._engine.predict(network_input(clips.planes, self._settings.data.clip))
        loss = torch.nn.functional.cross_entropy(logits, clips.targets, reduction="sum")
        count = torch.tensor(float(len(logits)), device=logits.device)
        return torch.stack([loss, right_clips(logits, clips.targets), count])


class CheckpointHook:
    """A committed checkpoint every so many steps, and at the end."""

    def __init__(self, settings: TrainSettings, engine: Engine, world: World, run: Run, attempt: int) -> None:
        self._settings, self._engine, self._world, self._run = settings, engine, world, run
        self._attempt = attempt

    def after_step(self, report: StepReport, last: bool) -> None:
        """See `Hook`."""
        if report.step % self._settings.checkpoint.every_steps and not last:
            return
        momentum = self._engine.momentum()
        if self._world.rank == 0:
            begin = time.perf_counter()
            state = {"step": report.step, "samples": report.samples, "attempt": self._attempt}
            checkpoint = Checkpoint(report.step, self._engine.model.state_dict(), momentum, state)
            folder = save_checkpoint(self._run.folder, self._attempt, checkpoint, self._settings.checkpoint.keep)
            metrics.CHECKPOINTS.inc()
            metrics.CHECKPOINT_SECONDS.set(time.perf_counter() - begin)
            log.info("checkpoint %s", folder)
        self._world.barrier()
