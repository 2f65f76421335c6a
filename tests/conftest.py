"""What holds for all tests: side by side, each process of tests computes with one thread."""

from __future__ import annotations

import os

# Set before torch or numpy is imported: two processes with as many threads each as there are cores hinder each other.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
