"""Jobs on a real Ray head with its job API and a token: handed over, followed, stopped; and a run by its folder."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.conftest import Say
from tests.support.commands import LONGEST, ROOT, checkpoints, reelscale, refused, running, succeeded

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]  # whole commands, on a machine that may be busy

LONG = ("launcher=none", "schedule.epochs=600")
needs_job_api = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in ("ray", "aiohttp_cors")),
    reason="Ray's job API is not installed (pip install 'reelscale[ray]')",
)


def free_ports(count: int) -> list[str]:
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


@pytest.fixture(scope="module")
def head() -> Iterator[dict[str, str]]:
    """A Ray head that asks for a token; the environment that names both."""
    folder = Path(tempfile.mkdtemp(prefix="rs-"))  # a short path: Ray's sockets are below it
    (folder / "token").write_text("0123456789abcdef0123456789abcdef")
    (folder / "token").chmod(0o600)
    access = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    port, dashboard, agent, client = free_ports(4)
    options = {
        "--node-ip-address": "127.0.0.1", "--port": port, "--temp-dir": str(folder / "ray"), "--num-cpus": "4",
        "--dashboard-host": "127.0.0.1", "--dashboard-port": dashboard, "--dashboard-agent-listen-port": agent,
        "--ray-client-server-port": client, "--object-store-memory": "100000000",
    }  # fmt: skip
    words = [word for option in options.items() for word in option]
    start = [sys.executable, "-c", "from ray.scripts.scripts import main; main()", "start", "--head", "--block"]
    variables = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "OMP_", "AWS_"))}
    variables |= {**access, "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    with (folder / "said").open("wb") as said:
        process = subprocess.Popen(
            [*start, *words], env=variables, stdout=said, stderr=said, stdin=subprocess.DEVNULL, cwd=folder,
            start_new_session=True,
        )  # fmt: skip
    try:
        _until(lambda: _listens(int(dashboard)), process, folder / "said")
        yield {**access, "RAY_ADDRESS": f"127.0.0.1:{port}"}
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def _until(condition: Any, process: subprocess.Popen[bytes], said: Path) -> None:
    deadline = time.monotonic() + LONGEST
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, said.read_text()
        time.sleep(0.1)


def submitted(*words: str | Path, folder: Path, head: dict[str, str]) -> str:
    """The id of a command line that was handed over."""
    message = succeeded(reelscale(*words, "--detach", "--json", folder=folder, environment=head)).stdout
    return str(json.loads(message)["job"])


def state_of(job: str, folder: Path, head: dict[str, str]) -> dict[str, Any]:
    message = succeeded(reelscale("status", job, "--json", folder=folder, environment=head)).stdout
    return dict(json.loads(message)["jobs"][0])


@pytest.mark.slow
@needs_job_api
def test_a_command_is_handed_over_and_followed(store: Path, recipe: Path, head: dict[str, str], tmp_path: Path) -> None:
    secret = {"AWS_SECRET_ACCESS_KEY": "this-is-to-stay-here"}
    dry = ("pretrain", recipe, f"data.store={store}", "run=r", "--dry-run")
    job = submitted(*dry, folder=tmp_path, head={**head, **secret})
    address = {name: value for name, value in head.items() if name != "RAY_ADDRESS"}
    where = ("--address", head["RAY_ADDRESS"])
    followed = reelscale("logs", job, "--follow", *where, folder=tmp_path, environment=address)
    text = succeeded(followed).stdout
    assert f"run                    {tmp_path}/r" in text and "global batch           4" in text
    assert "state                  done (exit 0)" in text and "this-is-to-stay-here" not in text
    assert state_of(job, tmp_path, head)["command"].startswith(f"pretrain {recipe} data.store={store}")

    wrong = submitted("pretrain", recipe, "lane_bach=2", folder=tmp_path, head=head)
    said = succeeded(reelscale("logs", wrong, "-f", folder=tmp_path, environment=head)).stdout
    assert "did you mean lane_batch" in said and "state                  failed (exit 2)" in said
    all_of_it = succeeded(reelscale("status", "--json", *where, folder=tmp_path, environment=address)).stdout
    snapshot = json.loads(all_of_it)
    assert [(node["state"], node["is_head"], node["cpus"]) for node in snapshot["nodes"]] == [("alive", True, 4)]
    assert [(each["job"], each["state"], each["exit_code"]) for each in snapshot["jobs"]] == [
        (job, "done", 0), (wrong, "failed", 2),
    ]  # fmt: skip
    program = "from ray.job_submission import JobSubmissionClient as C; print(C().list_jobs())"
    variables = {**os.environ, **head}
    kept = subprocess.run([sys.executable, "-c", program], env=variables, capture_output=True, text=True, check=True)
    assert job in kept.stdout and "this-is-to-stay-here" not in kept.stdout
    assert kept.stdout.count("runtime_env={'env_vars': {'RAY_JOB_STOP_WAIT_TIME_S': '600'}}") == 2


@pytest.mark.slow
@needs_job_api
def test_a_job_that_is_stopped_has_saved(store: Path, recipe: Path, head: dict[str, str], tmp_path: Path) -> None:
    """Ray asks the pipeline, its stage and its ranks at once, and each asks those below it once more."""
    run = tmp_path / "run"
    settings = ", ".join((f"data.store={store}", f"run={run}", *LONG, "ranks=2"))
    stage = f"{{name: train, command: pretrain, config: {recipe}, overrides: [{settings}]}}"
    (tmp_path / "all.yaml").write_text(f"folder: records\nstages:\n  - {stage}\n")
    job = submitted("run", "all.yaml", folder=tmp_path, head=head)
    deadline = time.monotonic() + LONGEST
    while len(checkpoints(run)) < 2:
        assert time.monotonic() < deadline, state_of(job, tmp_path, head)
        time.sleep(0.1)
    assert state_of(job, tmp_path, head)["state"] == "running"
    stopped = json.loads(succeeded(reelscale("stop", job, "--json", folder=tmp_path, environment=head)).stdout)
    assert (stopped["state"], stopped["exit_code"]) == ("stopped", 75) and stopped["ended"]
    (ended,) = json.loads(succeeded(reelscale("status", run, "--json", folder=tmp_path)).stdout)["runs"]
    assert ended["outcome"] == "stopped" and ended["checkpoint"] == ended["step"] == checkpoints(run)[-1]
    again = json.loads(succeeded(reelscale("stop", job, "--json", folder=tmp_path, environment=head)).stdout)
    assert again == stopped


@pytest.mark.slow
@needs_job_api
def test_who_is_not_let_in_is_told_why(ray: dict[str, str], head: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "other").write_text("ffffffffffffffffffffffffffffffff")
    wrong = {**head, "RAY_AUTH_TOKEN_PATH": str(tmp_path / "other")}
    for variables in (wrong, {**head, "RAY_AUTH_TOKEN_PATH": "", "HOME": str(tmp_path)}):
        refused(reelscale("status", folder=tmp_path, environment=variables), "asks for a token", "RAY_AUTH_TOKEN_PATH")
    refused(reelscale("logs", "nothing", folder=tmp_path, environment=head), "no such job", "nothing")
    no_api = refused(reelscale("status", folder=tmp_path, environment=ray), "job API does not answer")
    assert "reelscale[ray]" in no_api


def test_a_cluster_must_be_named_and_answer(say: Say, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    refused(say("status", "no-such-job"), "none is named", "--address HOST:PORT")
    refused(say("pretrain", "a.yaml", "--detach"), "none is named")
    monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{free_ports(1)[0]}")
    refused(say("stop", "job"), "no Ray cluster answers", "ray start --head")
    refused(say("logs", "runs/none"), "no run in this folder")
    refused(say("status", tmp_path), "no run in this folder")


@pytest.mark.slow
def test_a_run_is_shown_and_stopped_without_ray(store: Path, recipe: Path, say: Say, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with running("pretrain", recipe, f"data.store={store}", f"run={run}", *LONG, folder=tmp_path) as command:
        command.until(lambda: len(checkpoints(run)) > 1)
        (at_work,) = json.loads(succeeded(say("status", run, "--json")).stdout)["runs"]
        assert (at_work["outcome"], at_work["of"]) == ("running", 1200) and 0 < at_work["loss"] < 10
        assert at_work["step"] >= at_work["checkpoint"] > 0 and not at_work["asked_to_stop"]
        with running("logs", run, "--follow", folder=tmp_path) as follower:
            follower.until(lambda: "step 2/1200" in follower.out)
            stopped = succeeded(say("stop", run)).stdout
            assert "outcome                stopped" in stopped and "of 1,200" in stopped
            assert command.exit_code() == 75, command.said
            assert follower.exit_code() == 0 and "with everything saved" in follower.out
    assert "with everything saved" in succeeded(say("logs", run)).stdout
    assert succeeded(say("stop", run)).stdout.count("stopped") == 1
