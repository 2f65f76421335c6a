"""A Ray cluster that is not the command's own: paths, mistakes, stops and threads reach its workers and come back."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import SMALL
from tests.support.commands import LONGEST, ROOT, reelscale, refused, running, shards, succeeded

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]  # whole commands, on a machine that may be busy


@pytest.mark.slow
def test_a_relative_corpus(pieces: list[Path], ray: dict[str, str], tmp_path: Path) -> None:
    (folder := tmp_path / "corpus" / "calm").mkdir(parents=True)
    for piece in pieces[:2]:
        shutil.copyfile(piece, folder / piece.name)
    made = reelscale("shard", "corpus", "store", *SMALL, "launcher=ray", folder=tmp_path, environment=ray)
    assert "failures" not in succeeded(made).stdout and "samples                2" in made.stdout


@pytest.mark.slow
def test_a_mistake_in_a_task(long_corpus: Path, ray: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "train").write_text("a file is in the way of the first shard")
    shard = ("shard", long_corpus, "store", "videos_per_shard=1", "launcher=ray")
    told = refused(reelscale(*shard, folder=tmp_path, environment=ray), "the store cannot be used", "store/train")
    assert "ray::" not in told


@pytest.mark.slow
def test_ctrl_c_while_sharding(long_corpus: Path, ray: dict[str, str], tmp_path: Path) -> None:
    store = tmp_path / "store"
    shard = ("shard", long_corpus, store, "videos_per_shard=1", "workers=1", "launcher=ray")
    with running(*shard, folder=tmp_path, environment=ray) as command:
        command.until(lambda: shards(store))
        command.ctrl_c()
        assert command.exit_code() == 75, command.said
        assert "the shards made so far are kept" in command.err and "Traceback" not in command.err
    assert 0 < len(shards(store)) < 61


@pytest.mark.slow
def test_ranks_get_all_cores_and_a_mistake_of_theirs_is_not_tried_again(ray: dict[str, str], tmp_path: Path) -> None:
    program = f"""
import os, pathlib
from cluster.launch.on_ray import ranks as ray_ranks
from cluster.launch.launch_settings import LaunchSettings
from cluster.launch.rank_main import RankTask
from sharding.base.errors import UserError

def rank(task):
    (pathlib.Path(task.resolved.settings.run) / f"try-{{os.getpid()}}").touch()
    raise UserError("threads: " + os.environ["OMP_NUM_THREADS"], "here", "none")

settings = {{"lanes": 2, "run": {str(tmp_path)!r}, "data": {{"store": "s"}}}}
resolved = {{"settings": settings, "index": [], "derived": {{}}}}
ray_ranks.run_rank = rank
try:
    ray_ranks.run_ranks(RankTask.model_validate({{"resolved": resolved, "monitor": {{}}}}), LaunchSettings(ranks=2))
except UserError as error:
    print(error)
"""
    mine = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "OMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", program], env={**mine, **ray, "PYTHONPATH": str(ROOT)}, cwd=tmp_path,
        capture_output=True, text=True,
    )  # fmt: skip
    assert "\nthreads: 2\n  where: here\n" in done.stdout, f"{done.stdout}\n{done.stderr}"
    assert 1 <= len(list(tmp_path.glob("try-*"))) <= 2


@pytest.mark.slow
def test_a_signal_before_the_ranks_begin(store: Path, recipe: Path, ray: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    train = ("pretrain", recipe, f"data.store={store}", f"run={run}", "launcher=ray", "schedule.epochs=60")
    with running(*train, folder=tmp_path, environment=ray) as command:
        command.until(run.exists)
        os.kill(command.process.pid, signal.SIGTERM)
        assert command.exit_code() == 75, command.said
        assert "Traceback" not in command.err and "training failed" not in command.err, command.said
    assert not (run / "stop").exists()


CONNECTS = """
import sys
from cluster.launch.on_ray import cluster
from cluster.launch.signals import interruptible
from cluster.terminal.output import exit_code_of

cluster._CONNECT_SECONDS = 5.0

def connect():
    with interruptible(), cluster.ray_cluster():
        return 0

sys.exit(exit_code_of(connect))
"""


@pytest.mark.slow
def test_a_head_that_takes_a_connection_and_says_nothing(tmp_path: Path) -> None:
    """A mistake, told in one message. At 127.0.0.2, as Ray takes 127.0.0.1 for this machine's own address."""
    with socket.create_server(("127.0.0.2", 0), backlog=100) as server:
        variables = {"RAY_ADDRESS": f"127.0.0.2:{server.getsockname()[1]}", "RAY_AUTH_MODE": "disabled"}
        done = subprocess.run(
            [sys.executable, "-c", CONNECTS], env={**os.environ, **variables, "PYTHONPATH": str(ROOT)}, cwd=tmp_path,
            capture_output=True, text=True, timeout=LONGEST,
        )  # fmt: skip
    assert done.returncode == 2 and "takes a connection and says nothing for 5 s" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and "ended from outside" not in done.stderr, done.stderr
