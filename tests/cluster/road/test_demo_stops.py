"""Ctrl-C in `make demo`: the command at work saves, and the demo says how it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.commands import LONGEST, ROOT, checkpoints

pytestmark = pytest.mark.cluster

DEMO = "import sys; from tests.demo.__main__ import _reelscale; _reelscale(*sys.argv[1:])"


def test_ctrl_c_lets_the_command_save(store: Path, recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ("pretrain", recipe, f"data.store={store}", f"run={run}", "launcher=none", "schedule.epochs=60")
    with (tmp_path / "said").open("wb") as said:
        demo = subprocess.Popen(
            [sys.executable, "-c", DEMO, *map(str, command)],
            cwd=ROOT, stdout=said, stderr=said, stdin=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + LONGEST
        while not checkpoints(run):
            assert demo.poll() is None and time.monotonic() < deadline, (tmp_path / "said").read_text()
            time.sleep(0.02)
        os.killpg(demo.pid, signal.SIGINT)
        code = demo.wait(timeout=LONGEST)
    finally:
        if demo.poll() is None:
            os.killpg(demo.pid, signal.SIGKILL)
            demo.wait()
    text = (tmp_path / "said").read_text()
    assert code == 75, text
    assert "with everything saved" in text and "`make demo` goes on from here" in text and "Traceback" not in text
    assert checkpoints(run)[-1] < 120
