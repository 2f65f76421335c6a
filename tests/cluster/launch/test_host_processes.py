"""Processes that start a run on hosts: what they started ends with them, and the run's exit code comes of theirs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster.launch import host_processes
from cluster.launch.host_processes import hosts_exit_code, run_host_commands
from sharding.base.errors import UserError
from tests.support.commands import ROOT
from tests.support.processes import gone

LAUNCHER = """\
(trap 'sleep 1; touch saved; exit 0' TERM; touch begun; while :; do sleep 0.1; done) &
echo $! > rank
wait
"""
COMMAND = """
import sys
from cluster.launch.host_processes import run_host_commands
from cluster.launch.signals import interruptible
with interruptible():
    sys.exit(run_host_commands([["sh", "launcher"]], by_ssh=False, fewest=None, save_seconds=60))
"""


@pytest.fixture()
def command(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command whose launcher ends at once at a signal, though a rank that it started has yet to save."""
    (tmp_path / "launcher").write_text(LAUNCHER)
    process = subprocess.Popen(
        [sys.executable, "-c", COMMAND], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    deadline = time.monotonic() + 60
    while not ((tmp_path / "begun").exists() and (tmp_path / "rank").exists()):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    yield process
    process.kill()
    process.wait()


def test_ranks_save_though_their_launcher_ends_at_once(command: subprocess.Popen[bytes], tmp_path: Path) -> None:
    command.send_signal(signal.SIGTERM)
    assert command.wait(60) == 75
    assert (tmp_path / "saved").exists()


def test_ranks_end_with_a_command_that_is_killed(command: subprocess.Popen[bytes], tmp_path: Path) -> None:
    command.kill()
    assert gone(int((tmp_path / "rank").read_text()), 60)
    assert not (tmp_path / "saved").exists()


@pytest.mark.parametrize(
    ("codes", "fewest", "code"),
    [
        ([0, 0], None, 0),
        ([0, 255], 1, 0),
        ([0, 255], 2, 1),
        ([0, 255], None, 1),
        ([-9, 0], None, 1),
        ([255, -15], 1, 1),
        ([1, 75], None, 75),
        ([2, 1], 1, 2),
    ],
)
def test_the_runs_exit_code(codes: list[int], fewest: int | None, code: int) -> None:
    assert hosts_exit_code(codes, fewest) == code


def test_a_lost_host_is_not_missed_once_enough_have_ended_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = [["sh", "-c", "exit 255"], ["true"]]
    assert run_host_commands(hosts, by_ssh=True, fewest=1, save_seconds=1) == 0
    assert run_host_commands(hosts, by_ssh=True, fewest=None, save_seconds=1) == 1
    monkeypatch.setattr(host_processes, "_OTHERS_SECONDS", 0.5)
    hangs = [["true"], ["sleep", "1000"]]
    assert run_host_commands(hangs, by_ssh=True, fewest=1, save_seconds=1) == 0


def test_a_program_that_is_not_there() -> None:
    with pytest.raises(UserError, match="there is no program no-such-ssh"):
        run_host_commands([["no-such-ssh", "-tt"]], by_ssh=True, fewest=None, save_seconds=1)
