"""Errors after which ranks are restarted on Ray, and errors that end the command at once."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from cluster.launch.on_ray.failures import not_again
from pretrain.checkpoints.attempts import Superseded, newest_attempt
from pretrain.data.workers.pool import DecoderDied, DecodersStalled
from sharding.base.errors import CommandFailed, DamagedStore, NotRetryable, UserError
from tests.support.commands import checkpoints, running

LOST = CommandFailed("training failed: another rank is gone")


@pytest.mark.parametrize(
    "failure",
    [Superseded("replaced"), NotRetryable("went wrong"), UserError("a", "b", "c"), DamagedStore("a", "b", "c")],
)
def test_what_another_try_would_meet_again_ends_the_command(failure: UserError | NotRetryable) -> None:
    """Also wrapped by Ray, and though the other ranks fail after it."""
    crossed = pickle.loads(pickle.dumps(failure))
    found = not_again([LOST, crossed, OSError("the actor died")])
    assert found is crossed and str(found) == str(failure)


@pytest.mark.parametrize(
    "failure", [LOST, DecoderDied("pid 1"), DecodersStalled("nothing for 1 s"), OSError("a disk"), RuntimeError("NCCL")]
)
def test_what_may_go_better_is_tried_again(failure: Exception) -> None:
    assert not_again([failure, LOST]) is None
    assert not_again([]) is None


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.timeout(900)  # whole commands, on a machine that may be busy
def test_a_run_that_a_newer_start_has_taken_over_is_left_to_it(
    store: Path, recipe: Path, ray: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train = (
        "pretrain", recipe, f"data.store={store}", f"run={run}", "launcher=ray", "ranks=2", "retries=3",
        "schedule.epochs=400", "checkpoint.every_steps=4",
    )  # fmt: skip
    with running(*train, folder=tmp_path, environment=ray) as command:
        command.until(lambda: checkpoints(run))
        (run / "attempts" / "000009").touch()
        assert command.exit_code() == 1, command.said
    assert newest_attempt(run) == 9 and len(list((run / "attempts").iterdir())) == 2, command.said
    assert f"reelscale: attempt 1 of {run} was replaced by attempt 9" in command.err, command.said
    assert "Traceback" not in command.err, command.said
