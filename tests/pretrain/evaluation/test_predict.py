"""Prediction on files gives what evaluation gives on the store that was made of them, to the same bits."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pretrain.conversion.import_export import export_run, import_run
from pretrain.data.views.views import ClipSettings
from pretrain.evaluation.evaluate import EvaluateSettings, open_subject
from pretrain.evaluation.predict import Prediction, Predictions, predict
from pretrain.evaluation.predict_settings import PredictSettings
from pretrain.evaluation.stored_form import default_form, stored_forms
from pretrain.evaluation.trained_network import TrainedNetwork, open_network
from pretrain.evaluation.video_files import videos_at
from pretrain.run_settings import SETTINGS
from sharding.base.errors import CommandFailed, UserError
from sharding.corpora.manifest import CorpusSettings
from sharding.make.shard import ShardSettings
from sharding.storage.store import open_store
from tests.demo.corpora import write_video
from tests.pretrain.conftest import CLASSES, Finished
from tests.pretrain.conftest import SETTINGS as SHARDED
from tests.support.stores import shard
from tests.support.training.checkpoints import commit, load_run
from tests.support.training.evaluations import score_videos

pytestmark = pytest.mark.slow

CLIPS = 4


def evaluated(run: Path, store: str | None = None) -> dict[str, tuple[Any, Any, int]]:
    """Of each video of val: its softmax, its logits and its clips, by the end of its path."""
    subject = open_subject(EvaluateSettings(run=str(run), store=store, clips=CLIPS))
    scores = score_videos(subject, subject.rows, 32, workers=1)
    return {subject.split.sample(each.row).uri: (each.scores, each.logits, each.clips) for each in scores}


def assert_same(predictions: list[Prediction], expected: dict[str, tuple[Any, Any, int]]) -> None:
    """All of them, but for those that `shard` could not store either."""
    good = [each for each in predictions if each.failure is None]
    assert len(good) == len(expected) > 0
    for each in good:
        ((scores, logits, clips),) = (of for uri, of in expected.items() if each.video.endswith(uri))
        assert each.clips == clips
        np.testing.assert_array_equal(each.scores, scores)
        np.testing.assert_array_equal(each.logits, logits)


@pytest.fixture(scope="module")
def corpus(store: str) -> Path:
    """The files that the run's store was made of."""
    return Path(store).parent / "corpus"


