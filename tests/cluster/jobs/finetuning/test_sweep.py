"""Sweeps: the values of their trials, what is refused, the table and the best recipe; and one that is stopped twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.jobs.finetuning.sweep import (
    Sweep,
    SweepJob,
    best_recipe,
    drawn_settings,
    load_sweep,
    run_sweep,
    sweep_result,
)
from cluster.jobs.training import TrainingJob
from cluster.launch.tuning.trial import Trial, TrialFailed, TrialProcess
from cluster.launch.tuning.tuner import TrialEnd, TuneOptions
from sharding.base.errors import UserError
from sharding.base.settings import load_settings, validate
from tests.cluster.conftest import SMALL
from tests.support.commands import checkpoints, gone, reelscale, running, succeeded
from tests.support.training.evaluations import spoil

FILE = """\
train: tiny.yaml
space:
  schedule.lr: {values: [0.001, 0.01]}
"""


def job(**settings: Any) -> SweepJob:
    tree = {"train": "tiny.yaml", "space": {"schedule.lr": {"log_uniform": [1e-4, 1e-1]}}, "trials": 40}
    return validate(SweepJob, tree | settings, "here")


@pytest.fixture()
def file(recipe: Path, store: Path, begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A sweep's file beside its recipe."""
    monkeypatch.chdir(tmp_path)
    text = recipe.read_text().replace("data:\n", f"init: {{run: {begun}}}\ndata:\n  store: {store}\n")
    (tmp_path / "tiny.yaml").write_text(text)
    (tmp_path / "sweep.yaml").write_text(FILE)
    return tmp_path / "sweep.yaml"


@pytest.fixture()
def evaluated(file: Path, tmp_path: Path) -> Path:
    """The same sweep, its trials compared by their evaluations."""
    (tmp_path / "evaluate.yaml").write_text("run: runs/mine\nclips: 2\n")
    file.write_text(f"{FILE}metric: video1\nevaluate: evaluate.yaml\n")
    return file


def test_values_are_drawn_between_their_bounds_and_by_number() -> None:
    drawn = drawn_settings(job())
    rates = [settings["schedule.lr"] for settings in drawn]
    assert all(1e-4 <= rate <= 1e-1 for rate in rates) and len(set(rates)) == 40
    assert 8 <= sum(rate < 10**-2.5 for rate in rates) <= 32  # half of the powers of ten
    assert drawn_settings(job(trials=50))[:40] == drawn
    assert drawn_settings(job(draw_seed=1)) != drawn
    uniform = drawn_settings(job(space={"loss.label_smoothing": {"uniform": [0.1, 0.2]}}))
    assert all(0.1 <= settings["loss.label_smoothing"] <= 0.2 for settings in uniform)


