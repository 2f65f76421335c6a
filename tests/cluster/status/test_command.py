"""`reelscale status` of a real run of two ranks: as JSON, drawn on a terminal, with a rank stopped, and one killed."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import Say
from tests.support.commands import LONGEST, ROOT, Command, running, succeeded

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]  # a run, on a machine that may be busy

LONG = ("launcher=none", "ranks=2", "schedule.epochs=9000", "checkpoint.every_steps=50", "validation.every_steps=9999")


def test_a_run_is_watched_while_a_rank_hangs_and_one_is_killed(
    store: Path, recipe: Path, say: Say, tmp_path: Path
) -> None:
    run, where = tmp_path / "run", ("--targets", tmp_path / "targets")
    settings = (f"data.store={store}", f"run={run}", "monitor.port=0", f"monitor.targets={tmp_path / 'targets'}")

    def look() -> dict[str, Any]:
        (state,) = json.loads(succeeded(say("status", *where, "--json")).stdout)["runs"]
        return dict(state)

    with running("pretrain", recipe, *settings, *LONG, folder=tmp_path) as command:
        command.until(lambda: "step 2/" in command.out)
        state = _until(command, look, lambda state: state["outcome"] in ("running", "troubled") and state["loss"])
        assert (state["run"], state["folder"], state["kind"]) == ("run", str(run), "pretrain")
        assert (state["of"], state["world_size"], state["answering"], state["attempts"]) == (18000, 2, 2, 1)
        assert state["step"] >= 2 and state["eta_seconds"] > 0 and state["clips_per_second"] > 0
        assert [each["rank"] for each in state["processes"]] == [0, 1]
        shown = succeeded(say("status", run, *where)).stdout
        assert "run pretrain - " in shown and "2 of 2 answer" in shown and "\x1b" not in shown

        _draws_until_ctrl_c([str(each) for each in ("status", run, *where)], tmp_path)

        ranks = command.ranks()
        os.kill(ranks[1], signal.SIGSTOP)
        state = look()
        assert state["outcome"] == "silent" and "rank 1" in state["reason"] and "no word within" in state["reason"]
        os.kill(ranks[1], signal.SIGKILL)
        assert command.exit_code() == 1, command.said
    state = look()
    assert (state["outcome"], state["answering"]) == ("silent", 0)
    (first, *_) = state["problems"]
    assert first["alert"] == "ReelscaleRankDown" and "do not answer: connection refused" in first["what"]
    assert f"reelscale logs {run}" in first["to_do"]


def _until(command: Command, look: Callable[[], Any], holds: Callable[[Any], Any]) -> Any:
    def looked() -> Any:
        state = look()
        return state if holds(state) else None

    return command.until(looked)


def _draws_until_ctrl_c(words: list[str], folder: Path) -> None:
    """The view is drawn anew, on a terminal that becomes wider meanwhile, and Ctrl-C ends it in order."""
    terminal, end = pty.openpty()
    _resize(terminal, 80)
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm"}
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", *words],
        stdin=end, stdout=end, stderr=end, cwd=folder, env=variables, start_new_session=True,
    )  # fmt: skip
    os.close(end)
    drawn = b""
    try:
        deadline = time.monotonic() + LONGEST
        while drawn.count(b"Ctrl-C ends this view") < 3:
            assert time.monotonic() < deadline and process.poll() is None, drawn
            drawn += _read(terminal)
            if drawn.count(b"Ctrl-C ends this view") == 1:
                _resize(terminal, 160)
        process.send_signal(signal.SIGINT)
        while process.poll() is None:
            assert time.monotonic() < deadline, drawn
            drawn += _read(terminal)
        drawn += _read(terminal)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(terminal)
    assert process.returncode == 0, drawn
    assert drawn.count(b"\x1b[?1049h") == drawn.count(b"\x1b[?1049l") == 1, "the terminal is as it was"
    assert b"2 of 2 answer" in drawn.rpartition(b"\x1b[?1049l")[2], "what was seen last stays"


def _resize(terminal: int, columns: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))


def _read(terminal: int) -> bytes:
    """What has come within a moment; nothing once nobody writes any more."""
    if not select.select([terminal], [], [], 0.2)[0]:
        return b""
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
