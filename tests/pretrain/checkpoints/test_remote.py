"""Checkpoints in a store: enough for a machine with an empty disk, and one run's alone."""

from __future__ import annotations

import fcntl
import json
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from pretrain.checkpoints.checkpoint import Checkpoint, CheckpointSettings
from pretrain.checkpoints.checkpoint_manifest import CheckpointId
from pretrain.checkpoints.checkpointer import Checkpointer
from sharding.base.errors import UserError
from sharding.storage.store import open_store
from tests.pretrain.conftest import Finished, end, start
from tests.support.training.checkpoints import (
    begin_attempt,
    begin_run,
    committed,
    is_whole,
    load_newest,
    load_run,
    load_step,
    names,
    newest,
    save_steps,
)

pytestmark = pytest.mark.slow


@pytest.mark.slow
def test_a_run_goes_on_on_an_empty_disk(tmp_path: Path, url: str, settings: CheckpointSettings) -> None:
    here, moved = tmp_path / "a" / "run", tmp_path / "b" / "run"
    assert load_newest(here, settings) is None
    here.mkdir(parents=True)
    lines = [json.dumps({"event": "train", "step": step}) + "\n" for step in (1, 2, 3, 4)]
    (here / "metrics.jsonl").write_text("".join(lines))
    save_steps(here, settings, 1, 2, 3)
    store = open_store(url)
    assert committed(store, "run") == ["step-00000002/attempt-000001", "step-00000003/attempt-000001"]
    assert store.list("run/attempts/") == ["run/attempts/000001"]
    place = "run/checkpoints/step-00000003/attempt-000001"
    assert {path.removeprefix(f"{place}/") for path in store.list(place)} == {
        path.name for path in (here / "checkpoints" / "step-00000003").iterdir()
    }
    assert newest(moved, settings) == (3, 1)
    assert (moved / "metrics.jsonl").read_text() == "".join(lines[:3])
    assert names(moved) == ["step-00000003"]
    store.delete(f"{place}/model.safetensors")
    assert newest(moved, settings) == (3, 1)  # it is here now, and is not fetched again
    assert begin_attempt(moved, settings) == 2 and begin_attempt(here, settings) == 3


def test_another_run_of_the_same_name_is_refused(tmp_path: Path, settings: CheckpointSettings) -> None:
    first, other = tmp_path / "a" / "run", tmp_path / "b" / "run"
    begin_run(first, seed=1)
    save_steps(first, settings, 1)
    begin_run(other, seed=2)
    with pytest.raises(UserError, match=r"another run of this name .seed: 1 there, 2 here"):
        begin_attempt(other, settings)
    begin_run(other, seed=1)
    assert begin_attempt(other, settings) == 2


def test_an_empty_disk_gets_the_runs_settings_first(tmp_path: Path, settings: CheckpointSettings) -> None:
    first, empty = tmp_path / "a" / "run", tmp_path / "b" / "run"
    Checkpointer(first, settings).fetch_settings()
    assert not (first / "settings.json").exists()
    begin_run(first, seed=1)
    begin_attempt(first, settings)
    Checkpointer(empty, settings).fetch_settings()
    for name in ("settings.json", "classes.json"):
        assert (empty / name).read_bytes() == (first / name).read_bytes()
    begin_run(empty, seed=3)
    Checkpointer(empty, settings).fetch_settings()
    assert json.loads((empty / "settings.json").read_text())["identity"]["seed"] == 3


def test_the_newest_may_be_here_or_there(tmp_path: Path, url: str, settings: CheckpointSettings) -> None:
    here, moved = tmp_path / "a" / "run", tmp_path / "b" / "run"
    save_steps(here, settings, 1, 2)
    save_steps(here, CheckpointSettings(keep=2), 3)  # attempt 2, in the folder alone
    assert newest(here, settings) == (3, 2)
    assert newest(moved, settings) == (2, 1)
    save_steps(moved, settings, 4, attempt=begin_attempt(moved, settings))
    # The number 2 was free in the store: the higher step of the same attempt is the newer.
    assert newest(here, settings) == (4, 2)


def test_what_was_not_uploaded_any_more_is_at_the_next_start(tmp_path: Path, settings: CheckpointSettings) -> None:
    """A save ends in the run's folder, and its process is killed before the store has it."""
    here, elsewhere = tmp_path / "a" / "run", tmp_path / "b" / "run"
    save_steps(here, settings, 1)
    save_steps(here, CheckpointSettings(keep=2), 2)  # in the folder alone
    assert newest(elsewhere, settings) == (1, 1)
    starting = Checkpointer(here, settings)
    assert starting.newest() == CheckpointId(2, 2)  # a mere look uploads nothing
    assert newest(elsewhere, settings) == (1, 1)
    starting.begin_attempt()
    assert starting.newest() == CheckpointId(2, 2)
    assert is_whole(load_step(elsewhere, 2, 2, settings))


