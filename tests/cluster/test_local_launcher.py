"""launcher=none: ranks that end with the command, whichever of them is killed, and a run that goes on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from tests.cluster.running import checkpoints, gone, reelscale, running, succeeded, train_steps

TWO = ("launcher=none", "ranks=2", "schedule.epochs=60", "run=run")  # 120 steps

pytestmark = pytest.mark.timeout(900)  # whole commands, on a machine that may be busy


def test_killed_ranks_and_commands_leave_nothing_and_the_run_goes_on(store: Path, recipe: Path, tmp_path: Path) -> None:
    command = ("pretrain", recipe, f"data.store={store}", *TWO)
    run = tmp_path / "run"

    with running(*command, folder=tmp_path) as first:
        first.until(lambda: checkpoints(run))
        ranks = first.ranks()
        assert sorted(ranks) == [0, 1], first.said
        os.kill(ranks[1], signal.SIGKILL)
        assert first.exit_code() == 1, first.said
        assert "training failed" in first.err and "rank 1 (exit -9)" in first.err
        assert gone(list(ranks.values()))
    reached = checkpoints(run)[-1]
    assert reached < 120

    with running(*command, folder=tmp_path) as second:
        second.until(lambda: "going on from the checkpoint" in second.out and checkpoints(run)[-1] > reached)
        ranks = second.ranks()
        assert sorted(ranks) == [0, 1], second.said
        second.kill()
        assert gone(list(ranks.values()))
        assert gone(list(second.descendants()))
    reached = checkpoints(run)[-1]
    assert reached < 120

    third = succeeded(reelscale(*command, folder=tmp_path))
    assert f"going on from the checkpoint at step {reached} of 120" in third.stdout
    assert checkpoints(run)[-1] == 120
    assert set(train_steps(run)) == set(range(1, 121))


def test_a_signal_stops_with_all_saved(store: Path, recipe: Path, tmp_path: Path) -> None:
    with running("pretrain", recipe, f"data.store={store}", *TWO, folder=tmp_path) as command:
        command.until(lambda: checkpoints(tmp_path / "run"))
        os.kill(command.process.pid, signal.SIGTERM)
        assert command.exit_code() == 75, command.said
        assert "with everything saved" in command.out
        assert gone(list(command.descendants()))
    assert checkpoints(tmp_path / "run")[-1] == train_steps(tmp_path / "run")[-1] < 120
