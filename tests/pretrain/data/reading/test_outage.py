"""A store that is gone while a run reads it: waited for, to the same bits, or left once patience ends, all saved."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pretrain.data.reading.outage import OutageLog, PatientStore, StoreGone, StoreWait
from sharding.base.errors import DamagedStore, UserError
from sharding.storage.store import open_store
from tests.support.training.checkpoints import load_newest
from tests.support.training.forked_ranks import ForkServer, config, fork_server

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 24


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks") / "log"


@pytest.fixture(scope="module")
def ranks(log: Path) -> Iterator[ForkServer]:
    with fork_server(log) as server:
        yield server


@pytest.fixture()
def moved(store: str, tmp_path: Path) -> Path:
    """The store at a place that it can be moved away from."""
    place = tmp_path / "mount" / "store"
    place.parent.mkdir()
    place.symlink_to(store)
    return place


def gone_for(place: Path, seconds: float) -> None:
    aside = place.with_name("away")
    place.rename(aside)
    time.sleep(seconds)
    aside.rename(place)


def run_of(store: Path, run: Path, patience: float, **changes: Any) -> dict[str, Any]:
    settings = config(str(store), run) | changes
    settings["schedule"] = settings["schedule"] | {"epochs": STEPS / 10}
    settings["data"] = settings["data"] | {"patience_seconds": patience}
    return settings


def tensors(run: Path) -> dict[str, torch.Tensor]:
    found = load_newest(run)
    assert found is not None
    return {**found.model, **found.optimizer, "step": torch.tensor(found.step)}


def until(condition: Any, seconds: float = 120.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lines(path: Path) -> int:
    return len(path.read_text().splitlines()) if path.exists() else 0


def said(run: Path) -> str:
    path = run / "train.log"
    return path.read_text() if path.exists() else ""


@pytest.mark.parametrize("size", [1, 2])
def test_a_directory_that_comes_back(ranks: ForkServer, store: str, moved: Path, tmp_path: Path, size: int) -> None:
    whole, run = tmp_path / "whole", tmp_path / "run"
    slow = {"slow": 0.05}
    assert ranks.ended(ranks.start(run_of(moved, whole, 60), size, **slow)) == [0] * size
    pids = ranks.start(run_of(moved, run, 60), size, tmp_path / "shown", **slow)
    until(lambda: lines(tmp_path / "shown") > 8)
    gone_for(moved, 4)
    assert ranks.ended(pids) == [0] * size
    assert "is gone (" in said(run) and "is back after" in said(run) and "damaged" not in said(run)
    there, here = tensors(whole), tensors(run)
    assert there.keys() == here.keys() and all(torch.equal(there[name], here[name]) for name in there)


@pytest.mark.parametrize(("size", "zero"), [(1, 1), (2, 0), (2, 3)])
def test_patience_ends_with_all_saved_and_the_run_goes_on_as_without(
    ranks: ForkServer, moved: Path, tmp_path: Path, size: int, zero: int
) -> None:
    whole, run, engine = tmp_path / "whole", tmp_path / "run", {"precision": "fp32", "zero": zero}
    rarely = {"engine": engine, "checkpoint": {"every_steps": 1000}}
    assert ranks.ended(ranks.start(run_of(moved, whole, 60, **rarely), size)) == [0] * size
    pids = ranks.start(run_of(moved, run, 2, **rarely), size, tmp_path / "shown", slow=0.05)
    until(lambda: lines(tmp_path / "shown") > 8)
    aside = moved.with_name("away")
    moved.rename(aside)
    assert ranks.ended(pids) == [75] * size
    assert "is waited for no longer (data.patience_seconds=2)" in said(run) and "with everything saved" in said(run)
    saved = load_newest(run)
    assert saved is not None and 0 < saved.step < STEPS
    aside.rename(moved)
    assert ranks.ended(ranks.start(run_of(moved, run, 2, **rarely), size)) == [0] * size
    there, here = tensors(whole), tensors(run)
    assert there.keys() == here.keys() and all(torch.equal(there[name], here[name]) for name in there)


@pytest.mark.parametrize("size", [1, 2])
def test_a_signal_while_it_is_waited_for(ranks: ForkServer, moved: Path, tmp_path: Path, size: int) -> None:
    run = tmp_path / "run"
    pids = ranks.start(run_of(moved, run, 600, checkpoint={"every_steps": 1000}), size, tmp_path / "shown", slow=0.05)
    until(lambda: lines(tmp_path / "shown") > 8)
    moved.rename(moved.with_name("away"))
    until(lambda: "is gone (" in said(run))
    begin = time.monotonic()
    for pid in pids:
        os.kill(pid, signal.SIGTERM)
    assert ranks.ended(pids) == [75] * size
    assert time.monotonic() - begin < 30
    saved = load_newest(run)
    assert saved is not None and 0 < saved.step < STEPS


def test_what_is_missing_in_a_store_that_is_there(store: str) -> None:
    result = open_store(store)
    index = next(path for path in result.list("index/") if path.endswith(".parquet"))
    patient = PatientStore(result, index, 60.0)
    begin = time.monotonic()
    with pytest.raises(FileNotFoundError):
        patient.size("train/none.tar")
    tar = next(path for path in result.list("train/") if path.endswith(".tar"))
    with pytest.raises(DamagedStore):
        patient.get_range(tar, 0, 10**9)
    assert time.monotonic() - begin < 5
    assert patient.get_range(tar, 3, 9) == result.get_range(tar, 3, 9)
    with pytest.raises(StoreGone, match="is waited for no longer"):
        PatientStore(open_store("/nowhere/at/all"), index, 0.2).get("a")


def test_a_store_that_cannot_be_used_for_a_while() -> None:
    class Failing:
        url, remote, calls = "s3://b/p", True, 0

        def get(self, path: str) -> bytes:
            self.calls += 1
            if self.calls < 3:
                raise UserError("the store refused the credentials", "s3://b/p", "check")
            return b"there"

        def exists(self, path: str) -> bool:
            return True

    output: list[StoreWait] = []
    patient = PatientStore(Failing(), "index/1.parquet", 30.0)
    patient.tell = output.append
    assert patient.get("a") == b"there"
    assert [waiting.over for waiting in output] == [False, True] and "credentials" in output[0].why


def test_the_log_of_an_outage(run_log: pytest.LogCaptureFixture) -> None:
    outage = OutageLog()
    for _ in range(3):
        outage.tell(StoreWait("there", "moved", 1.0, 900.0))
    assert outage.ongoing
    for _ in range(3):
        outage.tell(StoreWait("there", "moved", 7.0, 900.0, over=True))
    assert not outage.ongoing
    said = dict.fromkeys((id(record), record.message.partition(" (")[0]) for record in run_log.records)
    assert [message for _, message in said] == [
        "the store there is gone",
        "the store there is back after 7 s; training goes on",
    ]
