"""The batches that the loop trains on, step by step: once more where it is asked for, none where data has run out.

A step that a rank has no clips for is left out on all ranks, after which the run stops as it was before it.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from typing import Generic, TypeVar

import torch

from pretrain import metrics
from pretrain.data.loader import ClipBatch
from pretrain.data.reading.outage import NoMoreClips
from pretrain.settings import PATIENCE
from pretrain.training.initial_network import training_micro_step
from pretrain.training.state import TrainState
from pretrain.training.step import StepReport

log = logging.getLogger("reelscale")

T = TypeVar("T")


class Repeatable(Generic[T]):
    """An iterator whose last item comes once more after `again`."""

    def __init__(self, items: Iterable[T]) -> None:
        self._items, self._last, self._again = iter(items), list[T](), False

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        if not self._again:
            self._last = [next(self._items)]
        self._again = False
        return self._last[0]

    def again(self) -> None:
        """Have the last item come again."""
        self._again = True


def batches_or_none(loader: Iterable[list[ClipBatch]]) -> Iterator[list[ClipBatch] | None]:
    """A step's batches after the other, and None for each step from the first on for which the loader has none."""
    try:
        yield from loader
    except NoMoreClips as error:
        log.warning("%s; what was trained is saved", error)
        while True:
            yield None


def micro_steps(lanes: range, batches: list[ClipBatch], together: bool) -> Iterator[tuple[Sequence[int], ClipBatch]]:
    """(lanes, clips) of each micro-step of a step: a lane at a time, or all lanes at once."""
    if together:
        yield lanes, ClipBatch.joined(batches)
        return
    for lane, clips in zip(lanes, batches, strict=True):
        yield [lane], clips


def step_without_clips(state: TrainState, report: StepReport) -> None:
    """Take part in a step by zeros: the other ranks' collectives end, and gradients of NaN leave the step out."""
    engine, device = state.engine, state.world.device
    training = training_micro_step(state.settings, 0, state.world.size)
    zeros = torch.zeros(training.batch, *training.clip, device=device)
    for _ in range(1 if state.settings.together else len(state.lanes)):
        logits = engine.forward(zeros)
        loss = logits.sum() * float("nan")
        engine.backward(loss)
        engine.step()
        report.add(torch.zeros_like(logits), logits, loss)
    report.absent = True


def save_before(state: TrainState, report: StepReport) -> None:
    """Save the run as it was before a step that was left out for want of clips. A collective."""
    if state.world.rank == 0:
        metrics.SKIPPED_STEPS.labels("no_clips").inc()
    state.position.step = report.step - 1
    with state.watchdog.patience(PATIENCE):
        state.save(last=True)
