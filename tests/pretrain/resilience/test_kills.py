"""Ranks killed with -9 at any moment, saving included, and resumed on as many or other ranks: the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.support.training.checkpoints import load_newest
from tests.support.training.forked_ranks import STEPS, ForkServer, config, fork_server, shown

KILLS = 10

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    with fork_server(tmp_path_factory.mktemp("ranks") / "log") as server:
        yield server


def weights(run: Path) -> dict[str, torch.Tensor]:
    folder = run / "checkpoints" / f"step-{STEPS:08d}"
    tensors = {}
    for name in ("model", "optimizer"):
        tensors.update({f"{name}/{key}": value for key, value in load_file(folder / f"{name}.safetensors").items()})
    return tensors


def losses(run: Path) -> dict[int, float]:
    """By step; what was trained again says the same."""
    by_step: dict[int, float] = {}
    for line in (run / "metrics.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "train":
            assert by_step.setdefault(event["step"], event["loss"]) == event["loss"]
    return by_step


def logged(run: Path) -> int:
    """Lines of the log of steps, those of former starts included."""
    path = run / "train.log"
    return path.read_text().count("  epoch ") if path.exists() else 0


@pytest.fixture(scope="module")
def undisturbed(ranks: ForkServer, store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("undisturbed") / "run"
    pids = ranks.start(config(store, run), 2, run.parent / "shown")
    assert ranks.ended(pids) == [0, 0]
    return run


def assert_same(run: Path, undisturbed: Path) -> None:
    found, expected = weights(run), weights(undisturbed)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []
    assert losses(run) == losses(undisturbed) and len(losses(run)) == STEPS


def until(true: Callable[[], bool], ranks: ForkServer, pids: list[int]) -> None:
    deadline = time.monotonic() + 120
    while not true():
        assert time.monotonic() < deadline and not any(pid in ranks.codes for pid in pids)
        time.sleep(0.0005)


def half_written(run: Path) -> set[str]:
    return {path.name for path in (run / "checkpoints").glob(".writing*")}


def test_killed_at_ten_moments(ranks: ForkServer, store: str, undisturbed: Path, tmp_path: Path) -> None:
    chance = random.Random(0)
    run, saving, resumed = tmp_path / "run", 0, set()
    for number in range(KILLS):
        pids = ranks.start(config(store, run), 2)
        begun, left = logged(run), half_written(run)
        victims = chance.choice([pids[:1], pids[1:], pids])
        if number % 3 == 0:  # in the middle of a save
            until(lambda left=left: bool(half_written(run) - left), ranks, pids)
            saving += 1
        elif number == 7:  # while they begin, and may not have met
            time.sleep(chance.uniform(0, 2))
            victims = pids
        else:
            steps = chance.randrange(2, 7)
            until(lambda begun=begun, steps=steps: logged(run) >= begun + steps, ranks, pids)
            time.sleep(chance.uniform(0, 0.1))
        for pid in victims:
            os.kill(pid, signal.SIGKILL)
        codes = ranks.ended(pids)
        assert all(code == -signal.SIGKILL for pid, code in zip(pids, codes, strict=True) if pid in victims)
        assert 0 not in codes, "it finished before it was killed"
        checkpoint = load_newest(run)
        resumed.add(checkpoint.step if checkpoint else 0)
    assert saving == 4 and len(resumed) > 3
    pids = ranks.start(config(store, run), 2)
    assert ranks.ended(pids) == [0, 0]
    assert_same(run, undisturbed)


def test_on_two_ranks_one_and_two_again(ranks: ForkServer, store: str, undisturbed: Path, tmp_path: Path) -> None:
    """Stopped, not killed: what was shown is then shown once. A rank that is alone has the other's cores, too."""
    run = tmp_path / "run"
    stops = [(2, 11, 1), (1, 35, 2), (2, STEPS, 3)]
    for size, last, threads in stops:
        pids = ranks.start(config(store, run), size, tmp_path / "shown", threads)
        if last < STEPS:
            until(lambda last=last: logged(run) >= last - 4, ranks, pids)
            os.kill(pids[-1], signal.SIGUSR1)
        assert ranks.ended(pids) == [75 if last < STEPS else 0] * size
    assert shown(tmp_path / "shown") == shown(undisturbed.parent / "shown")
    assert [len(lane) for lane in shown(tmp_path / "shown")] == [STEPS, STEPS]
    assert_same(run, undisturbed)


def test_killed_on_two_ranks_and_resumed_on_one(
    ranks: ForkServer, store: str, undisturbed: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    for size, steps in ((2, 9), (1, 30)):
        pids = ranks.start(config(store, run), size)
        until(lambda steps=steps: logged(run) >= steps, ranks, pids)
        os.kill(pids[0], signal.SIGKILL)
        ranks.ended(pids)
    assert ranks.ended(ranks.start(config(store, run), 2)) == [0, 0]
    assert_same(run, undisturbed)


def test_statistics_taken_anew_at_the_end(ranks: ForkServer, store: str, undisturbed: Path, tmp_path: Path) -> None:
    """The weights are the same, and so is what they would train to; the network that is used is another."""
    run = tmp_path / "run"
    assert ranks.ended(ranks.start(config(store, run) | {"precise_statistics": 3}, 2)) == [0, 0]
    resumed, expected = weights(run), weights(undisturbed)
    other = {name for name in expected if not torch.equal(resumed[name], expected[name])}
    assert other and {name.rpartition(".")[2] for name in other} == {"running_mean", "running_var"}
    assert all(bool(resumed[name].isfinite().all()) for name in other)
