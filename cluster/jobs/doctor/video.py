"""FFmpeg, as PyAV brings it along."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cluster.jobs.doctor.finding import Verdict, ok, wrong
from cluster.jobs.doctor.probe import tried_by_name

if TYPE_CHECKING:
    from sharding.media.h264_trial import H264Trial

REMEDY = "install PyAV's own wheel, which brings FFmpeg with libx264: pip install --force-reinstall --only-binary av av"
_SECONDS = 60.0


def check_video() -> Verdict:
    """Whether FFmpeg encodes and decodes H.264."""
    return video_verdict(tried_by_name("sharding.media.h264_trial", "try_h264", seconds=_SECONDS))


def video_verdict(trial: H264Trial) -> Verdict:
    """Of frames that were encoded and decoded."""
    shown = f"av {trial.av}, libavcodec {trial.avcodec}"
    if trial.is_good:
        return ok(f"{shown}: encodes and decodes H.264")
    what = f"{trial.decoded} of {trial.encoded} frames came back, {trial.difference:.0f} grey levels off"
    return wrong(f"{shown}: H.264 goes wrong: {what}", REMEDY)
