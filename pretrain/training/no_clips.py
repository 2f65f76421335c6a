"""A step that a rank has no clips for: left out on all ranks, after which the run stops as it was before it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

import torch

from pretrain.data.loader import ClipBatch
from pretrain.data.reading.outage import NoMoreClips
from pretrain.settings import PATIENCE, TrainSettings
from pretrain.training.initial_network import training_micro_step
from pretrain.training.setup import Session
from pretrain.training.step import StepReport

log = logging.getLogger("reelscale")


def clips_or_none(loader: Iterable[list[ClipBatch]]) -> Iterator[list[ClipBatch] | None]:
    """What the loader gives, and None for each step from the one on for which it has nothing to give."""
    try:
        yield from loader
    except NoMoreClips as error:
        log.warning("%s; what was trained is saved", error)
        while True:
            yield None


def take_part(settings: TrainSettings, session: Session, report: StepReport) -> None:
    """This rank's part in a step without clips: the others' collectives end, and gradients of NaN leave it out."""
    engine, device = session.engine, session.engine.world.device
    training = training_micro_step(settings, 0, engine.world.size)
    noise = torch.zeros(training.batch, *training.clip, device=device)
    for _ in range(1 if settings.together else len(session.lanes)):
        logits = engine.forward(noise)
        loss = logits.sum() * float("nan")
        engine.backward(loss)
        engine.step()
        report.add(torch.zeros_like(logits), logits, loss)
    report.absent = True


def exclude_compute_path(session: Session, report: StepReport) -> None:
    """Save the run as it was before the step. A collective."""
    session.position.step = report.step - 1
    with session.watchdog.patience(PATIENCE):
        session.saving.save()
