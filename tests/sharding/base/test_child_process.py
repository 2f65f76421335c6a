"""Children that start with their parent's path and limits, and end with it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sharding.base import child_process
from sharding.base.child_process import end_children, exit_code, signal_of, start_child, start_connected
from tests.support.processes import gone

ENTRY = """
import json, os, signal, time
from multiprocessing.connection import Connection
from pathlib import Path

def tell(extra, pipe):
    told = {
        "parent": os.getppid(),
        "extra": os.read(extra, 9).decode(),
        "score": Path("/proc/self/oom_score_adj").read_text().strip(),
        "ignored": [n for n in range(1, 32) if signal.getsignal(n) is signal.SIG_IGN],
        "blocked": [int(n) for n in signal.pthread_sigmask(signal.SIG_BLOCK, [])],
    }
    connection = Connection(pipe)
    connection.send(told)
    connection.recv()

def leave(code):
    os._exit(7)

def hang(code):
    time.sleep(1000)
"""
ASKING = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "entry_of_a_test.py").write_text(ENTRY)
    monkeypatch.syspath_prepend(str(tmp_path))


def test_a_child_has_its_parent_s_path_and_its_own_limits() -> None:
    reading, writing = os.pipe()
    score = Path("/proc/self/oom_score_adj").read_text().strip()
    for expendable, expected in ((True, "500"), (False, score)):
        os.write(writing, b"handed on")
        process, pipe = start_connected("entry_of_a_test", "tell", [reading], ignored=ASKING, expendable=expendable)
        told = pipe.recv()
        assert told["parent"] == os.getpid() and told["extra"] == "handed on" and told["score"] == expected
        assert set(map(int, ASKING)) <= set(told["ignored"]) and told["blocked"] == []
        for number in ASKING:
            process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)
        end_children([process])
        assert process.returncode == -signal.SIGKILL
        pipe.close()
    os.close(reading)
    os.close(writing)
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])


def test_how_a_child_ended() -> None:
    assert exit_code(start_child("entry_of_a_test", "leave", [0])) == 7
    hanging = start_child("entry_of_a_test", "hang", [0])
    began = time.monotonic()
    assert exit_code(hanging, 0.3) == -signal.SIGKILL and time.monotonic() - began < 5
    assert signal_of(-signal.SIGKILL) == "SIGKILL" and signal_of(-99) == "signal 99"
    assert signal_of(0) is signal_of(7) is None


def test_a_child_that_cannot_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    handles = len(list(Path("/proc/self/fd").iterdir()))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "absent"))
    with pytest.raises(FileNotFoundError):
        start_connected("entry_of_a_test", "leave")
    assert len(list(Path("/proc/self/fd").iterdir())) == handles


def test_a_child_dies_with_its_parent(tmp_path: Path) -> None:
    program = (
        f"import sys; sys.path[:] = {[*sys.path]!r}\n"
        "from sharding.base.child_process import start_child\n"
        "print(start_child('entry_of_a_test', 'hang', [0]).pid, flush=True); input()"
    )
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    assert gone(pid)


def test_a_signal_meets_no_child_that_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_process, "_PROGRAM", "import time; time.sleep({expendable} or 0.5)")
    process = start_child("entry_of_a_test", "leave", [0])
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == 0