def test_files_have_the_scores_of_the_store_made_of_them(finished: Finished, corpus: Path) -> None:
    expected = evaluated(finished.folder)
    predictions = list(predict(str(finished.folder), str(corpus / "val"), PredictSettings(clips=CLIPS)))
    assert_same(predictions, expected)
    assert [each.video for each in predictions] == sorted(str(path) for path in (corpus / "val").rglob("*.mp4"))
    (short,) = (each for each in predictions if each.video.endswith("short.mp4"))
    assert short.looped and short.clips == 1
    assert not any(each.looped for each in predictions if each is not short)


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"encode": {"copy": True}}, id="copied packets"),
        pytest.param({"encode": {"size": [40, 24], "fps": 12.0, "crf": 1}}, id="another size and rate"),
    ],
)
def test_another_store_says_how_videos_are_prepared(
    finished: Finished, corpus: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    store = str(tmp_path / "store")
    shard(corpus, open_store(store), ShardSettings.model_validate(settings), CorpusSettings())
    predicted = predict(str(finished.folder), str(corpus / "val"), PredictSettings(clips=CLIPS, store=store))
    assert_same(list(predicted), evaluated(finished.folder, store))


def test_a_stretch_is_scored_as_one_that_a_list_names(
    finished: Finished, pictures: NDArray[Any], tmp_path: Path
) -> None:
    write_video(tmp_path / "long.mp4", pictures[:60])
    (tmp_path / "list.csv").write_text(
        "uri,labels,split,start,end\nlong.mp4,class0,train,0,1\nlong.mp4,class1,val,1,2\n"
    )
    (tmp_path / "val.csv").write_text("uri,labels,split,start,end\nlong.mp4,class1,val,0.8,1.7\n")
    store = str(tmp_path / "store")
    shard(tmp_path / "val.csv", open_store(store), SHARDED, CorpusSettings())
    chosen = PredictSettings(clips=CLIPS, store=store, start=0.8, end=1.7)
    assert_same(
        list(predict(str(finished.folder), str(tmp_path / "long.mp4"), chosen)), evaluated(finished.folder, store)
    )
    (outside,) = predict(str(finished.folder), str(tmp_path / "long.mp4"), PredictSettings(start=100, end=101))
    assert "not in the video" in str(outside.failure)


def test_a_run_a_checkpoint_an_export_and_an_import_predict_alike(
    finished: Finished, corpus: Path, tmp_path: Path
) -> None:
    """Also where the store is gone: how its videos were stored is in the run's folder, and goes along."""
    video = str(corpus / "val" / CLASSES[2] / "0.mp4")
    (checkpoint,) = (finished.folder / "checkpoints").glob("step-00000030")
    export, imported = tmp_path / "mine.safetensors", tmp_path / "imported"
    export_run(finished.folder, export)
    import_run(export, imported)
    again = tmp_path / "again.safetensors"
    export_run(imported, again)
    (expected,) = predict(str(finished.folder), video)
    for weights in (checkpoint, export, imported, again):
        trained = open_network(str(weights))
        forms, notes = stored_forms(replace(trained, store=None), None)
        assert forms[0].encode == SHARDED.encode and not notes
        (other,) = Predictions(trained, PredictSettings()).of(videos_at([video]))
        assert other.classes == CLASSES
        np.testing.assert_allclose(np.asarray(other.logits), expected.logits, rtol=0, atol=1e-5)
    assert open_network(str(checkpoint)).step == 30 and open_network(str(export)).step is None


def test_runs_that_did_not_record_it_ask_their_store(finished: Finished, corpus: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished.folder, tmp_path / "run")
    settings = json.loads((run / SETTINGS).read_text())
    assert settings.pop("stored")["encode"]["short_edge"] == 36
    (run / SETTINGS).write_text(json.dumps(settings))
    forms, notes = stored_forms(open_network(str(run)), None)
    assert forms[0].encode == SHARDED.encode and notes == []
    gone = replace(open_network(str(run)), store=str(tmp_path / "gone"))
    forms, notes = stored_forms(gone, None)
    assert forms == [default_form(gone.clip)]
    assert "cannot be read" in notes[0] and "--store STORE" in notes[1]
    with pytest.raises(UserError, match="no shards here"):
        stored_forms(gone, str(tmp_path / "gone"))


@pytest.mark.parametrize(
    ("clip", "edge"),
    [
        ({}, 128),
        ({"resize": [256, 340], "crop": 224}, 256),
        ({"short_edge": [128, 161], "crop": 112}, 162),
        ({"resize": [18, 22], "crop": 16}, 128),
    ],
)
def test_default_form_is_as_large_as_clips_need(clip: dict[str, Any], edge: int) -> None:
    form = default_form(ClipSettings.model_validate(clip))
    assert form.encode.short_edge == edge and form.flow is None and form.segments is None


def test_flow_is_computed_for_networks_that_take_it(finished: Finished, corpus: Path, tmp_path: Path) -> None:
    """By the store's settings of flow, so that the scores are those of its stored flow."""
    store = str(tmp_path / "store")
    sharded = ShardSettings.model_validate({**SHARDED.model_dump(), "flow": {"bound": 8.0}})
    shard(corpus, open_store(store), sharded, CorpusSettings())
    run = flow_run(finished.folder, tmp_path / "run")
    predictions = list(predict(str(run), str(corpus / "val"), PredictSettings(clips=CLIPS, store=store), True))
    assert_same(predictions, evaluated(run, store))
    assert all(each.sheet is not None and each.sheet.shape[-1] == 3 for each in predictions)
    forms, _ = stored_forms(open_network(str(run)), None)
    assert forms[0].flow is not None, "its own store has none"


def flow_run(run: Path, to: Path) -> Path:
    """A copy of a run whose network takes flow: of its first layer two channels are left."""
    shutil.copytree(run, to, ignore=shutil.ignore_patterns("evaluation", "checkpoints", "attempts"))
    settings = json.loads((to / SETTINGS).read_text())
    settings["settings"]["model"]["in_channels"] = 2
    flow = {"mean": [0.0, 0.0], "std": [1.0, 1.0]}
    settings["settings"]["data"]["clip"] |= {"input": "flow", "normalisation": flow}
    (to / SETTINGS).write_text(json.dumps(settings))
    checkpoint = load_run(run)
    first = next(name for name, value in checkpoint.model.items() if value.ndim == 5 and value.shape[1] == 3)
    model = {name: value[:, :2].clone() if name == first else value for name, value in checkpoint.model.items()}
    commit(to, replace(checkpoint, model=model, optimizer={}))
    return to


def test_bad_videos_are_named_and_the_others_go_on(finished: Finished, corpus: Path, tmp_path: Path) -> None:
    good = shutil.copy(corpus / "val" / CLASSES[0] / "0.mp4", tmp_path / "b.mp4")
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "c.mkv").write_text("a note\n" * 100)
    (tmp_path / "d.mp4").write_bytes(Path(good).read_bytes()[:700])
    (tmp_path / "readme.txt").write_text("no video by its name")
    predictions = list(predict(str(finished.folder), str(tmp_path)))
    assert [Path(each.video).name for each in predictions] == ["a.mp4", "b.mp4", "c.mkv", "d.mp4"]
    failures = [each.failure for each in predictions]
    assert failures[1] is None and failures[0] == "the file is empty"
    assert "plain text" in str(failures[2]) and "cut off or damaged" in str(failures[3])
    assert predictions[0].top() == [] and len(predictions[1].top(3)) == 3


def test_videos_that_cannot_be_copied_are_stored_anew(finished: Finished, corpus: Path, tmp_path: Path) -> None:
    """Of a store of copied packets: a picture that is shown turned needs another form."""
    store = str(tmp_path / "store")
    shard(corpus, open_store(store), ShardSettings.model_validate({"encode": {"copy": True}}), CorpusSettings())
    turned = tmp_path / "turned.mp4"
    turn(corpus / "val" / CLASSES[0] / "0.mp4", turned)
    (prediction,) = predict(str(finished.folder), str(turned), PredictSettings(store=store))
    assert prediction.failure is None


