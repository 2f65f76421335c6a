"""Two-stream fusion: scores added by video and by name of class, whatever their order in the two files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from pretrain.data.reading.store_split import Sample
from pretrain.evaluation.fusion import (
    FuseSettings,
    OtherEvaluation,
    Reported,
    SearchedWeight,
    fuse_scores,
    open_other_evaluation,
    search_weight,
)
from pretrain.evaluation.video_score import best_rank
from pretrain.scoring.fusion_weight import WEIGHTS, best_weight
from pretrain.scoring.protocol import Protocol
from sharding.base.errors import UserError
from sharding.format.record import to_parquet, with_meta

NAMES = ["a", "b", "c"]
LABELS = [(0,), (1,), (2, 0), (1,)]
OWN = [[3.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.1, 0.2]]  # right: the first
OTHER = [[0.0, 1.5, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.9], [0.0, 0.0, 0.3]]  # right: the second and the third


@dataclass(frozen=True)
class Stored:
    """Of a sample what fusion looks at."""

    key: str
    labels: tuple[int, ...]
    uri: str = "val/x.mp4"


OF_112 = Protocol(10, 1, 112, 112)
SAMPLES = [cast(Sample, Stored(key, labels)) for key, labels in zip("pqrs", LABELS, strict=True)]


def evaluation(
    run: Path, scores: list[Any], keys: str, names: str = "abc", labels: Any = LABELS, **summary: Any
) -> Path:
    """An evaluation's files; `names`: of the classes, in the order of the columns that the labels are numbers of."""
    output = {"index": "000001-1", "clips_a_video": 10, "split": "val", **summary}
    folder = run / "evaluation" / f"{output['index']}-{output['clips_a_video']}"
    folder.mkdir(parents=True)
    table = {"key": list(keys), "labels": [list(of) for of in labels], "logits": scores, "scores": scores}
    columns = pa.table(table).cast(
        pa.schema(
            [
                ("key", pa.string()),
                ("labels", pa.list_(pa.int32())),
                ("logits", pa.list_(pa.float32())),
                ("scores", pa.list_(pa.float32())),
            ]
        )
    )
    (folder / "videos.parquet").write_bytes(to_parquet(with_meta(columns, {"classes": list(names)})))
    (folder / "summary.json").write_text(json.dumps(output))
    return run


def opened(run: Path, clips: int = 10, index: str = "000001-1") -> OtherEvaluation:
    return open_other_evaluation(FuseSettings(run=str(run)), SAMPLES, NAMES, index, Protocol(clips, 1, 112, 112))


def right(other: OtherEvaluation, weight: float) -> float:
    sums = [
        fuse_scores(np.asarray(own, np.float32), other.scores[sample.key], weight)
        for own, sample in zip(OWN, SAMPLES, strict=True)
    ]
    ranks = [best_rank(row, sample.labels) for row, sample in zip(sums, SAMPLES, strict=True)]
    return sum(rank < 1 for rank in ranks) / len(ranks)


def test_videos_are_fused_by_their_key_and_classes_by_name(tmp_path: Path) -> None:
    plain = evaluation(tmp_path / "plain", OTHER, "pqrs")
    rows, order = (3, 2, 1, 0), (2, 0, 1)
    turned = evaluation(
        tmp_path / "turned",
        [[OTHER[row][column] for column in order] for row in rows],
        "srqp",
        "cab",
        [[order.index(label) for label in LABELS[row]] for row in rows],
    )
    for run in (plain, turned):
        other = opened(run)
        assert [other.scores[key].tolist() for key in "pqrs"] == [pytest.approx(row) for row in OTHER]
        assert [right(other, weight) for weight in (0.5, 1.0, 0.0)] == [0.75, 0.25, 0.5]


def test_the_evaluation_that_is_most_alike_is_taken(tmp_path: Path) -> None:
    run = evaluation(tmp_path / "run", OTHER, "pqrs", clips_a_video=2)
    assert opened(run).folder.name == "000001-1-2"  # the only one
    evaluation(run, OTHER, "pqrt", clips_a_video=7)  # of other videos
    assert opened(run, clips=7).folder.name == "000001-1-2"
    evaluation(run, OTHER, "pqrs", clips_a_video=10)
    evaluation(run, OTHER, "pqrs", clips_a_video=10, index="000002-2")
    assert opened(run).folder.name == "000001-1-10"
    assert opened(run, index="000002-2").folder.name == "000002-2-10"
    with pytest.raises(UserError, match="not clear: 000001-1-2, 000001-1-10"):
        opened(run, clips=3)


