"""One step's figures: summed over its clips and ranks on the device, sent to the host, and read when they have come."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from pretrain.engine.distributed import World


class StepTimes(NamedTuple):
    """Seconds of a step on this rank.

    own: until it could wait for other ranks (all wait for the slowest, so that whole steps take the same everywhere).
    whole: all that was computed, and `exchange` of that, in which gradients were summed over the ranks.
    """

    own: float = 0.0
    whole: float = 0.0
    exchange: float = 0.0


@dataclass
class StepReport:
    """A step and its figures: of this rank on the device, then sent to the host, and of all ranks once they are read.

    loss: sum over clips; right: clips whose top class is among their labels; skipped: the optimizer left it out;
    gradient_norm: before clipping; stopping: a rank was asked to stop; `times`: of this rank; `clip1`: of a
    validation after this step, `best`: the highest so far; `absent`: a rank had no clips for it; `last`: the run ends
    or stops with it.
    """

    step: int
    samples: int
    learning_rate: float
    skipped: bool = False
    stopping: bool = False
    absent: bool = False
    clips: float = 0.0
    loss: float = 0.0
    right: float = 0.0
    gradient_norm: float = float("nan")
    times: StepTimes = field(default_factory=StepTimes)
    clip1: float | None = None
    best: bool = False
    last: bool = False
    _sums: list[Tensor] = field(default_factory=list)
    _sent: Tensor | None = None
    _copied: torch.cuda.Event | None = None
    _times: Callable[[], StepTimes] = StepTimes

    def add(self, targets: Tensor, logits: Tensor, loss: Tensor) -> None:
        """Add a micro-step: targets as trained on and logits [N, classes], its mean loss. Waits for no device."""
        count = float(len(logits))
        right = right_clips(logits.detach(), targets)
        self._sums.append(torch.stack([loss.detach().float() * count, right, right.new_full((), count)]))

    def send(self, world: World, stop: bool, verdict: Tensor, times: Callable[[], StepTimes] = StepTimes) -> None:
        """Sum over all ranks and send the sums to the host: one collective, and nothing waits for a GPU.

        stop: whether this rank is to stop. verdict: the engine's of this step, the same on every rank. times: gives
        this rank's once the device is done.
        """
        sums = torch.stack(self._sums).sum(0)
        figures = torch.cat([sums, sums.new_full((1,), float(self.absent)), sums.new_full((1,), float(stop))])
        world.sum_(figures)
        # From a GPU into pinned memory, which torch takes by itself where a copy is not to block.
        self._sent, self._times = torch.cat([figures, verdict]).to("cpu", non_blocking=True), times
        if figures.is_cuda:
            self._copied = torch.cuda.Event(blocking=True)  # leaves the core to others
            self._copied.record()

    def read(self) -> None:
        """The figures, once they have come: the one wait for the device that a step costs, for this step alone."""
        assert self._sent is not None, "not sent"
        if self._copied is not None:
            self._copied.synchronize()
        self.loss, self.right, self.clips, absent, stops, taken, self.gradient_norm = self._sent.tolist()
        self.stopping, self.absent, self.skipped = stops > 0, absent > 0, taken == 0
        self.times = self._times()

    @property
    def mean_loss(self) -> float:
        """The loss of a clip, over all clips of the step."""
        return self.loss / self.clips


def right_clips(logits: Tensor, targets: Tensor) -> Tensor:
    """How many rows of logits [N, classes] have their top class among those that weigh most in targets [N, classes].

    Those are a clip's labels; of two that were mixed, the labels of the one that is more of the clip.
    """
    chosen = targets.gather(1, logits.argmax(1, keepdim=True))
    return (chosen >= targets.amax(1, keepdim=True)).sum().float()


class StepClock:
    """Takes the times of steps: what is begun and ended several times in a step is summed. It waits for no device."""

    def __init__(self, device: torch.device) -> None:
        self.own, self.whole, self.exchange = DeviceTime(device), DeviceTime(device), DeviceTime(device)

    def begin(self) -> None:
        """A micro-step, and what of it waits for no other rank."""
        self.whole.begin()
        self.own.begin()

    def step(self) -> Callable[[], StepTimes]:
        """What gives the times of the step that ends here, once the device has done it."""
        own, whole, exchange = self.own.step(), self.whole.step(), self.exchange.step()
        return lambda: StepTimes(own(), whole(), exchange())


class DeviceTime:
    """Seconds that this rank's device took, or on a CPU the host, between each `begin` and `end` in a step."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._begun = 0.0
        self._seconds = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def begin(self) -> None:
        """Of work as it is sent to the device."""
        if self._device.type == "cuda":
            self._events.append((_marked(), torch.cuda.Event(enable_timing=True)))
        else:
            self._begun = time.perf_counter()

    def end(self, ends: bool = True) -> None:
        """Of that work, as far as it was sent to the device; without `ends` it goes on."""
        if not ends:
            return
        if self._device.type == "cuda":
            self._events[-1][1].record()
        else:
            self._seconds += time.perf_counter() - self._begun

    def step(self) -> Callable[[], float]:
        """What gives the seconds of the step that ends here, once the device has done it; the next begins at nought."""
        seconds, events = self._seconds, self._events
        self._seconds, self._events = 0.0, []
        return lambda: seconds + sum(first.elapsed_time(last) for first, last in events) / 1e3


def _marked() -> torch.cuda.Event:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
