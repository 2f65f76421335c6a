"""launcher=none: ranks that end with the command, whichever of them is killed, and a run that goes on."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from cluster.launch.local import exit_code
from cluster.launch.signals import FORCED
from tests.support.commands import checkpoints, gone, reelscale, running, succeeded, train_steps

TWO = ("launcher=none", "ranks=2", "schedule.epochs=60", "run=run")  # 120 steps

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]  # whole commands, on a machine that may be busy


@pytest.mark.slow
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

    third = succeeded(reelscale(*command, "--json", folder=tmp_path))
    assert f"going on from the checkpoint at step {reached} of 120" in third.stderr
    told = json.loads(third.stdout)
    assert (told["run"], told["outcome"], told["step"], told["steps"]) == (str(run), "finished", 120, 120)
    assert told["train"]["step"] == told["validation"]["step"] == 120 and 0 <= told["validation"]["clip1"] <= 1
    assert checkpoints(run)[-1] == 120
    assert train_steps(run) == list(range(1, 121))


@pytest.mark.slow
def test_a_second_signal_ends_it_whatever_hangs(store: Path, recipe: Path, tmp_path: Path) -> None:
    with running("pretrain", recipe, f"data.store={store}", *TWO, folder=tmp_path) as command:
        command.until(lambda: checkpoints(tmp_path / "run"))
        ranks = list(command.ranks().values())
        for rank in ranks:
            os.kill(rank, signal.SIGSTOP)
        command.process.send_signal(signal.SIGTERM)
        time.sleep(2.5)
        assert command.process.poll() is None
        command.process.send_signal(signal.SIGTERM)
        assert command.exit_code() == 75, command.said
        assert FORCED in command.err and gone(ranks)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_stops_with_all_saved(store: Path, recipe: Path, tmp_path: Path, asked: int) -> None:
    with running("pretrain", recipe, f"data.store={store}", *TWO, "--json", folder=tmp_path) as command:
        command.until(lambda: checkpoints(tmp_path / "run"))
        os.kill(command.process.pid, asked)
        assert command.exit_code() == 75, command.said
        assert "with everything saved" in command.err
        assert gone(list(command.descendants()))
        summary = json.loads(command.out)
    assert checkpoints(tmp_path / "run")[-1] == train_steps(tmp_path / "run")[-1] < 120
    assert (summary["outcome"], summary["step"]) == ("stopped", checkpoints(tmp_path / "run")[-1])
    assert summary["train"]["step"] == summary["step"]


@pytest.mark.parametrize(
    ("codes", "asked", "code"),
    [
        ([0, 0], False, 0),
        ([75, 75], False, 75),
        ([75, 0], True, 75),
        ([2, None], False, 2),
        ([2, -15], True, 2),
        ([0, 1], False, 1),
        ([-9, None], False, 1),
        ([-15, 75], False, 1),
        ([-15, -15], True, 75),
        ([-15, None], True, 75),
        ([1, -15], True, 75),
        ([75, None], True, 75),
        ([75, -9], True, 1),
        ([None, None], True, 1),
    ],
)
def test_the_ranks_exit_codes_make_the_commands(codes: list[int | None], asked: bool, code: int) -> None:
    assert exit_code(codes, asked) == code


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_ranks_start_is_no_failure(number: int, store: Path, recipe: Path, tmp_path: Path) -> None:
    with running("pretrain", recipe, f"data.store={store}", *TWO, "--json", folder=tmp_path) as command:
        command.until(lambda: len(command.ranks()) == 2)
        os.kill(command.process.pid, number)
        assert command.exit_code() == 75, command.said
        assert "Traceback" not in command.err and "training failed" not in command.err, command.said
        assert gone(list(command.descendants()))
        told = json.loads(command.out)
    assert (told["outcome"], told["step"], told["steps"], told["validation"]) == ("stopped", 0, 120, None)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_while_the_command_loads(number: int, store: Path, recipe: Path, tmp_path: Path) -> None:
    with running("pretrain", recipe, f"data.store={store}", *TWO, folder=tmp_path) as command:
        maps = Path(f"/proc/{command.process.pid}/maps")
        command.until(lambda: "libtorch" in maps.read_text())
        os.kill(command.process.pid, number)
        assert command.exit_code() == 75, command.said
        assert command.err.count("\n") == 1 and "stopped before training began" in command.err, command.said
    assert not (tmp_path / "run").exists()
