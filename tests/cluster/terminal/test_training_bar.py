"""The bar of a training run: what it reads from the ranks' lines, and a real run on a terminal and in a log."""

from __future__ import annotations

import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from fcntl import ioctl
from pathlib import Path
from typing import Any

import pytest

from cluster.terminal.progress import working
from cluster.terminal.training_bar import Position, training_bar
from tests.support.commands import ROOT

STEP = "12:00:07 step 20/320  epoch 0.50  samples 640  loss 2.087  top-1 11.9 %  lr 0.01  grad norm 2.05  64 clips/s  "


def test_a_position_follows_the_log() -> None:
    at = Position("starting")
    for line, doing in (
        ("12:00:00 starting 2 ranks", "starting 2 ranks"),
        ("12:00:05 starting DeepSpeed", "starting DeepSpeed"),
        ("12:00:06 checkpoint runs/a/checkpoints/step-00000000", "starting DeepSpeed"),
        ("a library's words", "starting DeepSpeed"),
    ):
        at = at.after(line)
        assert (at.doing, at.step, at.steps, at.figures) == (doing, 0, None, "")
    at = at.after(f"{STEP}wait 17 %  memory 0.6 GB  ETA 12 min")
    assert at == Position("training", 20, 320, "2.087", "64", "12 min")
    assert at.figures == "loss 2.087  64 clips/s  ETA 12 min"
    validating = at.after("12:00:08 validating on 96 videos")
    assert (validating.doing, validating.step, validating.figures) == ("validating on 96 videos", 20, at.figures)
    assert validating.after("12:00:09 validation at step 20: loss 2.2, clip@1 9.4 % on 96 videos") == at
    assert at.after("12:00:09 the loss of step 21, 9.1, is far above those before it") == at
    assert at.after("12:00:09 going on from the checkpoint at step 10 of 320").doing.startswith("going on from")
    assert at.after(f"{STEP}wait 17 %  memory 0.6 GB").figures == "loss 2.087  64 clips/s"


def test_without_a_terminal_lines_are_printed_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    with training_bar() as bar:
        assert bar.of_process == {}
        bar.print("one\n")
        bar.print("a title\x1b]0;mine\x07\n")
    out, err = capsys.readouterr()
    assert out.startswith("one\na title") and "\x1b" not in out and err == ""


def test_what_takes_long_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    with working("reading a store"):
        pass
    assert capsys.readouterr().err == ""
    with working("reading a\nstore", silent_seconds=0.01):
        deadline = time.monotonic() + 60
        while not (said := capsys.readouterr().err) and time.monotonic() < deadline:
            time.sleep(0.01)
    assert said == "reading a\\nstore ...\n"


def on_terminal(command: Sequence[str], folder: Path, **environment: str) -> tuple[int, str]:
    """Exit code of a command on a terminal of 120 columns, and all that was written there."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        os.execve(command[0], command, os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm"} | environment)
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 30, 120, 0, 0))
    output, deadline = b"", time.monotonic() + 240
    while time.monotonic() < deadline:
        try:
            if select.select([terminal], [], [], 1)[0]:
                output += os.read(terminal, 65536)
        except OSError:  # the other side is closed
            break
    _, status = os.waitpid(process, 0)
    return os.waitstatus_to_exitcode(status), output.decode()


@pytest.mark.slow
@pytest.mark.cluster
def test_a_run_on_a_terminal_and_in_a_log(store: Path, recipe: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "cluster.cli", "pretrain", str(recipe), f"data.store={store}", "launcher=none"]
    command += ["ranks=2", "schedule.epochs=2", "log_steps=1"]
    code, shown = on_terminal([*command, "run=shown"], tmp_path)
    assert code == 0, shown
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "\r", shown).replace("\r\n", "\n").split("\r")
    assert re.search(r"starting 2 ranks[^━\n]*━", shown)
    assert "━" in shown and re.search(r"\b[1-3]/4\b", shown) and "clips/s" in shown
    log = (tmp_path / "shown" / "train.log").read_text()
    assert "\x1b" not in log and "━" not in log
    lines = [line for line in log.splitlines() if " step " in line or "validation at" in line]
    assert lines and all(any(line in part for part in drawn) for line in lines), "log lines are whole"
    assert re.search(r"step 2/4 .*  ETA \d+ s", log)
    assert shown.rstrip().endswith("\x1b[2K") or "\x1b[?25h" in shown  # the cursor is shown again, the bar is gone

    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    kept = {"capture_output": True, "text": True, "timeout": 240, "check": True}
    quiet: Any = subprocess.run([*command, "run=quiet"], cwd=tmp_path, env=environment, **kept)
    assert "starting 2 ranks" in quiet.stdout and "\x1b" not in quiet.stdout + quiet.stderr and "━" not in quiet.stdout
    assert re.search(r"step 2/4 .*  ETA \d+ s", quiet.stdout)
