"""What is handed to a cluster: a command line and no more, in a shell that outlasts SIGTERM and tells the exit code."""

from __future__ import annotations

import http.server
import importlib.util
import json
import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.submission import ray_jobs
from cluster.submission.ray_jobs import RayJobs, command_words, entrypoint, state_word
from sharding.base.errors import UserError
from tests.support.commands import LONGEST, reelscale, refused

needs_job_api = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("ray", "aiohttp_cors")),
    reason="Ray's job API is not installed (pip install 'reelscale[ray]')",
)

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


@contextmanager
def silent(address: str) -> Iterator[str]:
    """HOST:PORT that takes connections and says nothing."""
    with socket.create_server((address, 0), backlog=100) as server:
        yield f"{address}:{server.getsockname()[1]}"


class HalfSilent(http.server.BaseHTTPRequestHandler):
    """A job API that says of a job's log nothing, and of its state so many times that it runs, and then `last`."""

    runs, last = 2, ""

    def do_GET(self) -> None:
        """Answer, or hang."""
        if self.path == "/api/version":
            self._answer({"ray_version": "2.60.0", "version": "4"})
        elif not self.path.endswith("/tail") and (state := "RUNNING" if HalfSilent.runs else HalfSilent.last):
            HalfSilent.runs -= bool(HalfSilent.runs)
            end = {} if state == "RUNNING" else {"end_time": 1000, "driver_exit_code": 0}
            self._answer({"type": "SUBMISSION", "submission_id": "job", "status": state, "entrypoint": "true", **end})
        else:
            self.rfile.read()  # until the client has gone

    def _answer(self, value: object) -> None:
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture()
def half_silent(monkeypatch: pytest.MonkeyPatch) -> Iterator[RayJobs]:
    monkeypatch.setattr(ray_jobs, "_SILENT_SECONDS", 0.5)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), HalfSilent) as server:
        server.daemon_threads, server.block_on_close = True, False
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("RAY_ADDRESS", f"http://127.0.0.1:{server.server_port}")
        yield RayJobs()
        server.shutdown()


@needs_job_api
def test_an_api_that_takes_a_connection_and_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_jobs, "_SILENT_SECONDS", 0.5)
    with silent("127.0.0.1") as place:
        monkeypatch.setenv("RAY_ADDRESS", f"http://{place}")
        with pytest.raises(UserError, match="takes a connection and says nothing") as mistake:
            RayJobs()
    assert mistake.value.where.endswith(place) and "start it anew" in mistake.value.remedy


@pytest.mark.slow
@pytest.mark.cluster
@needs_job_api
def test_a_head_that_takes_a_connection_and_says_nothing(tmp_path: Path) -> None:
    with silent("127.0.0.2") as place:  # another than 127.0.0.1, for which Ray takes this machine's own
        variables = {"RAY_ADDRESS": place, "RAY_AUTH_MODE": "disabled", "RAY_py_gcs_connect_timeout_s": "3"}
        refused(reelscale("status", folder=tmp_path, environment=variables), "does not answer", "whether it lives")


@needs_job_api
def test_a_followed_job_whose_api_falls_silent(half_silent: RayJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HalfSilent, "runs", 2)
    with pytest.raises(UserError, match="says nothing"):
        half_silent.follow("job", print)


@needs_job_api
def test_a_followed_job_that_ends_without_a_word(half_silent: RayJobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HalfSilent, "runs", 2)
    monkeypatch.setattr(HalfSilent, "last", "SUCCEEDED")
    assert half_silent.follow("job", print).state == "done"
