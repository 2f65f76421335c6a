"""Learning rates by samples seen, so that a schedule survives another batch or world size: pure functions."""

import math
from typing import Annotated, Literal

from pydantic import Field

from sharding.base.settings import Settings, unit


class ScheduleSettings(Settings):
    """The learning rate over a run. An epoch is a number of clips, not a walk through the corpus."""

    lr: Annotated[
        float, Field(gt=0, le=10**6, description="base learning rate of one lane; multiplied by the number of lanes")
    ] = 0.01
    epoch_clips: Annotated[
        int,
        Field(
            json_schema_extra=unit("clips"),
            ge=1,
            le=10**12,
            description="clips in an epoch (1,000,000 in the R(2+1)D paper)",
        ),
    ] = 1_000_000
    epochs: Annotated[
        float, Field(json_schema_extra=unit("epochs"), gt=0, le=10**6, description="epochs of the whole run")
    ] = 45
    warmup_epochs: Annotated[
        float, Field(json_schema_extra=unit("epochs"), ge=0, le=10**6, description="epochs of linear warm-up")
    ] = 10
    decay: Annotated[
        Literal["steps", "cosine", "constant"], Field(description="how the rate goes on after the warm-up")
    ] = "steps"
    step_epochs: Annotated[
        float,
        Field(json_schema_extra=unit("epochs"), gt=0, le=10**6, description="decay=steps: epochs between two drops"),
    ] = 10
    gamma: Annotated[float, Field(gt=0, le=1, description="decay=steps: factor of a drop")] = 0.1
    rates: dict[str, Annotated[float, Field(ge=0, le=10**6)]] = Field(
        default_factory=dict,
        description="factors on the rate by part of the network: stem, conv2 to conv5 (stages for all of them), head; "
        "0 freezes a part; parts that are not named have 1",
    )

    def total_samples(self) -> int:
        """Samples of the whole run."""
        return max(1, self.clips(self.epochs))

    def clips(self, epochs: float) -> int:
        """Clips of so many epochs, a broken one counted whole; free of the product's rounding."""
        return math.ceil(round(epochs * self.epoch_clips, 3))


def total_steps(schedule: ScheduleSettings, batch: int) -> int:
    """Optimizer steps of the run, the last one full."""
    return math.ceil(schedule.total_samples() / batch)


def highest_rate(schedule: ScheduleSettings, lanes: int, batch: int) -> float:
    """The rate that the run's warm-up leads to: the peak, or its last step's where it ends before its warm-up does."""
    last = (total_steps(schedule, batch) - 1) * batch
    return learning_rate(schedule, lanes, min(last, schedule.clips(schedule.warmup_epochs)))


def learning_rate(schedule: ScheduleSettings, lanes: int, samples: int) -> float:
    """The learning rate of a step that begins after `samples` samples, for `lanes` lanes; a part's `rates` come on top.

    Linear warm-up from 1/100 of the peak, then `decay` (R(2+1)D paper, section 4.1, counts its drops from the
    end of the warm-up).
    """
    peak = schedule.lr * lanes
    warmup = schedule.clips(schedule.warmup_epochs)
    if samples < warmup:
        return peak * (0.01 + 0.99 * samples / warmup)
    after = samples - warmup
    if schedule.decay == "steps":
        return peak * schedule.gamma ** (after // max(1, schedule.clips(schedule.step_epochs)))
    if schedule.decay == "cosine":
        length = max(schedule.total_samples() - warmup, 1)
        return peak * 0.5 * (1.0 + math.cos(math.pi * min(after / length, 1.0)))
    return peak
