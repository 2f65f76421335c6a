"""`reelscale launch slurm` by a real Slurm: the job saves, queues again, survives a lost rank, and ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import MARK, checkpoints, reelscale, succeeded, train_steps
from tests.support.launchers.slurm import Slurm, missing, running_slurm

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(missing()), reason=missing()),
]
TWO_TASKS = ("--nodes", "1", "--gpus-per-node", "2", "--time", "20", "--name", "tiny")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    with running_slurm(tmp_path_factory.mktemp("slurm")) as running:
        yield running


def test_sbatch_takes_the_script(slurm: Slurm, store: Path, recipe: Path, tmp_path: Path) -> None:
    options = ("--partition", "main", "--cpus-per-rank", "2", "--save-seconds", "60", "--options=--exclusive")
    made = succeeded(reelscale("launch", "slurm", recipe, f"data.store={store}", *TWO_TASKS, *options, folder=tmp_path))
    path = tmp_path / "job.sh"
    path.write_text(made.stdout)
    slurm.ask("sbatch", "--test-only", str(path))
    path.write_text(made.stdout.replace("--gpus-per-node=2", "--gpus-per-node=3"))
    with pytest.raises(AssertionError, match="Requested node configuration is not available"):
        slurm.ask("sbatch", "--test-only", str(path))


def test_a_job_saves_queues_again_survives_a_lost_rank_and_ends(
    slurm: Slurm, store: Path, recipe: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    training = (f"data.store={store}", "run=run", "schedule.epochs=200", "pulse.lost_seconds=20")
    of_its_own = f"--options=--export=ALL,{MARK}="  # the job outlives the command that sends it
    options = (*TWO_TASKS, of_its_own, "--submit")
    sent = reelscale("launch", "slurm", recipe, *training, *options, folder=tmp_path, environment=slurm.variables)
    words = succeeded(sent).stdout.split()
    assert words[:3] == ["submitted", "as", "job"]
    number = words[3].rstrip(";")

    def said() -> str:
        return "".join(path.read_text() for path in tmp_path.glob("reelscale-*.out"))

    def until(condition: Callable[[], Any]) -> Any:
        def going() -> Any:
            assert slurm.job(number)["JobState"] not in ("FAILED", "CANCELLED", "TIMEOUT"), said()
            return condition()

        return slurm.until(going, said)

    until(lambda: len(checkpoints(run)) > 1)
    slurm.ask("scancel", "--signal=USR1", number)  # what Slurm does itself before the time limit
    job = until(lambda: slurm.job(number)["JobState"] == "PENDING" and slurm.job(number))
    assert job["Restarts"] == "1" and "with everything saved" in said() and "queued again" in said(), said()
    reached = checkpoints(run)[-1]
    assert reached == train_steps(run)[-1] < 400

    # Not minutes later, though not in the second of its end: the node would take it for the job that was ended.
    slurm.ask("scontrol", "update", f"JobId={number}", "StartTime=now+5")
    until(lambda: checkpoints(run)[-1] > reached)
    assert f"going on from the checkpoint at step {reached} of 400" in said()
    os.kill(rank_of(slurm, number, "1"), signal.SIGKILL)
    until(lambda: "restart 1 of 3" in said())
    until(lambda: slurm.job(number)["JobState"] == "COMPLETED")
    assert checkpoints(run)[-1] == 400 and set(train_steps(run)) == set(range(1, 401))


def rank_of(slurm: Slurm, number: str, rank: str) -> int:
    """The process id of a task of the job."""
    lines = slurm.ask("scontrol", "listpids", number).splitlines()
    rows = [dict(zip(lines[0].split(), line.split(), strict=True)) for line in lines[1:]]
    return next(int(row["PID"]) for row in rows if row["GLOBALID"] == rank)
