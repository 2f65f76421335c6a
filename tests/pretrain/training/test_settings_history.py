"""What a run was trained with at each of its starts, and what changed from one to the next."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.checkpoints.history import SETTINGS_HISTORY, restore_history, write_history
from pretrain.engine.distributed import World
from pretrain.settings import TrainSettings
from pretrain.training.settings_history import changes, record_start

ONE, TWO = World(0, 1, torch.device("cpu")), World(0, 2, torch.device("cpu"))


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings.model_validate({"data": {"store": "there"}, **changes})


def entries(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / SETTINGS_HISTORY).read_text().splitlines()]


def test_what_changes_is_told_and_entered(tmp_path: Path, run_log: pytest.LogCaptureFixture) -> None:
    record_start(tmp_path, settings(), ONE, 1, 0, None)
    assert not run_log.records and entries(tmp_path)[0]["changed"] == []
    plain = {"log_steps": 5, "checkpoint": {"keep": 7}, "data": {"store": "there", "loader": {"workers": 3}}}
    record_start(tmp_path, settings(**plain), ONE, 2, 10, None)
    assert not run_log.records and entries(tmp_path)[1]["settings"]["checkpoint"]["keep"] == 7
    other = settings(schedule={"lr": 0.5, "decay": "cosine"}, engine={"precision": "fp32"}, precise_statistics=3)
    record_start(tmp_path, other, TWO, 3, 20, None)
    changed = {
        "schedule.lr": (0.01, 0.5),
        "schedule.decay": ("steps", "cosine"),
        "engine.precision": ("bf16", "fp32"),
        "precise_statistics": (0, 3),
        "computed by.ranks": (1, 2),
    }
    last = entries(tmp_path)[2]
    assert {each["setting"]: (each["old"], each["new"]) for each in last["changed"]} == changed
    assert (last["attempt"], last["step"]) == (3, 20)
    said = {record.message for record in run_log.records}
    assert "changed since the run's last start: schedule.lr is 0.5, was 0.01" in said
    assert len(said) == len(changed)
    record_start(tmp_path, other, TWO, 4, 30, None)
    assert entries(tmp_path)[3]["changed"] == [] and {record.message for record in run_log.records} == said


def test_runs_of_before_and_lines_that_were_cut_short(tmp_path: Path, run_log: pytest.LogCaptureFixture) -> None:
    before = settings(schedule={"lr": 0.02}).model_dump(mode="json")
    del before["data"]["patience_seconds"]  # of a version that had it not
    record_start(tmp_path, settings(), ONE, 5, 10, before)
    assert [each["setting"] for each in entries(tmp_path)[0]["changed"]] == ["schedule.lr"]
    before["engine"]["path"] = before["engine"].pop("compute_path")  # as it was called
    assert [name for name, _, _ in changes(before, settings())] == ["schedule.lr"]
    with (tmp_path / SETTINGS_HISTORY).open("a") as file:
        file.write('{"step": 20, "format"')
    record_start(tmp_path, settings(schedule={"lr": 0.03}), ONE, 6, 20, None)
    last = json.loads((tmp_path / SETTINGS_HISTORY).read_text().splitlines()[-1])
    assert last["changed"] == [{"setting": "schedule.lr", "old": 0.01, "new": 0.03}]


def test_it_comes_along_with_a_checkpoint(tmp_path: Path) -> None:
    run, folder, other = (tmp_path / name for name in ("run", "checkpoint", "other"))
    for each in (run, folder, other):
        each.mkdir()
    for attempt, step in ((1, 0), (2, 10), (3, 20)):
        record_start(run, settings(), ONE, attempt, step, None)
    write_history(run, 10, folder)
    restore_history(other, folder)
    assert [entry["attempt"] for entry in entries(other)] == [1, 2]
    record_start(other, settings(schedule={"lr": 1}), ONE, 4, 10, None)
    assert entries(other)[-1]["changed"] == [{"setting": "schedule.lr", "old": 0.01, "new": 1.0}]
