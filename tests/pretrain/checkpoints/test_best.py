"""The best checkpoint of a run, by the clip@1 of its validations."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.checkpoints.checkpoint import Checkpoint, save_checkpoint
from pretrain.checkpoints.checkpointer import Checkpointer
from sharding.base.errors import UserError
from tests.support.training.checkpoints import begin_attempt, made


def of_step(step: int, clip1: float | None = None) -> Checkpoint:
    """A small checkpoint, validated or not."""
    checkpoint = made(step, 0.01)
    checkpoint.state["clip1"] = clip1
    return checkpoint


def test_the_best_by_clip1_is_had_by_name(tmp_path: Path) -> None:
    """Of equally good ones the last; a damaged one is passed over."""
    with pytest.raises(UserError, match="no checkpoint to start from"):
        Checkpointer(tmp_path).load_weights_only("best")
    attempt, folders = begin_attempt(tmp_path), {}
    folders[1] = save_checkpoint(tmp_path, attempt, of_step(1), 9)
    with pytest.raises(UserError, match="no checkpoint of the run was validated") as refused:
        Checkpointer(tmp_path).load_weights_only("best")
    assert "checkpoint=newest" in refused.value.remedy
    for step, clip1 in ((2, 0.5), (3, 0.75), (4, 0.75), (5, 0.25)):
        folders[step] = save_checkpoint(tmp_path, attempt, of_step(step, clip1), 9)
    assert Checkpointer(tmp_path).load_weights_only().step == 5
    assert Checkpointer(tmp_path).load_weights_only("best").step == 4
    (folders[4] / "model.safetensors").write_bytes(b"cut")
    assert Checkpointer(tmp_path).load_weights_only("best").step == 3
