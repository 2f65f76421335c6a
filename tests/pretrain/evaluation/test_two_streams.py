"""Both streams of the demo, made small: trained on pictures and on optical flow of one store, and fused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.evaluation.evaluate import EvaluateSettings, open_subject
from pretrain.evaluation.fusion import FuseSettings
from pretrain.evaluation.summary import fusion_of, write_evaluation
from pretrain.run_folder import read_settings
from pretrain.scoring.fusion_weight import WEIGHTS
from pretrain.training.preflight import preflight
from sharding.base.errors import UserError
from sharding.corpora.manifest import CorpusSettings
from sharding.storage.store import open_store
from tests.demo.corpora import Corpus, make_corpora
from tests.demo.motion import CLASSES
from tests.pretrain.conftest import SETTINGS, end, start, write_recipe
from tests.support.stores import shard
from tests.support.training.evaluations import evaluated, score_videos, table_of

pytestmark = [pytest.mark.slow, pytest.mark.cluster]

CORPUS = Corpus("motion", tuple(CLASSES)[:4], train=2, val=2)
STREAMS = {"rgb": 3, "flow": 2}
VIDEOS = 8  # of validation


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run of each stream, evaluated on both splits of a store that holds no flow."""
    root = tmp_path_factory.mktemp("streams")
    corpus = make_corpora(root / "corpora", corpora=[CORPUS], processes=1)["motion"]
    shard(corpus, open_store(str(root / "store")), SETTINGS, CorpusSettings())
    schedule = {"lr": 0.01, "epoch_clips": 16, "epochs": 1}
    recipe = write_recipe(root, str(root / "store"), schedule=schedule)
    for stream in STREAMS:
        log = root / f"{stream}.log"
        code = end(start(recipe, root / stream, log, f"data.clip.input={stream}", alone=True))
        assert code == 0, log.read_text()
        for split in ("train", "val"):
            evaluated(root / stream, split=split, clips=2)
    return {stream: root / stream for stream in STREAMS}


def right_of(summary: dict[str, Any], other: dict[str, Any], of: str, weight: float) -> int:
    """How many videos are right by hand: of the weighted sum of what two evaluations wrote, the highest is a label."""
    theirs = {row["key"]: row for row in table_of(other)}
    sums = [
        (np.float32(weight) * np.float32(row[of]) + np.float32(1 - weight) * np.float32(theirs[row["key"]][of]), row)
        for row in table_of(summary)
    ]
    return sum(int(total.argmax()) in row["labels"] for total, row in sums)


def summary_of(run: Path, split: str) -> dict[str, Any]:
    [path] = (run / "evaluation").glob(f"*-{split}-2-clips-*/summary.json")
    summary: dict[str, Any] = json.loads(path.read_text())
    return summary


def test_the_streams_are_fused_as_by_hand(runs: dict[str, Path]) -> None:
    for stream, channels in STREAMS.items():
        train = read_settings(runs[stream])[0].model_copy(update={"run": None})
        assert train.model.in_channels == channels
        flow = str(preflight(train, 1).derived.get("optical_flow"))
        assert flow.startswith("computed as clips are decoded, of ") if stream == "flow" else flow == "None"
    alone = {(stream, split): summary_of(runs[stream], split) for stream in STREAMS for split in ("train", "val")}
    notes = [any("no optical flow" in note for note in alone[stream, "val"]["notes"]) for stream in STREAMS]
    assert notes == [False, True] and alone["rgb", "val"]["videos"] == VIDEOS
    assert table_of(alone["rgb", "val"]) != table_of(alone["flow", "val"])
    settings = EvaluateSettings(run=str(runs["rgb"]), split="val", clips=2)
    subject = open_subject(settings)
    scores = list(score_videos(subject, subject.rows, settings.batch, workers=1))

    def fused(**fuse: Any) -> dict[str, Any]:
        chosen = settings.model_copy(update={"fuse": FuseSettings(run=str(runs["flow"]), **fuse)})
        summary: dict[str, Any] = write_evaluation(subject, chosen, scores, fusion_of(subject, chosen))["fused"]
        return summary

    for of in ("logits", "scores"):
        given, searched = fused(of=of, weight=0.3), fused(of=of, search_split="train")
        assert given["video1"] * VIDEOS == right_of(alone["rgb", "val"], alone["flow", "val"], of, 0.3)
        right = {weight: right_of(alone["rgb", "train"], alone["flow", "train"], of, weight) for weight in WEIGHTS}
        weight = searched["weight"]
        assert right[weight] == max(right.values())
        assert searched["searched"]["video1"] == max(right.values()) / alone["rgb", "train"]["videos"]
        assert searched["video1"] * VIDEOS == right_of(alone["rgb", "val"], alone["flow", "val"], of, weight)
    with pytest.raises(UserError, match="searched on the split that is reported"):
        fused(search_split="val")
