"""Evaluation: every video once, and every number again from the file of scores."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.data.device.tensors import plane_batch
from pretrain.data.device.transforms import network_input
from pretrain.data.reading.decode import decode_frames
from pretrain.data.reading.store_split import open_split
from pretrain.data.views.frames import evaluation_starts
from pretrain.data.views.views import centre_view
from pretrain.evaluation.evaluate import EvaluateSettings, Subject, open_subject
from pretrain.evaluation.summary import write_evaluation
from pretrain.evaluation.video_score import VideoScore
from sharding.base.errors import CommandFailed, UserError
from sharding.format.record import from_parquet, read_record
from sharding.storage.store import open_store
from tests.pretrain.conftest import CLASSES, SHORT, Finished
from tests.support.training.checkpoints import load_run
from tests.support.training.evaluations import score_videos

pytestmark = pytest.mark.slow

CLIPS = 4


@pytest.fixture(scope="module")
def settings(finished: Finished, tmp_path_factory: pytest.TempPathFactory) -> EvaluateSettings:
    """Of a copy, so that the run stays as training left it."""
    run = shutil.copytree(finished.folder, tmp_path_factory.mktemp("evaluated") / "run")
    return EvaluateSettings(run=str(run), clips=CLIPS, batch=3)


@pytest.fixture(scope="module")
def subject(settings: EvaluateSettings) -> Subject:
    return open_subject(settings)


@pytest.fixture(scope="module")
def scored(subject: Subject) -> list[VideoScore]:
    return list(score_videos(subject, list(range(len(subject.split))), 3, workers=1))


def table_of(summary: dict[str, Any]) -> list[dict[str, Any]]:
    return from_parquet((Path(summary["folder"]) / "videos.parquet").read_bytes()).to_pylist()


def assert_summary(summary: dict[str, Any], rows: list[dict[str, Any]]) -> None:
    """The three numbers again, counted in another way: Hit@k from how many classes beat the best label."""
    beaten = [
        sum(score > max(row["scores"][label] for label in row["labels"]) for score in row["scores"]) for row in rows
    ]
    assert summary["videos"] == len(rows)
    assert summary["clips"] == sum(row["clips"] for row in rows)
    assert summary["clip1"] == pytest.approx(sum(row["clips_right"] for row in rows) / summary["clips"])
    assert summary["video1"] == pytest.approx(np.mean([count == 0 for count in beaten]))
    assert summary["video5"] == pytest.approx(np.mean([count < 5 for count in beaten]))
    for number, entry in enumerate(summary["per_class"]):
        mine = [count == 0 for row, count in zip(rows, beaten, strict=True) if number in row["labels"]]
        assert entry["name"] == CLASSES[number] and entry["videos"] == len(mine)
        assert entry["video1"] == (pytest.approx(np.mean(mine)) if mine else None)


def test_every_video_is_counted_once(
    subject: Subject, settings: EvaluateSettings, scored: list[VideoScore], store: str
) -> None:
    summary = write_evaluation(subject, settings, scored)
    folder = Path(summary["folder"])
    assert folder.parent == Path(settings.run) / "evaluation"
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert (summary["step"], summary["split"], summary["classes"]) == (30, "val", CLASSES)
    rows = table_of(summary)
    opened = open_store(store)
    stored = [
        row
        for part in subject.split.index.parts
        if part.split == "val" and part.part == 0
        for row in read_record(opened, "val", part.job).to_pylist()
    ]
    assert sorted(row["key"] for row in rows) == sorted(row["key"] for row in stored)
    assert len({row["key"] for row in rows}) == 7
    by_key = {row["key"]: row for row in stored}
    for row in rows:
        assert row["labels"] == by_key[row["key"]]["labels"] and row["uri"] == by_key[row["key"]]["uri"]
        assert row["clips"] == (1 if by_key[row["key"]]["frames"] == SHORT else CLIPS)
        assert row["predicted"] == int(np.argmax(row["scores"])) and 0 <= row["clips_right"] <= row["clips"]
        assert sum(row["scores"]) == pytest.approx(1, abs=1e-5)
    assert_summary(summary, rows)
    thumbs = np.load(folder / "clips.npz")
    assert thumbs["frames"].shape == (7, 6, 16, 16, 3) and thumbs["frames"].dtype == np.uint8
    assert thumbs["rows"].tolist() == list(range(7)) and thumbs["frames"].std() > 5


def test_scores_are_the_networks_softmax_over_the_clips(
    finished: Finished, subject: Subject, scored: list[VideoScore]
) -> None:
    """All clips of a video at once, through a network filled from the checkpoint's file."""
    model = subject.network()
    assert not model.training
    weights = load_run(finished.folder).model
    assert all(torch.equal(value.cpu(), weights[name]) for name, value in model.state_dict().items())
    for score in scored:
        sample = subject.split.sample(score.row)
        view = centre_view(subject.clip, (sample.height, sample.width))
        starts = evaluation_starts(sample.frames, 4, CLIPS)
        planes = [
            decode_frames(subject.split.store, sample, [(first + i) % sample.frames for i in range(4)])
            for first in starts
        ]
        with torch.no_grad():
            logits = model(network_input(plane_batch(planes, [view] * len(starts)), subject.clip))
        expected = logits.softmax(1).mean(0).cpu().numpy()
        assert score.scores == pytest.approx(expected, abs=1e-5)
        assert score.logits == pytest.approx(logits.mean(0).cpu().numpy(), abs=1e-5)
        labels = subject.split.sample(score.row).labels
        assert score.clips_right == sum(int(top) in labels for top in logits.argmax(1))


