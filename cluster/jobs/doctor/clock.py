"""This machine's clock: against when Reelscale was installed, and against a store's."""

from __future__ import annotations

import os
import time

from cluster.jobs.doctor.finding import Verdict, ok, warning, wrong

_REMEDY = "set it by NTP: timedatectl set-ntp true, or chronyd; in a container, on its host"
_TOLERATED, _REFUSED = 5.0, 300.0  # seconds; S3 refuses requests beyond 900


def check_clock() -> Verdict:
    """Whether the clock runs behind what was installed; where a store is named, its clock tells more."""
    return clock_verdict(time.time(), os.stat(__file__).st_mtime)  # noqa: PTH116


def clock_verdict(now: float, installed: float) -> Verdict:
    """Of the time, and a time in the past: when this file was written, both in seconds since 1970 (UTC)."""
    shown = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if now < installed - _TOLERATED:
        return wrong(f"it is {shown} here, before Reelscale was installed", _REMEDY)
    return ok(shown)


def skew_verdict(skew: float, where: str) -> Verdict:
    """Of the seconds by which this clock is ahead of a store's."""
    shown = f"{abs(skew):,.0f} s {'ahead of' if skew > 0 else 'behind'} that of {where}"
    if abs(skew) <= _TOLERATED:
        return ok(f"within {_TOLERATED:.0f} s of that of {where}")
    if abs(skew) <= _REFUSED:
        return warning(f"this clock is {shown}", _REMEDY)
    return wrong(f"this clock is {shown}: signed requests are refused", _REMEDY)
