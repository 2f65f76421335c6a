"""Protocols of an evaluation, end to end: what is refused, damage, several labels, and the files of each."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.data.reading.store_split import Sample
from pretrain.data.views.views import ClipSettings
from pretrain.evaluation import summary as written
from pretrain.evaluation.evaluate import EvaluateSettings, Subject, open_subject, protocol_of
from pretrain.evaluation.summary import write_evaluation
from pretrain.evaluation.video_score import VideoScore
from pretrain.models.zoo import ModelSettings, build_model
from sharding.base.errors import UserError
from sharding.format.record import from_parquet
from tests.pretrain.conftest import CLASSES, Finished
from tests.support.training.evaluations import evaluated, spoil, table_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(finished.folder, tmp_path_factory.mktemp("protocols") / "run"))


@pytest.fixture(scope="module")
def subject(run: Path) -> Subject:
    return open_subject(EvaluateSettings(run=str(run), clips=3))


def classes_of(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return from_parquet((Path(summary["folder"]) / "classes.parquet").read_bytes()).to_pylist()


def test_crops_that_the_network_or_its_pictures_do_not_have(run: Path) -> None:
    """It was trained on crops of 16 of pictures of 18 x 22 pixels."""
    for crop, said in ((12, "crop=12 is smaller than the 16 pixels"), (20, "their shorter side has 18 pixels")):
        with pytest.raises(UserError, match=said) as refused:
            open_subject(EvaluateSettings(run=str(run), crop=crop))
        assert refused.value.where == str(run)


def test_a_network_that_takes_one_size_alone(run: Path) -> None:
    """C3D's fully connected layers are built for it."""
    clip = ClipSettings(frames=16, resize=(64, 86), crop=32)
    with torch.device("meta"):
        network = build_model(ModelSettings(name="c3d", width=0.125), 6, 16, 32)
    with pytest.raises(UserError, match="crop=64: this network takes crops of 32 pixels alone"):
        protocol_of(EvaluateSettings(run=str(run), crop=64), clip, network)
    assert protocol_of(EvaluateSettings(run=str(run), crops=3), clip, network).name == "10-clips-3-crops"


def test_a_damaged_video_is_wrong_by_every_protocol(run: Path, store: str, tmp_path: Path) -> None:
    copied = str(shutil.copytree(store, tmp_path / "store"))
    (key,) = spoil(copied, [4])
    summary = evaluated(run, store=copied, clips=2, crops=3, crop=18)
    (row,) = [row for row in table_of(summary) if row["damaged"]]
    assert row["key"] == key and key in row["damaged"] and (row["clips"], row["clips_right"]) == (2, 0)
    assert (summary["videos"], summary["damaged"], summary["calibration"]["videos"]) == (7, 1, 6)
    assert key not in [error["key"] for error in summary["errors"]]
    assert "2-clips-3-crops-crop-18" in Path(summary["folder"]).name
    assert sum(entry["videos"] for entry in summary["per_class"]) == 7


def test_several_labels_count_as_hits(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of seven videos with two labels each, the second of which is hit."""
    labels = [(row % 6, (row + 1) % 6) for row in range(7)]

    def relabelled(of: Subject, row: int) -> Sample:
        return replace(of.split.sample(row), labels=labels[row])

    monkeypatch.setattr(written, "_sample_or_damage", relabelled)
    scores = []
    for row in range(7):
        vector = np.full(6, 0.04, np.float32)
        vector[(row + (1 if row < 4 else 3)) % 6] = 0.8  # the first four are right, the others not at 1
        scores.append(VideoScore(row, vector, np.log(vector), 3, 3 if row < 4 else 0))
    summary = write_evaluation(subject, EvaluateSettings(run=str(subject.run), clips=3), scores)
    assert (summary["video1"], summary["several_labels"]) == (pytest.approx(4 / 7), 7)
    assert sum(entry["videos"] for entry in summary["per_class"]) == 14
    assert [error["key"] for error in summary["errors"]] == [subject.split.sample(row).key for row in (4, 5, 6)]
    first = summary["errors"][0]
    assert (first["labels"], first["predicted"]) == ([CLASSES[4], CLASSES[5]], CLASSES[1])
    assert first["score"] == pytest.approx(0.8)
    assert summary["calibration"]["ece"] == pytest.approx(abs(4 / 7 - 0.8), abs=1e-6)
    table = classes_of(summary)
    assert [row["name"] for row in table] == CLASSES
    for row, entry in zip(table, summary["per_class"], strict=True):
        assert (row["videos"], row["video1"], row["video5"]) == (entry["videos"], entry["video1"], entry["video5"])
        assert [row["low"], row["high"]] == entry["interval"]
    assert (table[4]["taken_for"], table[4]["taken"]) == (CLASSES[1], 1) and table[1]["taken_for"] is None


def test_pictures_are_kept_of_the_errors_first() -> None:
    sound = [number != 3 for number in range(200)]
    errors = [150, 20, 199, *range(60, 100)]
    places = written._thumb_places(sound, errors)
    assert len(places) == 48 and places == sorted(set(places)) and 3 not in places
    assert set(errors[:24]) <= set(places) and len(set(places) & set(range(100, 150))) > 3
    assert written._thumb_places([True, True, False], []) == [0, 1]
