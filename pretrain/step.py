"""One step of training: what is summed over its clips, and what all ranks agree on at its end."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pretrain.engine.world import World


@dataclass
class Position:
    """Where a run is: optimizer steps taken, and steps' worth of samples that were shown in vain.

    `best`: the highest clip@1 of a validation so far; `set_back`: how often the run went back to a checkpoint.
    """

    step: int = 0
    passed_over: int = 0
    best: float | None = None
    set_back: dict[int, int] = field(default_factory=dict)

    @property
    def data_step(self) -> int:
        """The step of the order whose samples come next."""
        return self.step + self.passed_over


@dataclass
class StepReport:
    """A finished step, its figures first of this rank and, once `agree` was called, of all ranks.

    loss: sum over clips; right: clips whose top class is among their labels; `own_seconds`: what this rank took until
    the others could have waited for it; gradient_norm: before clipping; `clip1`: of a validation after this step.
    """

    step: int
    samples: int
    learning_rate: float
    skipped: bool = False
    clips: float = 0.0
    loss: float = 0.0
    right: float = 0.0
    gradient_norm: float = float("nan")
    own_seconds: float = 0.0
    clip1: float | None = None
    best: bool = False
    _sums: list[Tensor] = field(default_factory=list)

    def add(self, targets: Tensor, logits: Tensor, loss: Tensor) -> None:
        """Add a pass: targets as trained on and logits [N, classes], its mean loss. Nothing waits for the device."""
        count = float(len(logits))
        right = right_clips(logits.detach(), targets)
        self._sums.append(torch.stack([loss.detach().float() * count, right, right.new_tensor(count)]))

    def agree(self, world: World, stop: bool) -> bool:
        """Sum over all ranks; whether any of them is to stop. One collective, and one wait for the device."""
        sums = torch.stack(self._sums).sum(0)
        word = torch.cat([sums, sums.new_tensor([float(stop)])])
        world.sum_(word)
        self.loss, self.right, self.clips, stops = word.tolist()
        return stops > 0

    @property
    def mean_loss(self) -> float:
        """A clip's."""
        return self.loss / self.clips


def right_clips(logits: Tensor, targets: Tensor) -> Tensor:
    """How many rows of logits [N, classes] have their top class among those that weigh most in targets [N, classes].

    Those are a clip's labels; of two that were mixed, the labels of the one that is more of the clip.
    """
    chosen = targets.gather(1, logits.argmax(1, keepdim=True))
    return (chosen >= targets.amax(1, keepdim=True)).sum().float()


class OwnTime:
    """Seconds that this rank's device and host took by themselves, between `begin` and `end`, summed until `take`.

    Of each pass up to where it may wait for other ranks: what waits is as slow on all of them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun = 0.0
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def begin(self) -> None:
        """Of work that waits for no other rank."""
        if self._device.type == "cuda":
            self._events.append((_marked(), torch.cuda.Event(enable_timing=True)))
        else:
            self._begun = time.perf_counter()

    def end(self, here: bool = True) -> None:
        """Of that work, as far as it was sent to the device, if it is `here`."""
        if not here:
            return
        if self._device.type == "cuda":
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._begun

    def take(self) -> float:
        """Seconds so far, and begin at nought. After the device was waited for."""
        seconds = self._seconds + sum(first.elapsed_time(last) for first, last in self._events) / 1e3
        self._seconds = 0.0
        self._events.clear()
        return seconds


def _marked() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
