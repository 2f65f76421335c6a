"""What training lives through: samples that are not finite, ranks that hang."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.checkpoints.checkpoint import Checkpoint, load_checkpoint
from tests.support.training.forked_ranks import ForkServer, config, fork_server, shown

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks") / "log"


@pytest.fixture(scope="module")
def ranks(log: Path) -> Iterator[ForkServer]:
    with fork_server(log) as server:
        yield server


def short(store: str, run: Path, steps: int, **changes: Any) -> dict[str, Any]:
    """A run of so many steps with a checkpoint after each."""
    settings = config(store, run) | {"validation": {"every_steps": 100, "videos": 5}}
    settings["checkpoint"] = {"every_steps": 1, "keep": steps}
    settings["schedule"] = settings["schedule"] | {"epochs": steps / 10}
    return settings | changes


def checkpoint(run: Path, step: int) -> Checkpoint:
    return load_checkpoint(run / "checkpoints" / f"step-{step:08d}")


def tensors(checkpoint: Checkpoint) -> dict[str, torch.Tensor]:
    kinds = {"model": checkpoint.model, "optimizer": checkpoint.optimizer, "average": checkpoint.average}
    return {f"{kind}/{name}": value for kind, values in kinds.items() for name, value in values.items()}


def changed(run: Path, step: int) -> list[str]:
    """The tensors that a step changed, BN statistics and averages among them."""
    before, after = tensors(checkpoint(run, step - 1)), tensors(checkpoint(run, step))
    assert before.keys() == after.keys()
    return [name for name in before if not torch.equal(before[name], after[name])]


@pytest.mark.parametrize(("size", "zero"), [(1, 0), (2, 1), (2, 2), (2, 3)])
def test_a_step_that_is_not_finite_changes_nothing(
    ranks: ForkServer, store: str, tmp_path: Path, size: int, zero: int
) -> None:
    run = tmp_path / "run"
    engine = {"precision": "fp32", "zero": zero, "average": 0.9}
    pids = ranks.start(short(store, run, 5, engine=engine), size, poisoned=[2])
    assert ranks.ended(pids) == [0] * size
    assert changed(run, 3) == []
    for step in (2, 4, 5):
        assert {name.split("/")[0] for name in changed(run, step)} == {"model", "optimizer", "average"}
    assert all(bool(value.isfinite().all()) for value in tensors(checkpoint(run, 5)).values())


def test_bad_samples_are_passed_over(ranks: ForkServer, store: str, tmp_path: Path) -> None:
    """Three steps in a row: back to the last checkpoint, and on with the samples after them."""
    run = tmp_path / "run"
    settings = short(store, run, 12, health={"skipped_in_a_row": 3})
    settings["checkpoint"] = {"every_steps": 4, "keep": 9}
    pids = ranks.start(settings, 2, tmp_path / "shown", poisoned=[5, 6, 7])
    assert ranks.ended(pids) == [0, 0]
    seen = shown(tmp_path / "shown")
    assert [len(lane) for lane in seen] == [16, 16]  # steps 5 to 8, and 5 to 12 with what came after
    assert [checkpoint(run, step).state["passed_over"] for step in (4, 8, 12)] == [0, 4, 4]
    trained = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines() if "train" in line]
    assert trained == [*range(1, 13)]  # of steps that were taken anew the second time, as after any other start
    assert "going on from the checkpoint at step 4, with the samples of step 9 on" in (run / "train.log").read_text()


def test_training_that_goes_wrong_again_and_again_ends(
    ranks: ForkServer, store: str, tmp_path: Path, log: Path
) -> None:
    run = tmp_path / "run"
    settings = short(store, run, 30, health={"skipped_in_a_row": 2})
    settings["checkpoint"] = {"every_steps": 4, "keep": 9}
    pids = ranks.start(settings, 1, poisoned=list(range(5, 40)))
    assert ranks.ended(pids) == [1]
    assert "NotRetryable: training went wrong by step 6, as it did the 3 times before" in log.read_text()
    assert checkpoint(run, 4).state["passed_over"] == 0


def test_the_limit_of_going_back_holds_over_restarts(ranks: ForkServer, store: str, tmp_path: Path, log: Path) -> None:
    """Twice, a kill, and once more: the fourth time ends the run, which is given up until its settings change."""
    run = tmp_path / "run"
    settings = short(store, run, 12, health={"skipped_in_a_row": 2})
    settings["checkpoint"] = {"every_steps": 4, "keep": 9}
    first = ranks.start(settings, 2, tmp_path / "first", poisoned=[4, 5, 7, 8], hangs=(0, 10))
    # A step of good samples has been sent when the second of two bad ones is read.
    while not (run / "rollbacks.json").exists() or json.loads((run / "rollbacks.json").read_text())["times"] < 2:
        time.sleep(0.05)
    for pid in first:
        os.kill(pid, signal.SIGKILL)
    ranks.ended(first)

    assert ranks.ended(ranks.start(settings, 2, tmp_path / "second", poisoned=list(range(40)))) == [1, 1]
    assert "NotRetryable: training went wrong by step 6, as it did the 3 times before" in log.read_text()
    assert len(shown(tmp_path / "second")[0]) <= 6  # twice two steps, and one that was sent meanwhile
    assert shown(tmp_path / "first")[0][:2] != shown(tmp_path / "second")[0][:2]

    assert ranks.ended(ranks.start(settings, 2, tmp_path / "third")) == [1, 1]
    said = log.read_text().partition("the run was given up: training went wrong each of the 4 times")[2]
    assert "remedy: lower schedule.lr, or set engine.clip_gradient" in said
    assert not (tmp_path / "third").exists()

    settings["schedule"] = settings["schedule"] | {"lr": 0.001}
    assert ranks.ended(ranks.start(settings, 2, tmp_path / "fourth")) == [0, 0]
    assert "schedule.lr is 0.001, was 0.005" in (run / "train.log").read_text()


def test_a_run_that_went_back_goes_on_after_a_kill_as_without(ranks: ForkServer, store: str, tmp_path: Path) -> None:
    """To the bit, with the samples after those that it passed over."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for run, hangs in ((whole, (-1, -1)), (killed, (0, 8))):
        settings = short(store, run, 8, health={"skipped_in_a_row": 2})
        settings["checkpoint"] = {"every_steps": 4, "keep": 9}
        pids = ranks.start(settings, 1, tmp_path / f"shown-{run.name}", poisoned=[4, 5], hangs=hangs)
        if run == killed:
            seen = tmp_path / "shown-killed"
            while not seen.exists() or len(seen.read_text().splitlines()) < 18:
                time.sleep(0.05)
            os.kill(pids[0], signal.SIGKILL)
            ranks.ended(pids)
            pids = ranks.start(settings, 1, tmp_path / "shown-again")
        assert ranks.ended(pids) == [0]
    assert checkpoint(whole, 8).state["passed_over"] == checkpoint(killed, 8).state["passed_over"] == 2
    there, here = tensors(checkpoint(whole, 8)), tensors(checkpoint(killed, 8))
    assert there.keys() == here.keys() and all(torch.equal(there[name], here[name]) for name in there)