def turn(source: Path, to: Path) -> None:
    """A copy that a player shows turned by 90°: another matrix in its track header."""
    data = bytearray(source.read_bytes())
    box = data.index(b"tkhd")
    matrix = box + 4 + 4 + 20 + 16  # version and flags; times, number, duration; reserved, layer, group, volume
    one = 1 << 16
    for place, value in enumerate((0, one, 0, -one, 0, 0, 0, 0, 1 << 30)):
        data[matrix + 4 * place : matrix + 4 * place + 4] = value.to_bytes(4, "big", signed=True)
    to.write_bytes(data)


def test_top_has_the_first_of_equal_classes_first() -> None:
    scores = np.array([0.1, 0.4, 0.4, 0.1], np.float32)
    prediction = Prediction("a", ["w", "x", "y", "z"], scores)
    assert [name for name, _ in prediction.top(3)] == ["x", "y", "w"]
    assert [name for name, _ in prediction.top()] == ["x", "y", "w", "z"]


def test_frames_of_the_clips_are_kept_where_asked_for(finished: Finished, corpus: Path) -> None:
    video = str(corpus / "val" / CLASSES[1] / "0.mp4")
    (plain,) = predict(str(finished.folder), video)
    assert plain.sheet is None
    (shown,) = predict(str(finished.folder), video, PredictSettings(clips=3), with_sheets=True)
    assert shown.sheet is not None and shown.sheet.shape == (3, 4, 16, 16, 3)
    assert shown.sheet_seconds[0] == 0 and list(shown.sheet_seconds) == sorted(shown.sheet_seconds)
    (many,) = predict(str(finished.folder), video, PredictSettings(clips=30), with_sheets=True)
    assert many.sheet is not None and len(many.sheet) == len(many.sheet_seconds) == 10 and many.clips == 30


def test_a_network_of_no_use_fails(finished: Finished, corpus: Path) -> None:
    trained = open_network(str(finished.folder))
    weights = {
        name: value * float("nan") if name.startswith("fc.") else value for name, value in trained.weights.items()
    }
    broken = replace(trained, weights=weights)
    with pytest.raises(CommandFailed, match="step 30 gives scores that are not finite"):
        list(Predictions(broken, PredictSettings()).of(videos_at([str(corpus / "val")])))


def test_classes_without_names_are_called_numbers(finished: Finished) -> None:
    trained = open_network(str(finished.folder))
    assert not trained.is_numbered
    nameless = replace(trained, classes=[f"class-{number:03d}" for number in range(6)])
    assert nameless.is_numbered
    assert any("no class names" in note for note in Predictions(nameless, PredictSettings()).notes)
    assert not replace(trained, classes=["class-001", "class-000"]).is_numbered


def refused(weights: Path | str) -> str:
    with pytest.raises(UserError) as error:
        open_network(str(weights))
    return str(error.value)


def test_what_is_no_network(finished: Finished, store: str, corpus: Path, tmp_path: Path) -> None:
    assert "a store, and no network" in refused(store)
    assert "there is no such file" in refused(tmp_path / "nothing")
    assert "a folder without a network" in refused(tmp_path)
    assert "not read from a URL" in refused("s3://bucket/run")
    assert "reelscale import" in refused(corpus / "val" / CLASSES[0] / "0.mp4")
    (checkpoint,) = (finished.folder / "checkpoints").glob("step-00000030")
    assert "name the checkpoint's folder" in refused(checkpoint / "model.safetensors")
    damaged = shutil.copytree(finished.folder, tmp_path / "run") / "checkpoints" / checkpoint.name
    with (damaged / "model.safetensors").open("ab") as file:
        file.write(b"?")
    assert "model.safetensors does not have its sha256" in refused(damaged)
    (tmp_path / "run" / SETTINGS).unlink()
    assert "settings.json is missing" in refused(tmp_path / "run")


def test_weights_of_another_network(finished: Finished) -> None:
    trained = open_network(str(finished.folder))
    other: TrainedNetwork = replace(trained, classes=trained.classes[:-1])
    with pytest.raises(UserError, match="not this network's: 2 of another shape"):
        Predictions(other, PredictSettings())


def test_what_is_no_video(store: str, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").touch()
    for place, what in {
        str(tmp_path / "no.mp4"): "no such video",
        str(tmp_path / "notes"): "no video in it",
        store: "store of shards",
        "https://example.org/a.mp4": "not downloaded from the web",
    }.items():
        with pytest.raises(UserError, match=what):
            videos_at([place])


def test_videos_are_listed_once_by_the_names_they_were_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("look/b.mp4", "look/deep/a.MKV", "look/.hidden.mp4", "look/note.txt", "odd"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    videos = videos_at(["odd", "look/", "look/b.mp4", str(tmp_path / "look")])
    assert [each.name for each in videos] == ["odd", "look/b.mp4", "look/deep/a.MKV"]
