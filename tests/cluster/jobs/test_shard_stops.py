"""Sharding that is stopped, killed, or fails: it ends at once, leaves nothing behind, and keeps what was made."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest

from tests.support.commands import Command, gone, reelscale, refused, running, shards

EACH = ("videos_per_shard=1", "workers=2")
JOBS = 61

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]  # whole commands, on a machine that may be busy


def stopped(command: Command) -> None:
    """Check the end of a command that was asked to stop."""
    assert command.exit_code() == 75, command.said
    assert "the shards made so far are kept" in command.err and "Traceback" not in command.err, command.said
    assert command.out == ""


def test_stops_and_kills_end_all_processes_and_keep_the_shards(long_corpus: Path, tmp_path: Path) -> None:
    (scratch := tmp_path / "scratch").mkdir()
    store = tmp_path / "store"
    shard = ("shard", long_corpus, store, *EACH, "launcher=none")
    with running(*shard, folder=tmp_path, environment={"TMPDIR": str(scratch)}) as first:
        first.until(lambda: shards(store))
        first.ctrl_c()
        stopped(first)
        assert gone(list(first.descendants()))
    assert list(scratch.glob("reelscale-*")) == []
    made = shards(store)
    assert 0 < len(made) < JOBS

    with running(*shard, folder=tmp_path, environment={"TMPDIR": str(scratch)}) as second:
        second.until(lambda: len(shards(store)) > len(made))
        os.kill(second.process.pid, signal.SIGTERM)
        stopped(second)
        assert f"{len(made)} of {JOBS} shards are there already" in second.err
        assert gone(list(second.descendants()))
    assert list(scratch.glob("reelscale-*")) == []
    assert set(made) < set(shards(store))
    made = shards(store)
    assert len(made) < JOBS

    with running(*shard, folder=tmp_path) as third:
        third.until(lambda: len(shards(store)) > len(made))
        workers = [pid for pid, words in third.descendants().items() if "--multiprocessing-fork" in words]
        assert len(workers) == 2, third.said
        third.kill()
        assert gone(list(third.descendants()))
    assert len(shards(store)) < JOBS


def test_an_error_is_told_at_once(long_corpus: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.mkdir()
    (store / "train").write_text("a file is in the way of the first shard")
    result = reelscale("shard", long_corpus, store, *EACH, "launcher=none", folder=tmp_path)
    refused(result, "the store cannot be used", f"{store}/train")
    assert len(shards(store)) < JOBS - 1


def test_a_worker_that_dies_is_told_and_its_shard_made_by_another(long_corpus: Path, tmp_path: Path) -> None:
    with running("shard", long_corpus, tmp_path / "store", *EACH, "launcher=none", folder=tmp_path) as command:
        command.until(lambda: shards(tmp_path / "store"))
        worker = next(pid for pid, words in command.descendants().items() if "--multiprocessing-fork" in words)
        os.kill(worker, signal.SIGKILL)
        command.until(lambda: f"begins anew: worker process {worker} died (exit -9)" in command.err)
        (again,) = re.findall(r"shard (g0-\d+) begins anew", command.err)
        command.until(lambda: f"{again}.parquet" in shards(tmp_path / "store"))
        command.ctrl_c()
        stopped(command)
        assert gone(list(command.descendants()))
