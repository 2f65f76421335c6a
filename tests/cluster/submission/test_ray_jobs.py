"""What is handed to a cluster: a command line and no more, in a shell that outlasts SIGTERM and tells the exit code."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cluster.submission.ray_jobs import command_words, entrypoint, state_word
from tests.support.commands import LONGEST

ENDED = "reelscale: the job's command ended with exit code"
PROGRAM = """#!/bin/sh
trap 'echo saved; exit 75' TERM
pwd; for word; do echo "<$word>"; done
[ -e wait ] && touch ready && while :; do sleep 0.05; done
exit 3
"""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pretrain", "a.yaml", "--detach", "lr=1"], ["pretrain", "a.yaml", "lr=1"]),
        (["--address", "h:1", "run", "--address=h:2", "--detach"], ["run"]),
        (["shards", "retry", "s", "--json", "--address", "h:1"], ["shards", "retry", "s"]),
    ],
)
def test_where_a_command_runs_is_no_part_of_it(arguments: list[str], words: list[str]) -> None:
    assert command_words(arguments) == words


@pytest.mark.parametrize(
    ("status", "code", "word"),
    [
        ("PENDING", None, "waiting"),
        ("RUNNING", None, "running"),
        ("SUCCEEDED", 0, "done"),
        ("FAILED", 75, "stopped"),
        ("FAILED", 2, "failed"),
        ("FAILED", None, "failed"),
        ("STOPPED", 75, "stopped"),
        ("STOPPED", 0, "done"),
        ("STOPPED", 1, "failed"),
        ("STOPPED", None, "stopped"),
    ],
)
def test_a_state_in_our_words(status: str, code: int | None, word: str) -> None:
    assert state_word(status, code) == word


@pytest.fixture()
def program(tmp_path: Path) -> Path:
    path = tmp_path / "a python"
    path.write_text(PROGRAM)
    path.chmod(0o700)
    return path


def test_the_shell_line_keeps_words_folder_and_exit_code(program: Path, tmp_path: Path) -> None:
    line = entrypoint(["shard", "a b", "$HOME;'\"", "*"], str(tmp_path), str(program))
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, cwd="/")
    words = ["-m", "cluster.cli", "shard", "a b", "$HOME;'\"", "*"]
    assert done.stdout.splitlines() == [str(tmp_path), *(f"<{word}>" for word in words), f"{ENDED} 3"]
    assert done.returncode == 3


def test_a_folder_that_is_not_there_is_a_mistake(program: Path, tmp_path: Path) -> None:
    line = entrypoint(["shard"], str(tmp_path / "none"), str(program))
    assert subprocess.run(["sh", "-c", line], capture_output=True).returncode == 2


def test_the_shell_outlasts_sigterm(program: Path, tmp_path: Path) -> None:
    (tmp_path / "wait").touch()
    line = entrypoint(["shard"], str(tmp_path), str(program))
    process = subprocess.Popen(["sh", "-c", line], stdout=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + LONGEST
    while not (tmp_path / "ready").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGTERM)
    out, _ = process.communicate(timeout=LONGEST)
    assert process.returncode == 75 and out.splitlines()[-2:] == ["saved", f"{ENDED} 75"]
