"""Early stopping: which validations count as a gain, and runs that end by them, also over kills and starts."""

from __future__ import annotations

import json
import math
import os
import signal
import time
from pathlib import Path

import hypothesis.strategies as st
import pytest
from hypothesis import given

from cluster.submission.run_state import run_state
from pretrain.resilience.early_stop import EarlyStopSettings, EarlyStopState
from sharding.base.errors import UserError
from sharding.base.settings import validate
from tests.pretrain.conftest import end, start, write_recipe
from tests.support.training.checkpoints import load_run


def states(settings: EarlyStopSettings, *figures: tuple[float, float]) -> list[EarlyStopState]:
    """The state after each validation of (clip1, loss)."""
    state, after = EarlyStopState(), []
    for clip1, loss in figures:
        state = state.after(settings, clip1, loss)
        after.append(state)
    return after


def test_validations_without_a_gain_are_counted() -> None:
    settings = EarlyStopSettings(patience=2, min_gain=0.125)
    after = states(settings, (0.25, 1), (0.375, 1), (0.5, 1), (0.5, 0), (0.625, 0))
    assert [each.without_gain for each in after] == [0, 1, 0, 1, 2]  # 0.375 is no more than 0.125 above 0.25
    assert [each.ends(settings) for each in after] == [False, False, False, False, True]
    assert not after[-1].ends(None) and not after[-1].ends(EarlyStopSettings(patience=3))


def test_a_loss_gains_by_falling() -> None:
    after = states(EarlyStopSettings(metric="loss", patience=1), (0.5, 2.0), (0.4, 1.5), (0.9, 1.5))
    assert [each.without_gain for each in after] == [0, 0, 1]


@pytest.mark.parametrize(
    ("losses", "without_gain", "best"),
    [
        ([math.nan, 3.0, 2.0, 1.0], [1, 0, 0, 0], -1.0),
        ([3.0, math.nan, 2.0, math.nan], [0, 1, 0, 1], -2.0),
        ([math.nan, math.nan], [1, 2], None),
    ],
)
def test_a_loss_that_is_nan_is_no_gain(losses: list[float], without_gain: list[int], best: float | None) -> None:
    after = states(EarlyStopSettings(metric="loss", patience=2), *((0.5, loss) for loss in losses))
    assert [each.without_gain for each in after] == without_gain and after[-1].best == best


@given(st.lists(st.floats(0, 1) | st.just(math.nan)), st.floats(0, 1), st.sampled_from(["clip1", "loss"]))
def test_the_best_is_that_of_the_figures_that_are_numbers(figures: list[float], min_gain: float, metric: str) -> None:
    settings = EarlyStopSettings.model_validate({"metric": metric, "patience": 1, "min_gain": min_gain})
    state = EarlyStopState()
    for state in states(settings, *((figure, figure) for figure in figures)):
        assert state.best is None or not math.isnan(state.best)
    numbers = [(figure, figure) for figure in figures if not math.isnan(figure)]
    assert state.best == (states(settings, *numbers)[-1].best if numbers else None)


def test_a_best_of_nan_in_a_checkpoint_reads_as_none() -> None:
    state = EarlyStopState.of_checkpoint(json.loads('{"early_stop": {"best": NaN, "without_gain": 1}}'))
    assert state == EarlyStopState(None, 1)
    assert state.after(EarlyStopSettings(metric="loss", patience=2), 0.5, 3.0) == EarlyStopState(-3.0, 0)


def test_a_checkpoint_that_does_not_say_begins_anew() -> None:
    assert EarlyStopState.of_checkpoint({}) == EarlyStopState()
    assert EarlyStopState.of_checkpoint({"early_stop": {"best": 0.5, "without_gain": 1}}) == EarlyStopState(0.5, 1)


def test_statistics_of_the_end_are_refused_beside_it(tmp_path: Path) -> None:
    from pretrain.settings import TrainSettings

    tree = {"data": {"store": "s"}, "validation": {"early_stop": {"patience": 2}}, "precise_statistics": 3}
    with pytest.raises(UserError, match="precise_statistics"):
        validate(TrainSettings, tree, "here")


@pytest.mark.cluster
def test_a_run_ends_early_also_where_it_is_killed_and_goes_on(store: str, tmp_path: Path) -> None:
    """The first validation, at step 2, is the only one that gains: with a patience of 3, step 8 is the last."""
    early = {"every_steps": 2, "videos": 2, "early_stop": {"patience": 3, "min_gain": 1.0}}
    recipe, run, log = write_recipe(tmp_path, store, validation=early), tmp_path / "run", tmp_path / "log"
    process = start(recipe, run, log, alone=True)
    deadline = time.monotonic() + 200
    while not (run / "checkpoints" / "step-00000004").exists():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    end(process)
    assert end(start(recipe, run, log, alone=True)) == 0, log.read_text()
    assert load_run(run).step == 8
    assert "ended early at step 8 of 30" in log.read_text()
    assert run_state(run).outcome == "finished"
    best = json.loads((run / "checkpoints" / "step-00000008" / "state.json").read_text())["early_stop"]
    assert best["without_gain"] == 3

    lines = (run / "metrics.jsonl").read_text()
    assert end(start(recipe, run, log, alone=True)) == 0  # the same command has nothing left to do
    assert (run / "metrics.jsonl").read_text() == lines and load_run(run).step == 8
    assert end(start(recipe, run, log, "validation.early_stop.patience=4", alone=True)) == 0
    assert load_run(run).step == 10
