"""How long a start lasts: told as its parts are done, and when the first step is taken."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from pretrain.training.step import StepReport

log = logging.getLogger("reelscale")

_LOADED = time.monotonic()


class FirstStepHook:
    """A log line after the first step that this process takes."""

    def __init__(self) -> None:
        self._told = False

    def after_step(self, report: StepReport, last: bool) -> None:
        """Once."""
        if not self._told:
            log.info("step %d is taken, %.1f s after this process began", report.step, seconds_since_start())
            self._told = True


def seconds_since_start() -> float:
    """Since this process began; where the kernel does not tell it, since this file was loaded."""
    try:
        # Field 22, counted behind the name in brackets, which may have any characters: ticks after the boot.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic() - _LOADED
