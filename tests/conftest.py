"""What holds for all tests: one thread a process where several test side by side, and a cache of their own."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile

# Set before torch or numpy is imported: two processes with as many threads each as there are cores hinder each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# What tests measure, and where their runs say that they are served, is not the user's.
if "REELSCALE_CACHE" not in os.environ:
    os.environ["REELSCALE_CACHE"] = tempfile.mkdtemp(prefix="reelscale-cache-")
    atexit.register(shutil.rmtree, os.environ["REELSCALE_CACHE"], ignore_errors=True)