def test_training_that_goes_wrong_at_once_begins_with_other_samples(
    ranks: ForkServer, store: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    settings = short(store, run, 5, health={"skipped_in_a_row": 2})
    settings["checkpoint"] = {"every_steps": 4, "keep": 9}
    pids = ranks.start(settings, 2, poisoned=[0, 1])
    assert ranks.ended(pids) == [0, 0]
    assert checkpoint(run, 5).state["passed_over"] == 2
    assert "going on from the checkpoint at step 0, with the samples of step 3 on" in (run / "train.log").read_text()


@pytest.mark.parametrize(("zero", "batch_norm"), [(1, "lane"), (3, "lane"), (1, "all")])
def test_a_slow_rank_is_named(ranks: ForkServer, store: str, tmp_path: Path, zero: int, batch_norm: str) -> None:
    """Also where the others wait for it within a forward pass."""
    run = tmp_path / "run"
    settings = short(store, run, 6, engine={"precision": "fp32", "zero": zero}, log_steps=3)
    settings["model"] = settings["model"] | {"batch_norm": batch_norm}
    assert ranks.ended(ranks.start(settings, 2, slow=0.3)) == [0, 0]
    named = [line for line in (run / "train.log").read_text().splitlines() if " is slow: " in line]
    assert named and all("rank 1 on " in line for line in named)


def test_a_slow_save_is_no_hang(ranks: ForkServer, store: str, tmp_path: Path) -> None:
    """Rank 0 waits for the save before; the others wait with it, by its patience."""
    run = tmp_path / "run"
    settings = short(store, run, 2, watchdog={"stall_seconds": 8})
    assert ranks.ended(ranks.start(settings, 2, save=16.0)) == [0, 0]


def test_ranks_that_hang_say_where_and_end(ranks: ForkServer, store: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    settings = short(store, run, 9, watchdog={"stall_seconds": 16})
    pids = ranks.start(settings, 2, hangs=[1, 4])
    assert ranks.ended(pids) == [75, 75]
    stacks = [path.read_text() for path in sorted((run / "stacks").glob("rank-*"))]
    assert len(stacks) == 2
    assert "sum_" in stacks[0] or "backward" in stacks[0]  # it waits for the other
    assert "looked_at" in stacks[1]
    assert ranks.ended(ranks.start(settings, 2)) == [0, 0]
    assert checkpoint(run, 9).step == 9


@pytest.mark.parametrize(("lost", "save", "asked"), [("forward", 0.0, False), ("step", 3600.0, True)])
def test_a_rank_whose_device_is_lost_ends_with_one_message(
    ranks: ForkServer, store: str, tmp_path: Path, log: Path, lost: str, save: float, asked: bool
) -> None:
    """Also where what it leaves behind would hang, a save among it, and a signal comes meanwhile."""
    run, before = tmp_path / "run", len(log.read_text())
    settings = short(store, run, 9)
    settings["checkpoint"] = {"every_steps": 4, "keep": 9}
    pids = ranks.start(settings, 1, save=save, lost=[0, 3, lost])
    begun = time.monotonic()
    while "the device is lost" not in log.read_text()[before:]:
        assert time.monotonic() < begun + 200
        time.sleep(0.05)
    begun = time.monotonic()
    if asked:  # it waits for the save just then
        os.kill(pids[0], signal.SIGTERM)
    assert ranks.ended(pids) == [1]
    assert time.monotonic() - begun < 60
    said = log.read_text()[before:]
    assert said.count("misaligned address") == said.count("goes on from the last checkpoint") == 1
    assert "Traceback" not in said
    assert "training failed: the device is lost (CUDA error: misaligned address, in forked_ranks.py, line " in said
    if not save:
        assert ranks.ended(ranks.start(settings, 1)) == [0]
        assert checkpoint(run, 9).step == 9
