"""Old and damaged files of runs: told with a remedy by whatever reads them, and no traceback."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pretrain.checkpoints.checkpoint import CheckpointSettings
from pretrain.conversion.import_export import export_run
from pretrain.engine.autotune.record import read_result
from pretrain.report.report import write_report
from pretrain.report.run_data import read_metrics
from pretrain.run_folder import Run, read_settings
from pretrain.run_settings import read_settings_file
from sharding.base.errors import UserError
from tests.pretrain.conftest import Finished
from tests.pretrain.report.test_report import write_evaluation
from tests.support.training.checkpoints import begin_attempt

pytestmark = pytest.mark.slow

EVALUATION = "evaluation/store-val-10-clips-0a1b2c3d"
NONE = [b"", b"{", b"[1, 2]", b"null", b"7", b'"text"', b"\xff\xfe{", b"[" * 100_000, b'{"format": 99}', b"\0" * 512]


def change(path: Path, **values: Any) -> bytes:
    return json.dumps({**json.loads(path.read_text()), **values}).encode()


@pytest.fixture()
def run(finished: Finished, tmp_path: Path) -> Path:
    """A run that ended, and was evaluated."""
    run = tmp_path / "run"
    shutil.copytree(finished.folder, run, ignore=shutil.ignore_patterns("evaluation"))
    write_evaluation(run / EVALUATION, read_settings(run)[1], 12)
    return run


def readers(run: Path) -> dict[str, Callable[[], object]]:
    settings, classes = read_settings(run)
    store = CheckpointSettings(store=str(run.parent / "kept"))
    begin_attempt(run, store)
    return {
        "begin": lambda: Run(run, writes=True).begin(settings, classes, ["v"], {}),
        "versions": lambda: Run(run, writes=False).versions(settings.data),
        "threads": lambda: Run(run, writes=False).threads,
        "read_settings": lambda: read_settings(run),
        "attempt": lambda: begin_attempt(run, store),
        "export": lambda: export_run(run, run.parent / "file.safetensors"),
        "report": lambda: write_report([run], run.parent / "report"),
    }


def refusals(run: Path, name: str, contents: list[bytes], by: tuple[str, ...]) -> list[UserError]:
    """What each reader says to each content of a file."""
    read, path, output = readers(run), run / name, []
    for content in contents:
        for reader in by:
            path.write_bytes(content)
            with pytest.raises(UserError) as caught:
                read[reader]()
            assert caught.value.remedy and str(run) in caught.value.where, reader
            output.append(caught.value)
    return output


ALL = ("begin", "versions", "threads", "read_settings", "attempt", "export", "report")


def test_settings_that_are_none(run: Path) -> None:
    output = refusals(run, "settings.json", NONE, ALL)
    assert all("settings.json" in str(error) for error in output)
    assert sum("has format 99; this version reads format 1" in error.what for error in output) == len(ALL)
    assert sum("it is empty" in error.what for error in output) == len(ALL)


def test_settings_of_other_kinds(run: Path) -> None:
    path = run / "settings.json"
    whole = json.loads(path.read_text())
    for values in ({"settings": []}, {"settings": None}, {"identity": "x"}, {"identity": [1]}):
        refusals(run, "settings.json", [change(path, **values)], ALL)
        path.write_text(json.dumps(whole))
    for identity in ({}, {"data": []}, {"data": {"index": 3}}, {"data": {"index": [3]}}):
        refusals(run, "settings.json", [change(path, identity=identity)], ("versions", "export"))
        path.write_text(json.dumps(whole))
    for settings in ({}, {**whole["settings"], "colour": 3}, {**whole["settings"], "lanes": "many"}):
        (error,) = refusals(run, "settings.json", [change(path, settings=settings)], ("read_settings",))
        assert "does not fit this version" in error.what and "version of Reelscale" in error.remedy
        path.write_text(json.dumps(whole))


def test_settings_of_before_formats_had_numbers(run: Path) -> None:
    path = run / "settings.json"
    whole = json.loads(path.read_text())
    assert whole.pop("format") == 1
    path.write_text(json.dumps(whole))
    assert read_settings_file(run).format == 1
    settings, _ = read_settings(run)
    assert settings.lanes == whole["settings"]["lanes"] and Run(run, writes=False).threads == whole["threads"]
    assert Run(run, writes=False).versions(settings.data) == whole["identity"]["data"]["index"]


def test_classes_that_are_none(run: Path) -> None:
    contents = [content for content in NONE if b"format" not in content] + [b"{}", b'["a", 1]', b'{"a": "b"}']
    told = refusals(run, "classes.json", contents, ("read_settings", "export"))
    assert all("classes.json" in str(error) for error in told)


def test_a_kept_copy_in_the_store_that_is_damaged(run: Path) -> None:
    readers(run)
    store = CheckpointSettings(store=str(run.parent / "kept"))
    for content in NONE:
        (run.parent / "kept" / "run" / "settings.json").write_bytes(content)
        if content:  # nothing at all is nothing to differ from
            with pytest.raises(UserError, match=r"settings\.json") as caught:
                begin_attempt(run, store)
            assert "kept/run" in caught.value.where


@pytest.mark.parametrize(
    "values", [{"video1": "much"}, {"videos": [1]}, {"per_class": [3]}, {"classes": 3}, {"format": 2}]
)
def test_an_evaluation_of_another_kind(run: Path, values: dict[str, Any]) -> None:
    path = run / EVALUATION / "summary.json"
    refusals(run, f"{EVALUATION}/summary.json", [change(path, **values)], ("report",))


@pytest.mark.parametrize("name", ["summary.json", "videos.parquet", "clips.npz"])
def test_an_evaluation_that_is_damaged(run: Path, name: str) -> None:
    name = f"{EVALUATION}/{name}"
    whole = (run / name).read_bytes()
    told = refusals(run, name, [*NONE, whole[: len(whole) // 2], whole[:-10]], ("report",))
    assert all("evaluate the run again" in error.remedy or "99" in error.what for error in told)


def test_provenance_that_is_damaged(run: Path) -> None:
    (run / "provenance.json").touch()
    told = refusals(run, "provenance.json", NONE, ("export",))
    assert all("provenance.json" in str(error) for error in told)


def test_lines_of_metrics_that_are_none(tmp_path: Path) -> None:
    good = '{"event": "train", "step": 3, "loss": null, "top1": 0.5}'
    bad = ['{"event": "train"', "[]", "7", '{"event": "train", "step": "x"}', '{"event": "train", "step": Infinity}',
           '{"event": "train", "step": 4, "loss": "much"}', '{"event": "train", "step": 4, "loss": [1]}',
           '{"event": [], "step": 4}', '{"event": "train", "step": null}', "\x00" * 20]  # fmt: skip
    (tmp_path / "metrics.jsonl").write_text("\n".join([good, *bad]) + "\n")
    train, validation, unreadable = read_metrics(tmp_path / "metrics.jsonl")
    assert train == [json.loads(good)] and validation == [] and unreadable == len(bad)
    assert type(train[0]["step"]) is int


@pytest.mark.parametrize("content", [*NONE, b'{"path": "of a later version"}'])
def test_a_measurement_that_cannot_be_read_is_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "compute_path.json").write_bytes(content)
    assert read_result(tmp_path) is None
