"""What holds for all tests: one thread a process where several test side by side, a cache of their own, hangups."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator

import pytest

# Set before torch or numpy is imported: two processes with as many threads each as there are cores hinder each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# What tests measure, and where their runs say that they are served, is not the user's.
if "REELSCALE_CACHE" not in os.environ:
    os.environ["REELSCALE_CACHE"] = tempfile.mkdtemp(prefix="reelscale-cache-")
    atexit.register(shutil.rmtree, os.environ["REELSCALE_CACHE"], ignore_errors=True)


@pytest.fixture()
def hangups_heard() -> Iterator[None]:
    """Also where the tests were started by nohup, whose processes ignore SIGHUP, and so do those that they start."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)
