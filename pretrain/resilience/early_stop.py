"""Early stopping: when validations have gained nothing for long enough, as a pure function of their figures."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import Field

from sharding.base.settings import Settings, unit


class EarlyStopSettings(Settings):
    """When a run ends before its schedule does, for its validations gain no more."""

    metric: Annotated[
        Literal["clip1", "loss"], Field(description="figure of the validation that has to gain: clip@1, or its loss")
    ] = "clip1"
    patience: Annotated[
        int,
        Field(
            json_schema_extra=unit("validations"),
            ge=1,
            description="validations in a row without a gain after which the run ends",
        ),
    ]
    min_gain: Annotated[
        float,
        Field(
            ge=0, description="by how much more than the best so far counts as a gain: a share of clip@1, or of loss"
        ),
    ] = 0.0


@dataclass(frozen=True)
class EarlyStopState:
    """The best figure that counted so far, and validations since it."""

    best: float | None = None
    without_gain: int = 0

    def after(self, settings: EarlyStopSettings, clip1: float, loss: float) -> EarlyStopState:
        """The state after a validation of these figures; one that is NaN is no gain, nor ever the best."""
        figure = clip1 if settings.metric == "clip1" else -loss
        if not math.isnan(figure) and (self.best is None or figure > self.best + settings.min_gain):
            return replace(self, best=figure, without_gain=0)
        return replace(self, without_gain=self.without_gain + 1)

    def ends(self, settings: EarlyStopSettings | None) -> bool:
        """Whether the run ends here; one whose settings have more patience since goes on."""
        return settings is not None and self.without_gain >= settings.patience

    @classmethod
    def of_checkpoint(cls, state: dict[str, Any]) -> EarlyStopState:
        """What a checkpoint's state says of it; that of a new run where it says nothing.

        A best of NaN reads as none: nothing would ever be more.
        """
        read = cls(**state.get("early_stop", {}))
        return replace(read, best=None) if read.best is not None and math.isnan(read.best) else read