def test_halves_are_the_whole(subject: Subject, settings: EvaluateSettings, scored: list[VideoScore]) -> None:
    summary = write_evaluation(subject, settings, scored)
    rows = table_of(summary)
    count = len(subject.split)
    rest, first = list(range(3, count)), [0, 1, 2]
    halves = [*score_videos(subject, rest, 3, workers=2), *score_videos(subject, first, 3, workers=1)]
    assert write_evaluation(subject, settings, halves) == summary
    assert table_of(summary) == rows


def test_numbers_of_made_up_scores(subject: Subject, settings: EvaluateSettings) -> None:
    """Scores of all kinds, so that the three numbers differ from one another."""
    draw = np.random.default_rng(4)
    result = [
        VideoScore(row, scores, np.log(scores), CLIPS, int(draw.integers(CLIPS + 1)))
        for row, scores in enumerate(draw.dirichlet(np.ones(len(CLASSES)), len(subject.split)).astype(np.float32))
    ]
    last = result[0].scores.copy()  # the label of one video comes last: wrong at 5 of 6
    last[list(subject.split.sample(0).labels)] = 0.0
    result[0] = VideoScore(0, last, last, CLIPS, 0)
    summary = write_evaluation(subject, settings, result)
    assert_summary(summary, table_of(summary))
    assert summary["video1"] < summary["video5"] < 1


def test_what_cannot_be_evaluated(finished: Finished, other_store: str, tmp_path: Path) -> None:
    run = str(finished.folder)
    nothing_in_common = r"among the 6 that the run learned: the store has left, right; the run class0, class1"
    with pytest.raises(UserError, match=nothing_in_common):
        open_subject(EvaluateSettings(run=run, store=other_store))
    with pytest.raises(UserError, match="not a run's folder"):
        open_subject(EvaluateSettings(run=str(tmp_path)))
    with pytest.raises(UserError, match="no 'test' sample"):
        open_subject(EvaluateSettings(run=run, split="test"))
    copy = shutil.copytree(finished.folder, tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint"):
        open_subject(EvaluateSettings(run=str(copy)))


def test_the_other_split_too(settings: EvaluateSettings, store: str) -> None:
    subject = open_subject(settings.model_copy(update={"split": "train"}))
    assert len(subject.split) == len(open_split(open_store(store), "train")) == 13
    assert next(score_videos(subject, [12], 1, 1)).row == 12


def test_a_network_of_no_use_gives_no_figures(subject: Subject) -> None:
    """Of scores that are not numbers the first class would be the top one."""
    spoilt = {**subject.weights, "fc.bias": torch.full_like(subject.weights["fc.bias"], torch.nan)}
    with pytest.raises(CommandFailed, match="not finite"):
        list(score_videos(replace(subject, weights=spoilt), [0], 1, 1))