def test_lists_are_combined() -> None:
    space = {"schedule.lr": {"values": [0.1, 0.2]}, "engine.optimizer": {"values": ["sgd", "adamw"]}}
    combined = drawn_settings(job(space=space, trials=None))
    assert [tuple(settings.values()) for settings in combined] == [
        (0.1, "sgd"), (0.1, "adamw"), (0.2, "sgd"), (0.2, "adamw"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("settings", "part"),
    [
        ({"space": {"a": {}}}, "one of values"),
        ({"space": {"a": {"uniform": [2, 1]}}}, "is not below"),
        ({"space": {"a": {"log_uniform": [0, 1]}}}, "above 0"),
        ({"trials": None}, "has no list of values"),
        ({"metric": "video1"}, "belong together"),
        ({"evaluate": "e.yaml"}, "belong together"),
    ],
)
def test_what_does_not_fit_together(settings: dict[str, Any], part: str) -> None:
    with pytest.raises(UserError, match=part):
        job(**settings)


def test_the_settings_of_each_trial_are_checked_first(file: Path, tmp_path: Path) -> None:
    sweep = load_sweep(str(file), ["folder=out", "train.schedule.epochs=2"])
    assert [trial.settings for trial in sweep.trials] == [{"schedule.lr": 0.001}, {"schedule.lr": 0.01}]
    assert [trial.run for trial in sweep.trials] == [str(tmp_path / "out" / f"trial-000{n}") for n in (0, 1)]
    assert "schedule.epochs=2" in sweep.trials[0].commands[0] and sweep.trials[0].steps == 4
    file.write_text(FILE.replace("0.01]", "-1]"))
    with pytest.raises(UserError, match="greater than 0"):
        load_sweep(str(file), [])
    with pytest.raises(UserError, match="no trial is evaluated"):
        load_sweep(str(file), ["evaluate.clips=3"])


@pytest.mark.parametrize(
    ("override", "part"),
    [
        ("evaluate=nowhere.yaml", "no such settings file"),
        ("evaluate.clipz=3", "did you mean clips"),
        ("evaluate.crop=17", "is larger than the pictures"),
        ("evaluate.split=test", "'test'"),
        ("evaluate.fuse.run=nowhere", "not a run's folder"),
    ],
)
def test_the_evaluation_is_checked_first(evaluated: Path, override: str, part: str) -> None:
    assert [words[0] for words in load_sweep(str(evaluated), []).trials[1].commands] == ["finetune", "evaluate"]
    with pytest.raises(UserError) as refused:
        load_sweep(str(evaluated), [override])
    assert part in str(refused.value)


def test_a_store_by_which_no_run_is_validated_is_refused(evaluated: Path, corpus: Path, tmp_path: Path) -> None:
    """Its runs have no clip@1; those that are compared by an evaluation of another split need none."""
    shutil.copytree(corpus / "train", tmp_path / "corpus" / "train")
    succeeded(reelscale("shard", "corpus", "no-val", *SMALL, "validation=0", "launcher=none", folder=tmp_path))
    video1 = ["train.data.store=no-val", "evaluate.split=train"]
    (trial, _) = load_sweep(str(evaluated), video1).trials
    assert not trial.needs_validation
    for more in (["metric=clip1", "evaluate=null"], ["asha={grace_steps: 2}"]):
        with pytest.raises(UserError, match="has no video in its split 'val'"):
            load_sweep(str(evaluated), [*(video1[:1] if "evaluate=null" in more else video1), *more])


def test_a_trial_without_a_validation_has_the_figure_of_its_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TrialProcess, "_start", lambda self: setattr(self, "_child", subprocess.Popen(["true"])))
    folder = tmp_path / "run" / "evaluation" / "x"
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text('{"video1": 0.5}')
    trial = Trial(0, str(tmp_path / "run"), [["finetune"], ["evaluate"]], {}, str(tmp_path), 6, needs_validation=False)
    figures = TrialProcess(trial, lambda: False).report()
    assert figures == {"step": 6, "clip1": None, "finished": True, "video1": 0.5}
    with pytest.raises(TrialFailed, match="no good video in its split 'val'"):
        TrialProcess(replace(trial, needs_validation=True), lambda: False).report()


