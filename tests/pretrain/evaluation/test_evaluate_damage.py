"""Damaged videos in an evaluation and in a validation: named, counted, and never the end of it unless they are many."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.data.reading.store_split import open_split
from pretrain.evaluation.evaluate import EvaluateSettings, Scorer, Subject, open_subject
from pretrain.evaluation.files import PartialScores
from pretrain.evaluation.fusion import FuseSettings
from pretrain.evaluation.summary import partial_scores_of, require_sound, write_evaluation
from pretrain.evaluation.video_score import VideoScore
from pretrain.report.report import write_report
from sharding.base.errors import CommandFailed, UserError
from sharding.format.record import record_path
from sharding.storage.store import open_store
from tests.pretrain.conftest import CLASSES, Finished, end, start, write_recipe
from tests.pretrain.data.test_loader_processes import children
from tests.support.training.evaluations import evaluated, named_in, right_by_folder, score_videos, spoil, table_of

pytestmark = pytest.mark.slow


@pytest.fixture()
def run(finished: Finished, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.folder, tmp_path / "run"))


@pytest.fixture()
def copied(store: str, tmp_path: Path) -> str:
    return str(shutil.copytree(store, tmp_path / "copy" / "store"))


def assert_figures(summary: dict[str, Any]) -> None:
    """Counted again over all rows, those of damaged videos among them."""
    rows = table_of(summary)
    right = right_by_folder([row for row in rows if row["uri"]], CLASSES)
    assert summary["video1"] == pytest.approx(sum(map(sum, right.values())) / len(rows))
    assert summary["clip1"] == pytest.approx(
        sum(row["clips_right"] for row in rows) / sum(row["clips"] for row in rows)
    )


def test_a_damaged_video_counts_as_wrong_and_is_named(run: Path, copied: str, tmp_path: Path) -> None:
    (key,) = spoil(copied, [4])
    sound = evaluated(run, clips=1)
    for clips in (1, 3):
        summary = evaluated(run, store=copied, clips=clips)
        (row,) = [row for row in table_of(summary) if row["damaged"]]
        assert row["key"] == key and key in row["damaged"] and "is damaged" in row["damaged"]
        assert (row["predicted"], row["scores"], row["logits"]) == (None, None, None)
        assert (row["clips"], row["clips_right"]) == (clips, 0)
        assert (summary["videos"], summary["damaged"]) == (7, 1)
        assert_figures(summary)
        (entry,) = [entry for entry in summary["per_class"] if entry["name"] == named_in(row)]
        assert entry["videos"] == sum(named_in(each) == named_in(row) for each in table_of(sound))
        if clips == 1:
            assert summary["clip1"] == summary["video1"] and summary["clips"] == 7
    assert len(np.load(Path(summary["folder"]) / "clips.npz")["rows"]) == 6
    assert "damaged videos, counted as wrong" in write_report([run], tmp_path / "report").read_text()
    # The other stream has a score for it: it is wrong all the same.
    fused = evaluated(run, store=copied, clips=1, fuse=FuseSettings(run=str(run)))["fused"]
    assert fused["video1"] == evaluated(run, store=copied, clips=1)["video1"]


def test_a_damaged_record_counts_for_all_its_videos(run: Path, copied: str) -> None:
    opened = open_split(open_store(copied), "val")
    open_store(copied).delete(record_path("val", opened.jobs[1]))
    summary = evaluated(run, store=copied, clips=2)
    rows = table_of(summary)
    lost = [row for row in rows if row["damaged"]]
    assert len(rows) == 7 and len(lost) == summary["damaged"] == opened.shard_sizes[1]
    assert all(row["key"] is None and row["labels"] == [] and row["clips"] == 2 for row in lost)
    assert_figures(summary)


def test_more_than_a_share_of_damage_is_refused_with_its_list(run: Path, copied: str) -> None:
    keys = spoil(copied, [0, 4])
    subject = open_subject(EvaluateSettings(run=str(run), store=copied, clips=1))
    scores = list(score_videos(subject, subject.rows, 1, 1))
    require_sound(scores, subject, 2 / 7)
    require_sound(scores[1:], subject, 0.01)  # a single one may be, in however few videos
    for share, allowed, given in ((0.01, 1, scores), (0.0, 0, scores[1:]), (0.2, 1, scores)):
        with pytest.raises(UserError, match=f"of 7; damaged={share:g} allows {allowed}") as refused:
            require_sound(given, subject, share)
        assert keys[1] in str(refused.value) and "shards verify" in refused.value.remedy


def test_a_record_that_is_damaged_after_its_videos_were_scored(
    run: Path, copied: str, run_log: pytest.LogCaptureFixture
) -> None:
    """Its videos are damaged, whether an earlier call or a worker process scored them: named, and held to the share."""
    settings = EvaluateSettings(run=str(run), store=copied, clips=2)
    scored = list(score_videos(open_subject(settings), list(range(7)), 1, 1))
    opened = open_split(open_store(copied), "val")
    open_store(copied).delete(record_path("val", opened.jobs[1]))
    count = opened.shard_sizes[1]
    summary = write_evaluation(open_subject(settings), settings.model_copy(update={"damaged": count / 7}), scored)
    assert (summary["videos"], summary["damaged"]) == (7, count)
    lost = [row for row in table_of(summary) if row["damaged"]]
    assert len(lost) == count and all((row["predicted"], row["clips_right"]) == (None, 0) for row in lost)
    assert f"shard {opened.jobs[1]}" in run_log.text and "counted as wrong" in run_log.text
    assert_figures(summary)
    with pytest.raises(UserError, match=f"damaged videos: {count} of 7; damaged=0 allows 0"):
        write_evaluation(open_subject(settings), settings.model_copy(update={"damaged": 0.0}), scored)


@pytest.fixture()
def scored(subject: Subject) -> list[VideoScore]:
    draw = np.random.default_rng(1)
    rows = draw.dirichlet(np.ones(6), 7).astype(np.float32)
    return [VideoScore(row, scores, np.log(scores), 4, row % 4) for row, scores in enumerate(rows)]


@pytest.fixture()
def settings(run: Path) -> EvaluateSettings:
    return EvaluateSettings(run=str(run), clips=4)


@pytest.fixture()
def subject(settings: EvaluateSettings) -> Subject:
    return open_subject(settings)


def assert_same(one: dict[int, VideoScore], other: list[VideoScore]) -> None:
    assert sorted(one) == [score.row for score in other]
    for score in other:
        mine = one[score.row]
        assert np.array_equal(mine.scores, score.scores) and np.array_equal(mine.logits, score.logits)
        assert (mine.clips, mine.clips_right) == (score.clips, score.clips_right)


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGKILL, "SIGKILL.*lower decoders$"), (signal.SIGSTOP, "nothing for 1 s; see stall_s")]
)
def test_a_decoder_that_dies_or_hangs_is_told_by_the_settings_of_an_evaluation(
    subject: Subject, number: int, said: str
) -> None:
    before = children()
    with Scorer(subject, 1, 1.0) as scorer:
        scores = scorer.scores(subject.rows * 99, 1)
        next(scores)
        (decoder,) = children() - before
        os.kill(decoder, number)
        with pytest.raises(CommandFailed, match=said):
            list(scores)


def test_scores_are_taken_up_where_they_belong(
    subject: Subject, settings: EvaluateSettings, scored: list[VideoScore]
) -> None:
    with partial_scores_of(subject) as pieces:
        pieces.add(scored[:2])
    with pytest.raises(ZeroDivisionError), partial_scores_of(subject) as pieces:
        pieces.add([*scored[2:5], VideoScore(5, None, None, 4, 0, "sample x: torn")])
        1 / 0  # noqa: B018 # as anything that ends it
    pieces = partial_scores_of(subject)
    assert_same(pieces.read(), scored[:5])  # a damaged one is tried again
    train = open_subject(settings.model_copy(update={"split": "train"}))
    fewer = open_subject(settings.model_copy(update={"clips": 3}))
    more = open_subject(settings.model_copy(update={"crops": 3}))
    for other in (fewer, more, train):
        moved = partial_scores_of(other)
        shutil.copytree(pieces.folder, moved.folder)
        assert moved.read() == {}
        moved.clear()
    subject.weights["fc.bias"][0] += 1e-6
    assert partial_scores_of(subject).read() == {}
    subject.weights["fc.bias"][0] -= 1e-6
    folder = pieces.folder
    first, second = sorted(folder.iterdir())
    whole = first.read_bytes()
    for torn in (b"", whole[:-100], whole[:200] + b"\0" * 50 + whole[250:]):
        first.write_bytes(torn)
        assert set(pieces.read()) < {0, 1, 2, 3, 4}
    first.write_bytes(whole)
    assert_same(pieces.read(), scored[:5])
    summary = write_evaluation(subject, settings, scored)
    pieces.clear()
    assert second.parent.parent == Path(summary["folder"]) and not folder.exists()


def test_a_disk_that_takes_no_scores_is_told_once(
    tmp_path: Path, scored: list[VideoScore], run_log: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    with PartialScores(tmp_path / "file", {}) as pieces:
        for score in scored:
            pieces.add([score])
            pieces.flush()
    (record,) = {id(record): record for record in run_log.records}.values()
    assert "scores cannot be written as they come" in record.getMessage()


def test_a_damaged_video_is_left_out_of_a_validation(copied: str, tmp_path: Path) -> None:
    """On two ranks, of which one meets it, at every validation; the run goes to its end."""
    (key,) = spoil(copied, [4])
    log, run = tmp_path / "log", tmp_path / "run"
    recipe = write_recipe(tmp_path, copied, validation={"every_steps": 10, "videos": 7}, ranks=2)
    assert end(start(recipe, run, log, "schedule.epochs=2")) == 0, log.read_text()
    said = log.read_text()
    assert len(re.findall(f"damaged: sample {key} .*; left out of the validation", said)) == 1
    assert re.findall(r"clip@1 .* on (.*)", said) == 2 * ["6 of 7 videos, the other 1 damaged"]
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validations = [event for event in events if event["event"] == "validation"]
    assert [(event["videos"], event["damaged"]) for event in validations] == 2 * [(6, 1)]


def test_where_all_is_damaged_a_run_has_no_validation(copied: str, tmp_path: Path) -> None:
    opened = open_split(open_store(copied), "val")
    open_store(copied).delete(record_path("val", opened.jobs[0]))
    log, run = tmp_path / "log", tmp_path / "run"
    recipe = write_recipe(tmp_path, copied, validation={"every_steps": 10, "videos": 1})
    assert end(start(recipe, run, log, "schedule.epochs=1", alone=True)) == 0, log.read_text()
    assert "no validation at step 10: all 1 videos are damaged" in log.read_text()
    assert "Traceback" not in log.read_text()
