"""`reelscale bench-loader` on a small store: its figures, its table, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.jobs.process_usage import started_by, usage_of
from tests.cluster.conftest import Say
from tests.support.commands import Command, gone, refused, running, succeeded

CLIP = ("data.clip.frames=4", "data.clip.resize=[16, 16]", "data.clip.crop=16")
RUN = (*CLIP, "data.loader.workers=1", "lane_batch=2")


def test_json_and_nothing_else(store: Path, say: Say) -> None:
    bench = json.loads(succeeded(say("bench-loader", store, *RUN, "lanes=2", "clips=9", "--json")).stdout)
    assert (bench["store"], bench["samples"], bench["workers"]) == (str(store), 6, 1)
    assert (bench["lanes"], bench["lane_batch"], bench["clip"]["frames"]) == (2, 2, 4)
    assert bench["first_batch_seconds"] > 0
    assert (bench["retries"], bench["damaged"], bench["looped_clips"]) == (0, 0, 0)
    for name in ("planes", "network_input"):
        figures = bench[name]
        assert figures["clips"] == 12  # whole steps of four
        assert figures["clips_per_second"] == figures["clips"] / figures["seconds"] > 0
        assert figures["decode_ms_per_clip"] > 0 and figures["own_cpu_ms_per_clip"] > 0
        assert len(figures["worker_memory"]) == 1 and figures["worker_memory"][0] > 10**7 < figures["own_memory"]
    assert bench["network_input"]["own_cpu_ms_per_clip"] > bench["planes"]["own_cpu_ms_per_clip"]
    names = ("clips_per_core_second", "bytes_per_clip")
    assert bench["measured"] == [{"figure": name, "value": bench["planes"][name], "frames": 4} for name in names]


@pytest.mark.slow
def test_a_table_for_people(store: Path, say: Say) -> None:
    told = succeeded(say("bench-loader", store, *RUN, "seconds=0.2")).stdout
    assert told.startswith(f"bench-loader {store}\n") and "network input" in told
    assert "4 frames at stride 1, of 6 samples" in told
    assert "10 frames/s" in succeeded(say("bench-loader", store, *RUN, "data.clip.fps=10", "clips=1")).stdout


def test_no_process_is_left(store: Path, say: Say) -> None:
    before = set(started_by(os.getpid()))
    succeeded(say("bench-loader", store, *RUN, "clips=1"))
    assert set(started_by(os.getpid())) <= before


def test_mistakes(store: Path, tmp_path: Path, say: Say) -> None:
    for arguments, part in (
        ((tmp_path / "nowhere",), "no shards here"),
        ((store, "data.clip.frame=4"), "data.clip.frame"),
        ((store, "lanes=0"), "lanes"),
        ((store, "clips=0"), "clips"),
        ((store, "seconds=soon"), "seconds"),
        ((store, "model.depth=18"), "model"),
    ):
        refused(say("bench-loader", *arguments), part)


def test_a_damaged_store_is_told(store: Path, tmp_path: Path, say: Say) -> None:
    copy = shutil.copytree(store, tmp_path / "copy")
    for tar in copy.glob("train/*.tar"):
        tar.chmod(0o644)
        tar.write_bytes(bytes(tar.stat().st_size))
    refused(say("bench-loader", copy, *RUN, "clips=4", "--json"), "damaged")


def measuring(command: Command) -> int:
    """The worker of a command that has shown its progress."""
    command.until(lambda: "bench-loader: planes" in command.err)
    (worker,) = [pid for pid, words in command.descendants().items() if any("worker" in word for word in words)]
    return worker


@pytest.mark.slow
@pytest.mark.cluster
def test_a_worker_that_dies_is_told(store: Path, tmp_path: Path) -> None:
    with running("bench-loader", store, *RUN, "seconds=300", folder=tmp_path) as command:
        os.kill(worker := measuring(command), signal.SIGKILL)
        assert command.exit_code() == 1
        assert f"a process that decodes video (pid {worker}) was ended by SIGKILL" in command.err
        assert "Traceback" not in command.err


@pytest.mark.slow
@pytest.mark.cluster
def test_ctrl_c_leaves_nothing(store: Path, tmp_path: Path) -> None:
    with running("bench-loader", store, *RUN, "seconds=300", folder=tmp_path) as command:
        worker = measuring(command)
        command.ctrl_c()
        assert command.exit_code() == 75 and "Traceback" not in command.err, command.said
        assert gone([worker])


@pytest.mark.cluster
def test_what_the_kernel_tells() -> None:
    program = "import sys, time; sum(range(10**7)); print(flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdout.readline()
        usage = started_by(os.getpid())[process.pid]
        assert usage.cpu_seconds > 0 and usage.resident > 2**20
        assert usage_of(process.pid).cpu_seconds >= usage.cpu_seconds
    with pytest.raises(ProcessLookupError):
        usage_of(process.pid)
    assert process.pid not in started_by(os.getpid())