def test_a_step_saved_again_and_the_best(tmp_path: Path, url: str, settings: CheckpointSettings) -> None:
    run = tmp_path / "run"
    saver = save_steps(run, settings, 1)
    for step, clip1 in ((2, 0.9), (3, 0.5), (4, 0.5), (5, 0.5), (5, 0.6)):
        saver.save(Checkpoint(step, {"weight": torch.ones(2)}, {}, {}, {"step": step, "clip1": clip1}))
    saver.finish()
    assert [name[:13] for name in committed(open_store(url), "run")] == [f"step-0000000{step}" for step in (2, 4, 5)]
    found = load_newest(tmp_path / "b" / "run", settings)
    assert found is not None and found.state["clip1"] == 0.6


@pytest.mark.slow
@pytest.mark.cluster
def test_ranks_without_a_shared_disk_load_the_same_step(tmp_path: Path, settings: CheckpointSettings) -> None:
    run, elsewhere = tmp_path / "a" / "run", tmp_path / "b" / "run"
    save_steps(run, settings, 1, 2)
    store_calls = threading.Barrier(4)
    loaded: list[Checkpoint] = []

    def rank() -> None:
        store_calls.wait()
        loaded.append(load_step(elsewhere, 1, 1, settings))

    ranks = [threading.Thread(target=rank) for _ in range(4)]
    for each in ranks:
        each.start()
    for each in ranks:
        each.join()
    assert [(each.step, is_whole(each)) for each in loaded] == [(1, True)] * 4
    assert names(elsewhere) == ["step-00000001"]
    with pytest.raises(UserError, match="step 7"):
        load_step(elsewhere, 7, 1, settings)


@pytest.mark.parametrize("locks", [True, False])
def test_machines_whose_processes_have_equal_ids_fetch_into_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locks: bool
) -> None:
    """The threads of a process have one id, as the processes of containers may; some file systems have no locks."""
    settings = CheckpointSettings(store=str(tmp_path / "store"))
    save_steps(tmp_path / "a" / "run", settings, 1)
    run = tmp_path / "b" / "run"
    if not locks:
        monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError("no locks")))
    together = threading.Barrier(4)

    def fetch(_: int) -> tuple[bool, int, int]:
        together.wait()
        Checkpointer(run, settings).fetch_settings()
        found = load_newest(run, settings)
        assert found is not None
        return is_whole(found), found.step, found.attempt

    for _ in range(5):
        shutil.rmtree(run, ignore_errors=True)
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(fetch, range(4))) == [(True, 1, 1)] * 4
        assert names(run) == ["step-00000001"]


def test_a_directory_is_a_store_too(tmp_path: Path) -> None:
    settings = CheckpointSettings(keep=1, store=str(tmp_path / "store"))
    save_steps(tmp_path / "a" / "run", settings, 1, 2)
    assert newest(tmp_path / "b" / "run", settings) == (2, 1)
    place = tmp_path / "store" / "run" / "checkpoints" / "step-00000002"
    assert [path.name for path in place.iterdir()] == ["attempt-000001"]


def test_a_run_moved_to_an_empty_disk_ends_with_the_same_bits(finished: Finished, tmp_path: Path) -> None:
    here, moved, log = tmp_path / "a" / "run", tmp_path / "b" / "run", tmp_path / "log"
    kept = f"checkpoint.store={tmp_path / 'kept'}"
    here.mkdir(parents=True)
    (here / "stop").touch()
    assert end(start(finished.recipe, here, log, kept, alone=True)) == 75, log.read_text()
    assert end(start(finished.recipe, moved, log, kept, alone=True)) == 0, log.read_text()
    assert "going on from the checkpoint at step 1 " in log.read_text()
    assert (moved / "metrics.jsonl").read_text().startswith((here / "metrics.jsonl").read_text())
    expected, resumed = load_run(finished.folder), load_run(moved)
    assert expected.step == resumed.step
    for part in ("model", "optimizer"):
        mine, its = getattr(resumed, part), getattr(expected, part)
        assert mine.keys() == its.keys() and all(torch.equal(mine[name], its[name]) for name in its)
    assert committed(open_store(tmp_path / "kept"), "run")[-1] == f"step-{resumed.step:08d}/attempt-000002"
