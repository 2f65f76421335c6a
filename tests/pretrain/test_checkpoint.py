"""Checkpoints: whole or not at all, damage skipped, and only the newest attempt writes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pretrain.checkpoint import (
    Checkpoint,
    Superseded,
    begin_attempt,
    load_newest,
    load_run,
    newest_attempt,
    save_checkpoint,
)
from sharding.errors import UserError


def checkpoint(step: int) -> Checkpoint:
    draw = torch.Generator().manual_seed(step)
    model = {
        "weight": torch.randn(3, 4, generator=draw).t(),  # not contiguous
        "tracked": torch.tensor(step),
        "half": torch.randn(2, generator=draw).bfloat16(),
    }
    momentum = {"weight": torch.randn(4, 3, generator=draw)}
    return Checkpoint(step, model, momentum, {"step": step, "samples": 8 * step, "note": "ü"})


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def assert_is(found: Checkpoint | None, step: int) -> None:
    assert found is not None
    expected = checkpoint(step)
    assert (found.step, found.state) == (step, expected.state)
    for there, here in ((found.model, expected.model), (found.optimizer, expected.optimizer)):
        assert there.keys() == here.keys()
        assert all(torch.equal(there[name], here[name]) and there[name].dtype == here[name].dtype for name in here)


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    assert load_newest(tmp_path) is None
    folder = save_checkpoint(tmp_path, begin_attempt(tmp_path), checkpoint(40), keep=2)
    assert folder == tmp_path / "checkpoints" / "step-00000040"
    assert sorted(path.name for path in folder.iterdir()) == [
        "manifest.json", "model.safetensors", "optimizer.safetensors", "state.json",
    ]  # fmt: skip
    assert_is(load_newest(tmp_path), 40)
    assert_is(load_run(tmp_path), 40)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert {name: entry["bytes"] for name, entry in manifest["files"].items()} == {
        path.name: path.stat().st_size for path in folder.iterdir() if path.name != "manifest.json"
    }


def test_a_step_is_saved_over_and_momentum_may_be_empty(tmp_path: Path) -> None:
    attempt = begin_attempt(tmp_path)
    empty = Checkpoint(3, {"weight": torch.zeros(2)}, {}, {"step": 3})
    save_checkpoint(tmp_path, attempt, empty, keep=2)
    found = load_newest(tmp_path)
    assert found is not None and found.optimizer == {}
    save_checkpoint(tmp_path, attempt, checkpoint(3), keep=2)
    assert_is(load_newest(tmp_path), 3)


def flip(folder: Path, name: str = "model.safetensors") -> None:
    body = bytearray((folder / name).read_bytes())
    body[-1] ^= 1
    (folder / name).write_bytes(bytes(body))


def cut(folder: Path) -> None:
    path = folder / "optimizer.safetensors"
    os.truncate(path, path.stat().st_size // 2)


def of_another_format(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": 99}))


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        cut,
        of_another_format,
        lambda folder: flip(folder, "state.json"),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_text("[]"),
        lambda folder: os.truncate(folder / "manifest.json", 40),
        lambda folder: (folder / "model.safetensors").unlink(),
    ],
)
def test_a_damaged_one_is_skipped_for_the_one_before(
    tmp_path: Path, damage: Callable[[Path], object], caplog: pytest.LogCaptureFixture
) -> None:
    attempt = begin_attempt(tmp_path)
    for step in (5, 10):
        newest = save_checkpoint(tmp_path, attempt, checkpoint(step), keep=2)
    damage(newest)
    logger = logging.getLogger("reelscale")
    logger.addHandler(caplog.handler)
    try:
        assert_is(load_newest(tmp_path), 5)
    finally:
        logger.removeHandler(caplog.handler)
    assert str(newest) in caplog.text and "damaged" in caplog.text
    damage(tmp_path / "checkpoints" / "step-00000005")
    assert load_newest(tmp_path) is None
    with pytest.raises(UserError, match="no checkpoint"):
        load_run(tmp_path)


def test_a_folder_without_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint to start from"):
        load_run(tmp_path / "nothing")


def test_attempts_count_up(tmp_path: Path) -> None:
    assert newest_attempt(tmp_path) == 0
    assert [begin_attempt(tmp_path) for _ in range(3)] == [1, 2, 3]
    assert newest_attempt(tmp_path) == 3


def test_a_superseded_attempt_writes_nothing(tmp_path: Path) -> None:
    old = begin_attempt(tmp_path)
    save_checkpoint(tmp_path, old, checkpoint(5), keep=2)
    new = begin_attempt(tmp_path)
    for step in (5, 10):
        with pytest.raises(Superseded, match=f"attempt {old} .* attempt {new}"):
            save_checkpoint(tmp_path, old, checkpoint(step), keep=2)
    assert names(tmp_path) == ["step-00000005"]
    assert_is(load_newest(tmp_path), 5)
    save_checkpoint(tmp_path, new, checkpoint(10), keep=2)
    assert_is(load_newest(tmp_path), 10)


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_are_kept(tmp_path: Path, keep: int) -> None:
    attempt = begin_attempt(tmp_path)
    for step in (1, 2, 30, 100, 2000):
        save_checkpoint(tmp_path, attempt, checkpoint(step), keep)
    assert names(tmp_path) == [f"step-{step:08d}" for step in (1, 2, 30, 100, 2000)[-keep:]]


def test_what_a_killed_attempt_left_goes(tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / f".writing-{begin_attempt(tmp_path):06d}-00000007"
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half of it")
    assert load_newest(tmp_path) is None
    save_checkpoint(tmp_path, begin_attempt(tmp_path), checkpoint(7), keep=1)
    assert names(tmp_path) == ["step-00000007"]


@pytest.mark.parametrize("keep", [1, 2])
def test_damaged_ones_beyond_the_saved_step_make_room(tmp_path: Path, keep: int) -> None:
    attempt = begin_attempt(tmp_path)
    for step in (40, 80):
        save_checkpoint(tmp_path, attempt, checkpoint(step), 2)
    (tmp_path / "checkpoints" / "step-00000080" / "model.safetensors").write_bytes(b"torn")
    save_checkpoint(tmp_path, begin_attempt(tmp_path), checkpoint(50), keep)
    assert names(tmp_path) == ["step-00000040", "step-00000050"][-keep:]
    assert_is(load_newest(tmp_path), 50)
