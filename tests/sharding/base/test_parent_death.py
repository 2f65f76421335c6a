"""A command that was started to die with its parent: it runs as it is, and is gone when the parent is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from sharding.base.parent_death import dying_with

ROOT = Path(__file__).parents[3]
PARENT = """
import os, subprocess, sys
from sharding.base.parent_death import dying_with
child = subprocess.Popen(dying_with(os.getpid(), ["sleep", "1000"]))
print(child.pid, flush=True)
sys.stdin.read()
"""


def test_a_command_keeps_its_words_and_its_exit_code() -> None:
    command = ["sh", "-c", 'printf "%s|" "$@"; exit 3', "sh", "a b", "$HOME"]
    done = subprocess.run(dying_with(os.getpid(), command), cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, "a b|$HOME|")


def test_a_command_whose_parent_is_gone_already_does_not_begin() -> None:
    command = dying_with(os.getppid(), ["echo", "begun"])
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stdout == ""


def test_a_command_dies_with_its_parent() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout and parent.stdin
    child = Path(f"/proc/{parent.stdout.readline().strip()}")
    deadline = time.monotonic() + 60
    while "sleep" not in (child / "cmdline").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    parent.kill()
    parent.communicate()
    while child.exists() and "Z" not in (child / "stat").read_text().rpartition(")")[2].split()[0]:
        assert time.monotonic() < deadline
        time.sleep(0.02)
