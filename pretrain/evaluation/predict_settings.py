"""The settings of `reelscale predict`. No torch here."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from sharding.base.settings import Settings, unit


class PredictSettings(Settings):
    """What of a video is looked at, and how it is prepared."""

    clips: Annotated[
        int,
        Field(
            json_schema_extra=unit("clips"),
            ge=1,
            le=10**4,
            description="clips of each video, spread evenly over it, whose scores are averaged",
        ),
    ] = 10
    batch: Annotated[
        int, Field(json_schema_extra=unit("clips"), ge=1, le=2**16, description="clips scored at once")
    ] = 32
    start: Annotated[
        float | None,
        Field(json_schema_extra=unit("seconds"), ge=0, description="where the stretch that is looked at begins"),
    ] = None
    end: Annotated[
        float | None, Field(json_schema_extra=unit("seconds"), gt=0, description="where that stretch ends")
    ] = None
    store: Annotated[
        str | None,
        Field(
            description="directory or URL of the store as whose videos these are prepared; null: as those that the "
            "network learned from"
        ),
    ] = None

    @model_validator(mode="after")
    def _a_stretch(self) -> Self:
        if self.end is not None and self.end <= (self.start or 0.0):
            raise ValueError(f"the stretch ends at {self.end:g} s, and begins at {self.start or 0:g} s; set end higher")
        return self
