"""Evaluation by the names of classes: a store's own numbers are never a run's."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pretrain.checkpoints.checkpoint import Checkpoint
from pretrain.data.sources import DataSettings, MixedStore, open_sources
from pretrain.evaluation.evaluate import EvaluateSettings, open_subject
from pretrain.evaluation.fusion import FuseSettings
from pretrain.models.zoo import build_model
from pretrain.report.report import write_report
from pretrain.report.run_data import read_run
from pretrain.run_folder import Run, read_settings
from sharding.base.errors import UserError
from sharding.corpora.manifest import CorpusSettings
from sharding.format.index import current_index
from sharding.storage.store import open_store
from tests.demo.corpora import write_video
from tests.pretrain.conftest import CLASSES, SETTINGS, Finished
from tests.support.stores import shard
from tests.support.training.checkpoints import commit
from tests.support.training.evaluations import evaluated, named_in, named_store, reordered, right_by_folder, table_of

pytestmark = pytest.mark.slow

ORDERS = {
    "three": [["class4"], ["class1", "class5"]],
    "all in another order": [["class5"], ["class3", "class4"], ["class0", "class1", "class2"]],
    "the same order": [CLASSES],
    "one that the run does not know": [["class4", "zebra"], ["ant", "class1"]],
}


@pytest.fixture()
def run(finished: Finished, tmp_path: Path) -> Path:
    """A copy of the finished run, so that it stays as training left it."""
    return Path(shutil.copytree(finished.folder, tmp_path / "run"))


def assert_counted(summary: dict[str, Any], run: Path) -> list[dict[str, Any]]:
    """All figures again, by the names of the folders that the videos came from."""
    rows, classes = table_of(summary), read_settings(run)[1]
    assert summary["classes"] == classes and summary["videos"] == len(rows) > 0
    for row in rows:
        assert [classes[label] for label in row["labels"]] == [named_in(row)]
        assert row["predicted"] == (None if row["scores"] is None else int(np.argmax(row["scores"])))
    for k in (1, 5):
        right = right_by_folder(rows, classes, k)
        assert summary[f"video{k}"] == pytest.approx(np.mean([each for of in right.values() for each in of]))
    right = right_by_folder(rows, classes)
    for entry in summary["per_class"]:
        of = right.get(entry["name"], [])
        assert entry["videos"] == len(of) and entry["video1"] == (pytest.approx(np.mean(of)) if of else None)
    assert {entry["name"] for entry in summary["per_class"]} == set(classes)
    (shown,) = [each for each in read_run(run).evaluations if each.name == Path(summary["folder"]).name]
    assert shown.classes == classes and [classes[truth] for truth in shown.truths] == [named_in(row) for row in rows]
    assert shown.confusion().trace() == sum(each for of in right.values() for each in of)
    return rows


@pytest.mark.parametrize("steps", ORDERS.values(), ids=ORDERS)
def test_a_store_is_counted_by_the_runs_class_names(
    run: Path, pictures: NDArray[Any], tmp_path: Path, steps: list[list[str]]
) -> None:
    store = named_store(tmp_path / "named", pictures, steps, videos=2)
    assert current_index(open_store(store)).classes == [name for step in steps for name in step]
    recorded = [name for step in steps for name in step if name in CLASSES]
    summary = evaluated(run, store=store, clips=1)
    rows = assert_counted(summary, run)
    assert summary["clip1"] == summary["video1"]
    assert sorted(named_in(row) for row in rows) == sorted(2 * recorded)
    strange = sum(name not in CLASSES for step in steps for name in step)
    assert summary["left_out"] == 2 * strange and ("zebra" in str(summary["notes"])) == (strange > 0)


def test_the_same_network_gets_the_same_figures_in_any_order(run: Path, store: str, tmp_path: Path) -> None:
    """What the numbers are changes nothing: neither the run's nor the store's."""
    plain = evaluated(run, clips=2)
    turned = reordered(run, tmp_path / "turned", CLASSES[::-1])
    summary = evaluated(turned, store=store, clips=2)
    assert_counted(summary, turned)
    for name in ("clip1", "video1", "video5", "videos"):
        assert summary[name] == plain[name]
    assert summary["per_class"][::-1] == plain["per_class"]


def test_a_store_that_grew_is_evaluated_as_the_run_knew_it(
    run: Path, store: str, pictures: NDArray[Any], tmp_path: Path
) -> None:
    """Also where it lies elsewhere now; with the classes that it got since, those that both know."""
    plain = evaluated(run, clips=1)
    corpus = shutil.copytree(Path(store).parent / "corpus", tmp_path / "grown" / "corpus")
    grown = str(shutil.copytree(store, tmp_path / "grown" / "store"))
    for split in ("train", "val"):
        (corpus / split / "another").mkdir()
        write_video(corpus / split / "another" / "0.mp4", pictures[50:66])
    write_video(corpus / "val" / "class2" / "new.mp4", pictures[70:86])
    shard(corpus, open_store(grown), SETTINGS, CorpusSettings())
    newest = current_index(open_store(grown))
    assert newest.classes == [*CLASSES, "another"]

    summary = evaluated(run, store=grown, clips=1)
    assert_counted(summary, run)
    assert summary["index"] == plain["index"] != newest.version and summary["video1"] == plain["video1"]
    assert summary["videos"] == 7 and summary["left_out"] == 0
    assert plain["index"] in summary["notes"][0] and newest.version in summary["notes"][0] and not plain["notes"]

    summary = evaluated(run, store=grown, clips=1, index="newest")
    assert_counted(summary, run)
    assert (summary["index"], summary["videos"], summary["left_out"]) == (newest.version, 8, 1)
    assert "1 of 9 videos are left out: another" in summary["notes"][0]
    with pytest.raises(UserError, match="no such version"):
        open_subject(EvaluateSettings(run=str(run), store=grown, index="000007-0123456789abcdef"))


def test_any_store_of_a_mixed_run(run: Path, store: str, other_store: str, tmp_path: Path) -> None:
    train = read_settings(run)[0]
    data = DataSettings(store=other_store, mix=(MixedStore(store=store),), clip=train.data.clip)
    settings, sources = train.model_copy(update={"data": data}), open_sources(data)
    assert sources.classes == ["left", "right", *CLASSES]
    mixed = tmp_path / "mixed"
    Run(mixed, writes=True).begin(settings, sources.classes, sources.versions, {})
    state = build_model(settings.model, 8, data.clip.frames).state_dict()
    commit(mixed, Checkpoint(3, state, {}, {}, {"step": 3}))
    summaries = [evaluated(mixed, clips=1), evaluated(mixed, clips=1, store=store)]
    for summary, version in zip(summaries, sources.versions, strict=True):
        assert_counted(summary, mixed)
        assert summary["clip1"] == summary["video1"] and summary["index"] == version and not summary["notes"]
    assert len(read_run(mixed).evaluations) == 2


def test_each_store_split_and_protocol_has_a_folder(run: Path, pictures: NDArray[Any], tmp_path: Path) -> None:
    store = named_store(tmp_path / "named", pictures, [["class2", "class3"]])
    made = [evaluated(run, clips=1), evaluated(run, clips=2), evaluated(run, clips=1, store=store)]
    made.append(evaluated(run, clips=1, store=store, split="train"))
    folders = [Path(summary["folder"]) for summary in made]
    assert len(set(folders)) == 4
    assert ["-".join(folder.name.split("-")[:-1]) for folder in folders] == [
        "store-val-1-clips", "store-val-2-clips", "store-val-1-clips", "store-train-1-clips",
    ]  # fmt: skip
    for summary in made:
        assert_counted(summary, run)
    assert [each.name for each in read_run(run).evaluations] == [folder.name for folder in folders]
    page = write_report([run], tmp_path / "report").read_text()
    assert all(folder.name in page for folder in folders)
    assert evaluated(run, clips=1)["folder"] == made[0]["folder"]


def test_runs_are_fused_by_their_class_names(run: Path, tmp_path: Path) -> None:
    turned = reordered(run, tmp_path / "turned", [CLASSES[number] for number in (3, 0, 5, 1, 4, 2)])
    evaluated(turned, clips=2)
    plain = evaluated(run, clips=2)
    for of in ("logits", "scores"):
        summary = evaluated(run, clips=2, fuse=FuseSettings(run=str(turned), of=of, weight=0.4))
        fused = summary["fused"]
        assert [fused[name] for name in ("video1", "video5", "per_class")] == [
            plain[name] for name in ("video1", "video5", "per_class")
        ]
    rows, theirs = table_of(summary), {row["key"]: row for row in table_of(read_summary(turned))}
    names = read_settings(turned)[1]
    for row in rows:  # and counted again
        other = dict(zip(names, theirs[row["key"]]["scores"], strict=True))
        row["scores"] = [0.4 * own + 0.6 * other[name] for own, name in zip(row["scores"], CLASSES, strict=True)]
    right = right_by_folder(rows, CLASSES)
    assert fused["video1"] == pytest.approx(np.mean([each for of in right.values() for each in of]))


def read_summary(run: Path) -> dict[str, Any]:
    (evaluation,) = read_run(run).evaluations
    return evaluation.summary


def test_what_cannot_be_fused_is_refused_before_anything_is_scored(
    run: Path, pictures: NDArray[Any], tmp_path: Path
) -> None:
    def refused(match: str, other: Path, **settings: Any) -> None:
        with pytest.raises(UserError, match=match):
            evaluated(run, clips=1, fuse=FuseSettings(run=str(other)), **settings)
        assert not (run / "evaluation").exists()

    renamed = reordered(run, tmp_path / "renamed", CLASSES, {"class2": "klasse2"})
    refused("not a run's folder", tmp_path / "none")
    refused("no evaluation to fuse", renamed)
    evaluated(renamed, clips=1)  # of one that it does not know by this name: other videos
    refused("on other videos than the 7 here", renamed)
    store = named_store(tmp_path / "named", pictures, [["class0", "class1"]])
    evaluated(renamed, clips=1, store=store)
    refused(r"by name \(it lacks: class2; this run lacks: klasse2\)", renamed, store=store)
    same = reordered(run, tmp_path / "same", CLASSES)
    for clips in (2, 3):
        evaluated(same, clips=clips)
    refused("not clear: store-val-2-clips.*, store-val-3-clips", same)