def test_what_cannot_be_fused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"not a run's folder[\s\S]*mistyped"):
        opened(tmp_path / "mistyped")
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "settings.json").write_text('{"settings": {}, "identity": {}}')
    with pytest.raises(UserError, match=r"no evaluation to fuse[\s\S]*evaluate it first"):
        opened(tmp_path / "none")
    with pytest.raises(UserError, match="other videos than the 4 here"):
        opened(evaluation(tmp_path / "others", OTHER, "pqrt"))
    wider = [[*row, 0.0] for row in OTHER]
    with pytest.raises(UserError, match=r"its 4 classes are not this run's 3 by name \(this run lacks: d\)"):
        opened(evaluation(tmp_path / "wider", wider, "pqrs", "abcd"))
    with pytest.raises(UserError, match=r"\(it lacks: c; this run lacks: d\)"):
        opened(evaluation(tmp_path / "renamed", OTHER, "pqrs", "abd"))
    with pytest.raises(UserError, match=r"is b, c in .* and a, c here: these are not the same videos"):
        opened(evaluation(tmp_path / "relabelled", OTHER, "pqrs", labels=[(0,), (1,), (2, 1), (1,)]))
    torn = evaluation(tmp_path / "torn", OTHER, "pqrs")
    (torn / "evaluation" / "000001-1-10" / "videos.parquet").write_bytes(b"PAR1 torn")
    with pytest.raises(UserError, match="cannot be read"):
        opened(torn)


def test_a_damaged_video_is_wrong_in_both(tmp_path: Path) -> None:
    run = evaluation(tmp_path / "run", [OTHER[0], None, *OTHER[2:]], "pqrs")
    assert right(opened(run), 0.5) == 0.5
    assert fuse_scores(None, np.ones(3, np.float32), 0.5) is None


def test_the_sum_is_weighted_and_ranks_count_the_best_label() -> None:
    own, other = np.asarray(OWN, np.float32), np.asarray(OTHER, np.float32)
    assert fuse_scores(own, other, 0.6) == pytest.approx(0.6 * own + 0.4 * other)
    assert [best_rank(np.asarray([0.1, 0.7, 0.2]), labels) for labels in ([1], [2], [0], [0, 2])] == [0, 1, 2, 1]
    assert best_rank(None, [1]) == best_rank(np.ones(3, np.float32), []) == np.inf


def test_the_best_weight_is_the_middle_one_of_the_best() -> None:
    labels = {key: [0] for key in "pqrs"}
    own = {"p": [1.0, 0.0], "q": [0.0, 0.7], "r": [0.0, 1.0], "s": None}
    other = {"p": [0.0, 0.5], "q": [0.3, 0.0], "r": [0.0, 1.0], "s": [1.0, 0.0]}
    made = [
        {key: None if row is None else np.asarray(row, np.float32) for key, row in of.items()} for of in (own, other)
    ]
    # p is right above 1/3, or just there, and q below 0.3, or just there: never both.
    weight, right = best_weight(labels, *made)
    fitting = [weight for weight in WEIGHTS if weight <= 0.3 or weight > 1 / 3]
    assert right == 1 and weight == fitting[(len(fitting) - 1) // 2]
    del labels["q"]
    assert best_weight(labels, *made) == (0.67, 1)  # of 0.34 to 1
    assert best_weight({}, {}, {}) == (0.5, 0)


def searched(run: Path, other: Path, on: str = "val", **reported: Any) -> SearchedWeight:
    """Of evaluations of the split `val`, where the split `test` of other videos is reported."""
    of = {"run": run, "step": 3, "split": "test", "keys": frozenset("xyz"), "protocol": OF_112}
    theirs = OtherEvaluation(Path("other"), 5, OF_112.identity, {})
    return search_weight(FuseSettings(run=str(other), search_split=on), Reported(**{**of, **reported}), theirs)


def test_a_weight_is_searched_on_another_split(tmp_path: Path) -> None:
    by = {"protocol": {**OF_112.identity, "words": "10 clips"}}
    own = evaluation(tmp_path / "own", OWN, "pqrs", step=3, **by)
    turned = [row[::-1] for row in OTHER]
    other = evaluation(tmp_path / "other", turned, "pqrs", "cba", [(2,), (1,), (0, 2), (1,)], step=5, **by)
    result = searched(own, other)
    fused = [
        result.weight * np.asarray(one) + (1 - result.weight) * np.asarray(two)
        for one, two in zip(OWN, OTHER, strict=True)
    ]
    right = sum(int(row.argmax()) in of for row, of in zip(fused, LABELS, strict=True))
    assert result.video1 == right / 4 == 0.75 and "searched on 'val', where video@1 is 75.0 % of 4" in result.words
    with pytest.raises(UserError, match="searched on the split that is reported"):
        searched(own, other, "test")
    with pytest.raises(UserError, match="2 of the split's 4 videos are among those that are reported"):
        searched(own, other, keys=frozenset("pqx"))
    with pytest.raises(
        UserError, match=r"no evaluation of the split 'val'[\s\S]*reelscale evaluate CONFIG .* split=val"
    ):
        searched(own, other, step=4)  # of other weights
    with pytest.raises(UserError, match=r"by this protocol") as refused:
        searched(own, other, protocol=Protocol(10, 1, 128, 112))
    assert refused.value.remedy.endswith("split=val clips=10 crop=128")
    strangers = evaluation(tmp_path / "strangers", OTHER, "pqrt", step=5, **by)
    with pytest.raises(UserError, match="different videos of the split 'val'"):
        searched(own, strangers)


def test_a_weight_is_given_or_searched() -> None:
    with pytest.raises(ValueError, match="leave one of them out"):
        FuseSettings(run="run", weight=0.6, search_split="val")
