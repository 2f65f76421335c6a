"""Signals to a command's whole process group under Ray, as schedulers, `timeout` and a closed terminal send them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.support.commands import (
    Command,
    checkpoints,
    gone,
    reelscale,
    running,
    shards,
    succeeded,
    train_steps,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]  # whole commands, on a machine that may be busy

AT_ONCE = 30.0  # seconds; 60 and more when Ray's own processes were ended, too


def stopped(command: Command, number: int) -> None:
    """The whole group gets the signal, and the command ends as by a signal to it alone."""
    begin = time.monotonic()
    os.killpg(command.process.pid, number)
    assert command.exit_code() == 75, command.said
    assert time.monotonic() - begin < AT_ONCE, command.said
    assert "Traceback" not in command.err + command.out, command.said
    assert gone(list(command.descendants())), command.descendants()


@pytest.mark.slow
@pytest.mark.usefixtures("hangups_heard")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_training_saves(number: int, store: Path, recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train = ("pretrain", recipe, f"data.store={store}", f"run={run}", "launcher=ray", "schedule.epochs=600", "ranks=2")
    with running(*train, "checkpoint.every_steps=1000", folder=tmp_path) as command:
        command.until(lambda: "step 5/" in command.out)
        stopped(command, number)
        assert "with everything saved" in command.out and "before training began" not in command.err, command.said
    assert checkpoints(run)[-1] == train_steps(run)[-1] >= 5
    assert not (run / "stop").exists() and not (run / "begun").exists()


def test_a_run_that_has_not_begun(store: Path, recipe: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with running(
        "pretrain", recipe, f"data.store={store}", f"run={run}", "launcher=ray", "schedule.epochs=600", folder=tmp_path
    ) as command:
        command.until(lambda: any("raylet" in words[0] for words in command.descendants().values()))
        stopped(command, signal.SIGTERM)
        assert "before training began" in command.err, command.said


def test_sharding_keeps_its_shards(long_corpus: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    shard = ("shard", long_corpus, store, "videos_per_shard=1", "workers=1", "launcher=ray")
    with running(*shard, folder=tmp_path) as command:
        command.until(lambda: shards(store))
        stopped(command, signal.SIGTERM)
        assert "the shards made so far are kept" in command.err, command.said


def test_fine_tuning_and_evaluation(store: Path, recipe: Path, tmp_path: Path) -> None:
    succeeded(reelscale("pretrain", recipe, f"data.store={store}", "run=first", "launcher=none", folder=tmp_path))
    tune = ("finetune", recipe, f"data.store={store}", "init.run=first", "run=second", "launcher=ray")
    with running(*tune, "schedule.epochs=600", "checkpoint.every_steps=1000", folder=tmp_path) as command:
        command.until(lambda: "step 5/" in command.out)
        stopped(command, signal.SIGTERM)
        assert "with everything saved" in command.out, command.said
    assert checkpoints(tmp_path / "second")[-1] >= 5

    (tmp_path / "evaluate.yaml").write_text("run: first\nclips: 10000\n")
    with running("evaluate", "evaluate.yaml", "launcher=ray", folder=tmp_path) as command:
        command.until(lambda: at_work(command))
        stopped(command, signal.SIGTERM)
        assert "stopped; run the same command again" in command.err, command.said


def at_work(command: Command) -> bool:
    """Whether a Ray worker scores videos for the command."""
    return any(words and words[0].startswith("ray::scoring") for words in command.descendants().values())


def test_a_killed_command_takes_ray_along(long_corpus: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    with running(
        "shard", long_corpus, store, "videos_per_shard=1", "workers=1", "launcher=ray", folder=tmp_path
    ) as command:
        command.until(lambda: shards(store))
        rays = [pid for pid, words in command.descendants().items() if "ray" in " ".join(words)]
        assert any(os.getsid(pid) != command.process.pid for pid in rays), command.descendants()
        command.kill()
        deadline = time.monotonic() + 180  # Ray's workers look for its head for a minute
        while left := command.descendants():
            assert time.monotonic() < deadline, left
            time.sleep(0.5)