def test_a_corrected_evaluation_is_of_the_same_sweep(
    evaluated: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []

    def run_none(trials: Sequence[Trial], options: TuneOptions, show: object) -> tuple[bool, list[TrialEnd]]:
        names.append(options.evaluation)
        return True, []

    monkeypatch.setattr("cluster.jobs.finetuning.sweep.run_trials", run_none)

    def begin(*overrides: str) -> None:
        run_sweep(load_sweep(str(evaluated), overrides), print)

    begin("evaluate.split=train")
    begin()
    begin("evaluate.damaged=0.5", "evaluate.batch=1")
    assert names[0] != names[1] == names[2]  # what was finished by another evaluation is evaluated anew
    file = tmp_path / "runs" / "sweep" / "trials.json"
    trials = json.loads(file.read_text())
    for trial in trials["trials"]:
        trial["commands"].append(["evaluate", "before.yaml"])  # as earlier versions kept them
    file.write_text(json.dumps(trials))
    begin()
    with pytest.raises(UserError, match="another sweep"):
        begin("train.schedule.epochs=2")


def test_the_table_begins_with_the_best_and_its_recipe_is_one(file: Path, tmp_path: Path) -> None:
    sweep: Sweep = load_sweep(str(file), ["train.schedule.epochs=2", "space={schedule.lr: {values: [0.1, 0.2, 0.3]}}"])
    ends = [TrialEnd(0, "ended early", 2, 0.9), TrialEnd(1, "failed", error="no"), TrialEnd(2, "finished", 4, 0.5)]
    result = sweep_result(sweep, ends)
    assert [row["number"] for row in result["trials"]] == [0, 2, 1] and result["best"] == 2
    (tmp_path / "best.yaml").write_text(best_recipe(sweep, result))
    best = load_settings(TrainingJob, str(tmp_path / "best.yaml")).train
    assert best.schedule.lr == 0.3 and best.schedule.epochs == 2 and best.run is None
    assert sweep_result(sweep, ends[1:2])["best"] is None


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_sweep_that_is_stopped_and_killed_runs_no_finished_trial_again(
    file: Path, ray: dict[str, str], tmp_path: Path
) -> None:
    """Stopped by a signal in its first trial, killed in its second; then it ends, and has nothing left to do."""
    folder = tmp_path / "runs" / "sweep"
    first, second = folder / "trial-0000", folder / "trial-0001"
    arguments = ("sweep", file, "parallel=1", "train.schedule.epochs=20", "train.checkpoint.every_steps=1", "--json")
    with running(*arguments, folder=tmp_path, environment=ray) as command:
        command.until(lambda: checkpoints(first))
        os.kill(command.process.pid, signal.SIGTERM)
        assert command.exit_code() == 75, command.said
        assert "Traceback" not in command.said
    assert "with everything saved" in (folder / "trial-0000.log").read_text()
    assert not second.exists()
    with running(*arguments, folder=tmp_path, environment=ray) as command:
        command.until(lambda: second.exists() and checkpoints(second))
        left = list(command.descendants())
        command.kill()
        assert gone(left)
    log, saved = (folder / "trial-0000.log").read_text(), checkpoints(second)[-1]
    assert log.count("going on from the checkpoint") == 1 and saved < 40
    with running(*arguments, folder=tmp_path, environment=ray) as command:
        assert command.exit_code() == 0, command.said
        result = json.loads(command.out)
    assert (folder / "trial-0000.log").read_text() == log
    assert "going on from the checkpoint" in (folder / "trial-0001.log").read_text()
    assert {row["number"]: row["outcome"] for row in result["trials"]} == {0: "finished", 1: "finished"}
    assert [row["clip1"] for row in result["trials"]] == sorted(
        (row["clip1"] for row in result["trials"]), reverse=True
    )
    for run in (first, second):
        assert json.loads((run / "settings.json").read_text())["settings"]["schedule"]["lr"] in (0.001, 0.01)
    assert load_settings(TrainingJob, str(folder / "best.yaml")).train.schedule.epochs == 20
    shutil.rmtree(first / "checkpoints")  # would be seen, if anything ran again
    with running(*arguments, folder=tmp_path, environment=ray) as command:
        assert command.exit_code() == 0, command.said
        assert json.loads(command.out)["trials"] == result["trials"]
    assert not (first / "checkpoints").exists()


@pytest.mark.cluster
@pytest.mark.timeout(900)
def test_a_corrected_evaluation_trains_nothing_again(
    evaluated: Path, store: Path, ray: dict[str, str], tmp_path: Path
) -> None:
    """All videos of its store are damaged at first; then it is of another store."""
    spoiled = tmp_path / "spoiled"
    shutil.copytree(store, spoiled)
    spoil(str(spoiled), list(range(6)))
    run = tmp_path / "runs" / "sweep" / "trial-0000"
    arguments = ("sweep", evaluated, "space={schedule.lr: {values: [0.01]}}", "retries=0", "--json")
    with running(*arguments, f"evaluate.store={spoiled}", folder=tmp_path, environment=ray) as command:
        assert command.exit_code() == 1, command.said
        assert "reelscale evaluate ended with exit code 2" in json.loads(command.out)["trials"][0]["error"]
    history = (run / "metrics.jsonl").read_text()
    with running(*arguments, folder=tmp_path, environment=ray) as command:
        assert command.exit_code() == 0, command.said
        result = json.loads(command.out)
    assert result["best"] == 0 and result["trials"][0]["video1"] is not None
    assert "going on from the checkpoint at step 6 of 6" in Path(f"{run}.log").read_text()
    assert [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"train"' in line] == [
        line for line in history.splitlines() if '"train"' in line
    ]
