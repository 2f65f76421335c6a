"""Two-stream fusion: scores added by video, whatever their order in the two files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pretrain.fusion import FuseSettings, best_rank, fuse_evaluation, fused
from sharding.errors import UserError
from sharding.record import to_parquet

LABELS = [[0], [1], [2, 0], [1]]
OWN = [[3.0, 1.0, 0.0], [2.0, 1.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.1, 0.2]]  # right: the first
OTHER = [[0.0, 1.5, 0.0], [0.0, 2.0, 0.0], [0.0, 0.0, 0.9], [0.0, 0.0, 0.3]]  # right: the second and the third


def evaluated(folder: Path, scores: list[list[float]], keys: list[str], **columns: Any) -> Path:
    table = {"key": keys, "labels": LABELS, "logits": scores, "scores": scores} | columns
    (folder / "evaluation").mkdir(parents=True)
    (folder / "evaluation" / "videos.parquet").write_bytes(to_parquet(pa.table(table)))
    return folder


def test_videos_are_fused_by_their_key(tmp_path: Path) -> None:
    own = evaluated(tmp_path / "rgb", OWN, ["a", "b", "c", "d"])
    turned = [OTHER[place] for place in (3, 2, 1, 0)]
    other = evaluated(tmp_path / "flow", turned, ["d", "c", "b", "a"])
    found = fuse_evaluation(own, FuseSettings(run=str(other)))
    assert found == {"run": str(other), "of": "logits", "weight": 0.5, "video1": 0.75, "video5": 1.0}
    assert fuse_evaluation(own, FuseSettings(run=str(other), weight=1.0))["video1"] == 0.25
    assert fuse_evaluation(own, FuseSettings(run=str(other), weight=0.0, of="scores"))["video1"] == 0.5


def test_what_cannot_be_fused(tmp_path: Path) -> None:
    own = evaluated(tmp_path / "rgb", OWN, ["a", "b", "c", "d"])
    with pytest.raises(UserError, match=r"no evaluation to fuse[\s\S]*evaluate it first"):
        fuse_evaluation(own, FuseSettings(run=str(tmp_path / "none")))
    others = evaluated(tmp_path / "others", OTHER, ["a", "b", "c", "e"])
    with pytest.raises(UserError, match="4 other videos"):
        fuse_evaluation(own, FuseSettings(run=str(others)))
    wider = evaluated(tmp_path / "wider", [[*row, 0.0] for row in OTHER], ["a", "b", "c", "d"])
    with pytest.raises(UserError, match="4 classes apart, not 3"):
        fuse_evaluation(own, FuseSettings(run=str(wider)))


def test_the_sum_is_weighted_and_ranks_count_the_best_label() -> None:
    own, other = np.asarray(OWN, np.float32), np.asarray(OTHER, np.float32)
    assert fused(own, other, 0.6) == pytest.approx(0.6 * own + 0.4 * other)
    assert [best_rank(np.asarray([0.1, 0.7, 0.2]), labels) for labels in ([1], [2], [0], [0, 2])] == [0, 1, 2, 1]
