"""Worker processes without Ray: how they leave."""

from __future__ import annotations

import atexit
import time

import pytest

from cluster.launch import processes


def leave_slowly() -> str:
    """A task after which the process takes its time to end."""
    atexit.register(time.sleep, 2)
    return "done"


def test_a_worker_that_leaves_is_not_broken_into(capfd: pytest.CaptureFixture[str]) -> None:
    worker = processes._start(leave_slowly)
    processes._give(worker, ())
    assert worker.pipe.recv() == "done"
    worker.pipe.close()
    time.sleep(1)
    worker.process.terminate()
    worker.process.join(60)
    assert worker.process.exitcode == 0
    assert "Traceback" not in capfd.readouterr().err
