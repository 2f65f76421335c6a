"""Plans which stretches of a video become its segments; pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pydantic

from sharding.base.settings import Settings, unit
from sharding.media.input.bad_video import BadVideo

TOLERANCE = 1e-3  # seconds: containers round times to a millisecond


class SegmentSettings(Settings):
    """How a video is cut into segments."""

    seconds: float = pydantic.Field(
        json_schema_extra=unit("seconds"), gt=0.0, le=3600.0, description="length of a segment, in seconds"
    )
    per_video: int | None = pydantic.Field(
        json_schema_extra=unit("segments"),
        default=None,
        ge=1,
        description="segments of a video at most; null: as many as fit",
    )
    spacing: float | None = pydantic.Field(
        json_schema_extra=unit("seconds"),
        default=None,
        gt=0.0,
        description="seconds from one start to the next; null: spread evenly, or back to back without per_video",
    )
    exact: bool = pydantic.Field(
        default=False,
        description="start at the planned time, not at the source's key frame before it; costs decoding from there on",
    )


@dataclass(frozen=True)
class PlannedSegment:
    """A planned segment, in seconds of a source that lasts `video_seconds`.

    It begins at `start`, or up to `snap_limit` earlier at a key frame, and lasts `length`, not beyond `latest_end`.
    """

    number: int
    start: float
    snap_limit: float
    length: float
    latest_end: float
    video_seconds: float

    def end(self, begin: float) -> float:
        """The time at which it ends if it begins at `begin`."""
        return min(begin + self.length, self.latest_end)

    def available_seconds(self, begin: float) -> float:
        """How many seconds of it the source has, if it begins at `begin`."""
        return max(0.0, min(self.end(begin), self.video_seconds) - begin)


WHOLE_VIDEO = PlannedSegment(0, 0.0, 0.0, math.inf, math.inf, math.inf)


def planned_segments(
    seconds: float, start: float | None, end: float | None, settings: SegmentSettings | None
) -> list[PlannedSegment]:
    """The segments of the stretch [start, end) of a video of `seconds`; without settings one, which is all of it.

    Raises BadVideo if the video ends before `start`.
    """
    lowest = start or 0.0
    latest = math.inf if end is None else end
    highest = min(latest, seconds)
    if highest <= lowest:
        what = f"its stretch, from {lowest:g} to {latest:g} s, is not in the video"
        raise BadVideo("outside", what, f"the video lasts {seconds:g} s")
    if settings is None:
        return [PlannedSegment(0, lowest, 0.0, math.inf, latest, seconds)]
    starts = [lowest + planned for planned in segment_starts(highest - lowest, settings)]
    limits = snap_limits(starts, settings, lowest)
    return [
        PlannedSegment(number, planned, limit, settings.seconds, latest, seconds)
        for number, (planned, limit) in enumerate(zip(starts, limits, strict=True))
    ]


def segment_starts(duration: float, settings: SegmentSettings) -> list[float]:
    """Planned starts, ascending, of the segments of a video of `duration` seconds; at least one.

    Each but the only one of a short video lies inside the video as a whole. Without `spacing` none overlap: each is
    the middle of an equal part of the video, so that one segment is the video's middle.
    """
    room = max(0.0, duration - settings.seconds)
    if settings.spacing is not None:
        count = int((room + TOLERANCE) / settings.spacing) + 1
        return [number * settings.spacing for number in range(min(count, settings.per_video or count))]
    fitting = max(1, int((max(duration, 0.0) + TOLERANCE) / settings.seconds))
    if settings.per_video is None:
        return [number * settings.seconds for number in range(fitting)]
    count = min(fitting, settings.per_video)
    part = duration / count
    return [max(0.0, min(part * number + (part - settings.seconds) / 2, room)) for number in range(count)]


def snap_limits(starts: list[float], settings: SegmentSettings, lowest: float) -> list[float]:
    """How many seconds before its planned start each segment may begin, at a key frame.

    At most half a segment or half the way to the start before it, and never so far that it overlaps that one more
    than planned, or begins before `lowest`, where the video's stretch begins. Does not depend on where the others
    snapped to, so that a segment made alone is the same as among all.
    """
    if settings.exact:
        return [0.0] * len(starts)
    limits = []
    for number, start in enumerate(starts):
        limit = min(settings.seconds / 2, start - lowest)
        if number:
            gap = start - starts[number - 1]
            limit = min(limit, gap / 2, gap - settings.seconds)
        limits.append(max(0.0, limit))
    return limits
