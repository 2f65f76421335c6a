"""How long this process has run: a start's parts are logged with it."""

from __future__ import annotations

import os
import time
from pathlib import Path

_LOADED = time.monotonic()


def seconds_since_start() -> float:
    """Seconds since this process began; where the kernel does not say, since this file was loaded."""
    try:
        # Field 22, counted behind the name in brackets, which may have any characters: ticks after the boot.
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic() - _LOADED
