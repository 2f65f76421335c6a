"""A run's folder: its metrics go on whatever the disk does, and older runs' settings are read."""

from __future__ import annotations

import json
import logging
import resource
from pathlib import Path

import pytest

from pretrain.report.run_data import read_metrics
from pretrain.run_folder import Run, read_settings
from pretrain.settings import TrainSettings


def test_a_kill_costs_the_line_that_it_cut_alone(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    Run(tmp_path, writes=True).event("train", {"step": 1, "loss": 2.0})
    with path.open("a") as file:
        file.write('{"event": "train", "st')
    Run(tmp_path, writes=True).event("train", {"step": 2, "loss": 2.0})  # the next start
    train, _, unreadable = read_metrics(path)
    assert [event["step"] for event in train] == [1, 2] and unreadable == 1


def test_a_full_disk_costs_lines_of_the_log_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A limit on the file's length is as full, and cuts a line in the middle."""
    run, path = Run(tmp_path, writes=True), tmp_path / "metrics.jsonl"
    run.event("train", {"step": 1, "loss": 2.0})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with caplog.at_level(logging.WARNING, "reelscale"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 10, hard))
        try:
            for step in (2, 3):
                run.event("train", {"step": step, "loss": 2.0})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [record.message.partition(":")[0] for record in caplog.records] == ["metrics.jsonl cannot be written"]
    for step in (4, 5):
        run.event("train", {"step": step, "loss": float("nan")})
    train, _, unreadable = read_metrics(path)
    assert [event["step"] for event in train] == [1, 4, 5] and unreadable == 1
    assert json.loads(path.read_text().splitlines()[-1])["loss"] is None


def test_steps_that_are_taken_anew_have_one_line(tmp_path: Path) -> None:
    run, path = Run(tmp_path, writes=True), tmp_path / "metrics.jsonl"
    run.keep_up_to(0)
    assert not path.exists()
    for step in range(1, 6):
        run.event("train", {"step": step, "loss": 1.0})
    run.event("validation", {"step": 5, "clip1": 0.5})
    with path.open("a") as file:
        file.write('{"event": "train", "st')
    Run(tmp_path, writes=False).keep_up_to(3)
    assert len(path.read_text().splitlines()) == 7
    run.keep_up_to(3)
    for step in range(4, 6):
        run.event("train", {"step": step, "loss": 2.0})
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0)]


def test_settings_of_runs_from_before_a_renaming_are_read(tmp_path: Path) -> None:
    changed = {
        "data": {"store": "s", "reading": {"mode": "ranges"}, "loader": {"prefetch": 7, "workers": 2}},
        "engine": {"compute_path": "planar"},
    }
    settings = TrainSettings.model_validate(changed)
    Run(tmp_path, writes=True).begin(settings, ["a", "b"], ["v"], {})
    file = tmp_path / "settings.json"
    stored = json.loads(file.read_text())
    data, engine = stored["settings"]["data"], stored["settings"]["engine"]
    data["reading"]["way"] = data["reading"].pop("mode")
    data["loader"]["ahead"] = data["loader"].pop("prefetch")
    engine["path"] = engine.pop("compute_path")
    file.write_text(json.dumps(stored))
    assert read_settings(tmp_path) == (settings, ["a", "b"])
    run = Run(tmp_path, writes=True)
    run.begin(settings, ["a", "b"], ["v"], {})  # it goes on, and its file has the names of now
    assert run.before == settings.model_dump(mode="json")
    assert json.loads(file.read_text())["settings"] == settings.model_dump(mode="json")
