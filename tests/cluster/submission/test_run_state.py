"""How far a run is, by its files alone; and a request to stop that nobody answers."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from cluster.submission.run_state import is_run, outcome_of, run_state, stop_run
from sharding.base.errors import UserError

NOW = 1_600_000_000.0


@pytest.fixture()
def run(tmp_path: Path) -> Path:
    """A run of 100 steps that has logged step 42, and saved steps 9 and 40."""
    settings = {"format": 1, "settings": {}, "identity": {}, "derived": {"steps": 100}}
    (tmp_path / "settings.json").write_text(json.dumps(settings))
    lines = [{"event": "train", "step": step, "loss": 100 - step} for step in (41, 42)]
    (tmp_path / "metrics.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    (tmp_path / "train.log").write_text("12:00:00 step 42/100\n\n")
    for step, age in ((9, 500), (40, 90)):
        (folder := tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
        os.utime(folder, (NOW - age, NOW - age))
    for name in ("metrics.jsonl", "train.log"):
        os.utime(tmp_path / name, (NOW - 30, NOW - 30))
    return tmp_path


def test_a_run_at_work(run: Path) -> None:
    state = run_state(run, NOW)
    assert (state.outcome, state.step, state.of, state.loss) == ("running", 42, 100, 58)
    assert (state.checkpoint, state.checkpoint_age_seconds, state.last_word_seconds) == (40, 90, 30)
    assert not state.asked_to_stop
    assert run_state(run, NOW + 3600).outcome == "silent"


def test_a_run_that_was_stopped_or_is_finished(run: Path) -> None:
    (run / "train.log").write_text("12:00:00 stopped at step 40 with everything saved; the same command goes on\n")
    assert run_state(run, NOW).outcome == "stopped"
    (run / "checkpoints" / "step-00000100").mkdir()
    assert run_state(run, NOW).outcome == "finished"


@pytest.mark.parametrize(
    ("checkpoint", "of", "line", "age", "outcome"),
    [
        (None, 10, "", None, "silent"),
        (None, 10, "building the network", 1.0, "running"),
        (5, None, "", None, "finished"),  # imported weights have no schedule
        (5, 10, "begun again after a stop", 1.0, "running"),
    ],
)
def test_outcomes(checkpoint: int | None, of: int | None, line: str, age: float | None, outcome: str) -> None:
    assert outcome_of(checkpoint, of, line, age) == outcome


def test_a_request_that_nobody_answers_is_taken_back(run: Path) -> None:
    assert stop_run(run, 0.3).outcome == "silent"
    assert not (run / "stop").exists()


def test_what_is_no_run(tmp_path: Path) -> None:
    assert not is_run(tmp_path) and not is_run(tmp_path / "none")
    with pytest.raises(UserError):
        run_state(tmp_path)
