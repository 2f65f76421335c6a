"""Saving beside training: nothing waits, nothing is lost to a kill, and a full disk costs a warning."""

from __future__ import annotations

import contextlib
import logging
import random
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from prometheus_client import REGISTRY

from pretrain.checkpoints.attempts import Superseded
from pretrain.checkpoints.checkpoint import Checkpoint, CheckpointSettings, save_checkpoint
from sharding.base.errors import UserError
from tests.support.training.checkpoints import begin_attempt, is_whole, load_newest, made, started
from tests.support.training.saving_process import saving

SETTINGS = CheckpointSettings(keep=2)


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def failures() -> float:
    return REGISTRY.get_sample_value("reelscale_checkpoint_failures_total") or 0.0


def last_saved() -> float:
    value = REGISTRY.get_sample_value("reelscale_checkpoint_last_timestamp_seconds")
    assert value is not None
    return value


def newest(run: Path) -> int:
    loaded = load_newest(run)
    assert loaded is not None and is_whole(loaded)
    return loaded.step


class Slow:
    """`save_checkpoint` that waits for a word before it begins, and counts the savings under way."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.go, self.begun, self.under_way, self.most = threading.Semaphore(0), threading.Event(), 0, 0
        monkeypatch.setattr("pretrain.checkpoints.checkpointer.save_checkpoint", self)

    def __call__(self, run: Path, attempt: int, checkpoint: Checkpoint, keep: int) -> Path:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        self.begun.set()
        assert self.go.acquire(timeout=60)
        self.under_way -= 1
        return save_checkpoint(run, attempt, checkpoint, keep)


def test_training_goes_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(monkeypatch)
    checkpointer = started(tmp_path, SETTINGS)
    checkpointer.save(made(1, 0.1))  # returns although the write waits
    assert slow.begun.wait(60) and not (tmp_path / "checkpoints").exists()
    second = threading.Thread(target=checkpointer.save, args=(made(2, 0.1),))
    second.start()
    second.join(0.2)
    assert second.is_alive()  # one at a time
    slow.go.release()
    second.join(60)
    assert not second.is_alive() and newest(tmp_path) == 1
    slow.go.release()
    checkpointer.finish()
    assert newest(tmp_path) == 2 and slow.most == 1


def test_the_last_and_the_best_are_left(tmp_path: Path) -> None:
    checkpointer = started(tmp_path, SETTINGS)
    for step, clip1 in ((4, 0.3), (8, 0.6), (12, 0.5), (16, 0.4), (20, 0.2)):
        model = {"weight": torch.ones(3)}
        checkpointer.save(Checkpoint(step, model, {}, {}, {"step": step, "clip1": clip1}))
    checkpointer.finish()
    assert names(tmp_path) == ["step-00000008", "step-00000016", "step-00000020"]
    checkpointer.finish()


def test_an_older_attempt_learns_that_it_is_one(tmp_path: Path) -> None:
    checkpointer = started(tmp_path, SETTINGS)
    checkpointer.save(made(1, 0.1))
    checkpointer.finish()
    begin_attempt(tmp_path)
    with pytest.raises(Superseded):
        checkpointer.save(made(2, 0.1))
    assert names(tmp_path) == ["step-00000001"]


def test_replaced_while_it_writes_it_learns_it_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Slow(monkeypatch)
    checkpointer = started(tmp_path, SETTINGS)
    checkpointer.save(made(1, 0.1))
    begin_attempt(tmp_path)
    slow.go.release()
    for _ in range(2):
        with pytest.raises(Superseded):
            checkpointer.finish()
    with pytest.raises(Superseded):
        checkpointer.save(made(2, 0.1))
    assert names(tmp_path) == []


def test_what_is_no_matter_of_the_disk_is_raised(tmp_path: Path) -> None:
    checkpointer = started(tmp_path, SETTINGS)
    checkpointer.save(Checkpoint(1, {}, {}, {}, {"step": 1, "path": tmp_path}))
    with pytest.raises(TypeError, match="JSON"):
        checkpointer.finish()
    assert names(tmp_path) == []


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True)
        refusal = mounted.stderr.strip() if mounted.returncode else None
    except OSError as error:
        refusal = str(error)
    if refusal:
        pytest.skip(f"no file system may be mounted here: {refusal}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_does_not_end_training(tmp_path: Path, run_log: pytest.LogCaptureFixture) -> None:
    before = failures()
    with small_disk(tmp_path / "disk", 16) as disk:
        run = disk / "run"
        checkpointer = started(run, SETTINGS)
        for step in (1, 2):
            checkpointer.save(made(step, 4))
        checkpointer.finish()
        saved = last_saved()
        ballast = disk / "ballast"
        ballast.write_bytes(bytes(5 * 2**20))
        checkpointer.save(made(3, 4))
        checkpointer.save(made(4, 4))  # does not raise
        with pytest.raises(UserError, match=r"step 4 could not be saved: .*No space left") as refused:
            checkpointer.finish()
        assert str(run) in refused.value.where and "room" in refused.value.remedy
        assert failures() == before + 2 and last_saved() == saved
        warnings = {record.getMessage() for record in run_log.records if record.levelno == logging.WARNING}
        assert len(warnings) == 2 and all("training goes on" in warning for warning in warnings)
        assert names(run) == ["step-00000001", "step-00000002"] and newest(run) == 2  # no leftovers
        ballast.unlink()
        checkpointer.save(made(5, 4))
        checkpointer.finish()
        assert newest(run) == 5 and failures() == before + 2 and last_saved() > saved


def test_a_store_on_a_full_disk_does_not_end_training(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 3) as disk:
        settings = CheckpointSettings(keep=1, store=str(disk / "store"))
        run = tmp_path / "run"
        checkpointer = started(run, settings)
        checkpointer.save(made(1, 4))  # the weights go in, the momentum does not
        with pytest.raises(UserError, match=r"step 1 could not be kept in the store: .*No space left") as refused:
            checkpointer.finish()
        assert str(disk) in refused.value.where and str(run / "checkpoints") in refused.value.remedy
        assert newest(run) == 1
        checkpointer.save(made(2, 2.5))  # there is room once those weights are gone
        checkpointer.finish()
        left = [path for path in (disk / "store" / "run" / "checkpoints").rglob("*") if path.is_file()]
        assert {path.parts[-3:-1] for path in left} == {("step-00000002", "attempt-000001")} and len(left) == 4


def test_a_file_that_may_not_grow_does_not_end_training(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, begin_attempt(tmp_path), made(1, 0.1), keep=2)
    with saving(tmp_path, 8, limit=2**20) as child:
        assert child.next() == ("begun", 2)
        kind, message = child.next()
    assert kind == "failed" and "step 2 could not be saved" in str(message) and "File too large" in str(message)
    assert names(tmp_path) == ["step-00000001"] and newest(tmp_path) == 1


@pytest.mark.slow
def test_killed_at_any_moment_nothing_that_was_saved_is_lost(tmp_path: Path) -> None:
    chance = random.Random(5)
    saved = torn = 0
    for round_ in range(15):
        with saving(tmp_path, 20) as child:
            while child.next()[0] != ("saved" if round_ % 3 == 0 else "begun"):
                pass
            child.process.join(chance.uniform(0, 0.4))
            assert child.process.is_alive()
            child.kill()
            reported = [step for kind, step in child.rest() if kind == "saved"]
        saved = max([saved, *map(int, reported)]) if round_ else newest(tmp_path)
        torn += any((tmp_path / "checkpoints").glob(".writing-*"))
        last = newest(tmp_path)
        assert last >= saved
        saved = last
    assert saved >= 5 and torn > 0  # it was interrupted at work
    checkpointer = started(tmp_path, SETTINGS)
    checkpointer.save(made(saved + 1, 0.1))
    checkpointer.finish()
    assert names(tmp_path) == [f"step-{saved:08d}", f"step-{saved + 1:08d}"]
