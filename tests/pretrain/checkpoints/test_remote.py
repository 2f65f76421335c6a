"""Checkpoints in a store: whole or not seen, fenced, and enough for a machine with an empty disk."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from pretrain.checkpoints import remote
from pretrain.checkpoints.attempts import Superseded
from pretrain.checkpoints.checkpoint import Checkpoint, CheckpointSettings
from pretrain.checkpoints.checkpointer import Checkpointer
from sharding.base.errors import UserError
from sharding.storage.store import Store, open_store
from tests.pretrain.conftest import Finished, end, start
from tests.support.network_faults import fault_proxy
from tests.support.s3 import S3Server, free_port, running_s3
from tests.support.training.checkpoints import begin_attempt, load_newest, load_run, load_step, started
from tests.support.training.saving_process import is_whole, made, saving


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with running_s3() as running, pytest.MonkeyPatch.context() as patch:
        for name, value in running.environment.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture()
def url(server: S3Server, tmp_path: Path) -> str:
    return f"s3://bucket/{tmp_path.name}"


@pytest.fixture()
def settings(url: str) -> CheckpointSettings:
    return CheckpointSettings(keep=2, store=url)


def save(run: Path, settings: CheckpointSettings, *steps: int, attempt: int | None = None) -> Checkpointer:
    saver = started(run, settings, attempt)
    for step in steps:
        saver.save(made(step, 0.1))
    saver.finish()
    return saver


def newest(run: Path, settings: CheckpointSettings) -> tuple[int, int]:
    """(step, attempt)"""
    found = load_newest(run, settings)
    assert found is not None and is_whole(found)
    return found.step, found.attempt


def committed(store: Store, run: str) -> list[str]:
    found = store.list(f"{run}/checkpoints/")
    return [
        path.removeprefix(f"{run}/checkpoints/").removesuffix("/manifest.json") for path in found if "manif" in path
    ]


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


@pytest.mark.slow
def test_a_run_goes_on_on_an_empty_disk(tmp_path: Path, url: str, settings: CheckpointSettings) -> None:
    here, moved = tmp_path / "a" / "run", tmp_path / "b" / "run"
    assert load_newest(here, settings) is None
    here.mkdir(parents=True)
    lines = [json.dumps({"event": "train", "step": step}) + "\n" for step in (1, 2, 3, 4)]
    (here / "metrics.jsonl").write_text("".join(lines))
    save(here, settings, 1, 2, 3)
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


def begin(run: Path, seed: int) -> None:
    run.mkdir(parents=True, exist_ok=True)
    identity = {"seed": seed, "data": {"index": ["v1"]}}
    (run / "settings.json").write_text(json.dumps({"settings": {}, "identity": identity}))
    (run / "classes.json").write_text('["a"]')


def test_another_run_of_the_same_name_is_refused(tmp_path: Path, settings: CheckpointSettings) -> None:
    first, other = tmp_path / "a" / "run", tmp_path / "b" / "run"
    begin(first, seed=1)
    save(first, settings, 1)
    begin(other, seed=2)
    with pytest.raises(UserError, match=r"another run of this name .seed: 1 there, 2 here"):
        begin_attempt(other, settings)
    begin(other, seed=1)
    assert begin_attempt(other, settings) == 2


def test_an_empty_disk_gets_the_runs_settings_first(tmp_path: Path, settings: CheckpointSettings) -> None:
    first, empty = tmp_path / "a" / "run", tmp_path / "b" / "run"
    Checkpointer(first, settings).fetch_settings()
    assert not (first / "settings.json").exists()
    begin(first, seed=1)
    begin_attempt(first, settings)
    Checkpointer(empty, settings).fetch_settings()
    for name in ("settings.json", "classes.json"):
        assert (empty / name).read_bytes() == (first / name).read_bytes()
    begin(empty, seed=3)
    Checkpointer(empty, settings).fetch_settings()
    assert json.loads((empty / "settings.json").read_text())["identity"]["seed"] == 3


def test_the_newest_may_be_here_or_there(tmp_path: Path, url: str, settings: CheckpointSettings) -> None:
    here, moved = tmp_path / "a" / "run", tmp_path / "b" / "run"
    save(here, settings, 1, 2)
    save(here, CheckpointSettings(keep=2), 3)  # attempt 2, in the folder alone
    assert newest(here, settings) == (3, 2)
    assert newest(moved, settings) == (2, 1)
    save(moved, settings, 4, attempt=begin_attempt(moved, settings))
    # The number 2 was free in the store: the higher step of the same attempt is the newer.
    assert newest(here, settings) == (4, 2)


def flip(store: Store, path: str) -> None:
    body = bytearray(store.get(path))
    body[-1] ^= 1
    store.put(path, bytes(body))


@pytest.mark.parametrize(
    "damage",
    [
        lambda store, place: flip(store, f"{place}/model.safetensors"),
        lambda store, place: store.put(f"{place}/optimizer.safetensors", b""),
        lambda store, place: store.delete(f"{place}/state.json"),
        lambda store, place: store.put(f"{place}/manifest.json", b"{"),
        lambda store, place: store.put(
            f"{place}/manifest.json", store.get(f"{place.replace('2/', '1/')}/manifest.json")
        ),
    ],
)
def test_damage_in_the_store_is_skipped(
    tmp_path: Path,
    url: str,
    settings: CheckpointSettings,
    damage: Callable[[Store, str], object],
    run_log: pytest.LogCaptureFixture,
) -> None:
    save(tmp_path / "a" / "run", settings, 1, 2)
    damage(open_store(url), "run/checkpoints/step-00000002/attempt-000001")
    empty = tmp_path / "b" / "run"
    assert newest(empty, settings) == (1, 1)
    assert "step 2" in run_log.text and "damaged" in run_log.text
    assert names(empty) == ["step-00000001"]


def test_damage_here_is_mended_from_the_store(tmp_path: Path, settings: CheckpointSettings) -> None:
    run = tmp_path / "run"
    save(run, settings, 1, 2)
    (run / "checkpoints" / "step-00000002" / "model.safetensors").write_bytes(b"torn")
    assert newest(run, settings) == (2, 1)
    shutil.rmtree(run / "checkpoints" / "step-00000002")
    assert newest(run, CheckpointSettings()) == (1, 1)
    assert newest(run, settings) == (2, 1)
    assert names(run) == ["step-00000001", "step-00000002"]


@pytest.mark.slow
def test_an_upload_that_was_killed_is_not_seen(tmp_path: Path, url: str, server: S3Server) -> None:
    run, settings = tmp_path / "run", CheckpointSettings(keep=2, store=url)
    store = open_store(url)
    save(run, settings, 1)
    way = fault_proxy(server.environment["AWS_ENDPOINT_URL"])
    with way as proxy, saving(run, 1, url, **server.environment | {"AWS_ENDPOINT_URL": proxy.url}) as child:
        assert child.next() == ("begun", 2)
        proxy.delay = 0.3
        while not any("step-00000002" in path for path in store.list("run/")):
            assert child.process.is_alive()
            time.sleep(0.02)
        child.kill()
    left = store.list("run/checkpoints/step-00000002/")
    assert left and not any("manifest" in path for path in left)
    assert newest(tmp_path / "b" / "run", settings) == (1, 1)
    assert newest(run, settings) == (2, 2)  # it was whole here
    save(run, settings, 3)
    assert store.list("run/checkpoints/step-00000002/") == []
    assert committed(store, "run") == ["step-00000001/attempt-000001", "step-00000003/attempt-000003"]


@pytest.mark.slow
def test_two_attempts_on_two_machines(tmp_path: Path, url: str, settings: CheckpointSettings) -> None:
    here, moved = tmp_path / "a" / "run", tmp_path / "b" / "run"
    old = save(here, settings, 1)
    assert newest(moved, settings) == (1, 1)
    new = save(moved, settings)
    old.save(made(2, 0.1))
    with pytest.raises(Superseded, match=r"attempt 1 .* attempt 2"):
        old.finish()
    store = open_store(url)
    assert committed(store, "run") == ["step-00000001/attempt-000001"]
    new.save(made(2, 0.1))
    new.finish()
    assert committed(store, "run") == ["step-00000001/attempt-000001", "step-00000002/attempt-000002"]
    assert not [path for path in store.list("run/") if "step-00000002/attempt-000001" in path]  # swept
    shutil.rmtree(here)
    assert newest(here, settings) == (2, 2)


def test_a_late_commit_of_an_older_attempt_is_harmless(
    tmp_path: Path, url: str, settings: CheckpointSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, moved = tmp_path / "a" / "run", tmp_path / "b" / "run"
    old = save(here, settings.model_copy(update={"keep": 1}), 1)
    save(moved, settings, 2)
    monkeypatch.setattr(old, "_fence", lambda: None)  # as if it had looked a moment before
    old.save(made(2, 0.1))
    old.save(made(3, 0.1))
    old.finish()
    assert newest(tmp_path / "c" / "run", settings) == (2, 2)
    assert "step-00000002/attempt-000002" in committed(open_store(url), "run")


def test_a_step_saved_again_and_the_best(tmp_path: Path, url: str, settings: CheckpointSettings) -> None:
    run = tmp_path / "run"
    saver = save(run, settings, 1)
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
    save(run, settings, 1, 2)
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
    save(tmp_path / "a" / "run", settings, 1)
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


def test_a_killed_download_leaves_nothing_for_long(tmp_path: Path, settings: CheckpointSettings) -> None:
    save(tmp_path / "a" / "run", settings, 1)
    run = tmp_path / "b" / "run"
    left = run / "checkpoints" / ".fetching-77"
    left.mkdir(parents=True)
    busy = run / "checkpoints" / ".fetching-78"  # another machine's, whose locks may be its own
    busy.mkdir()
    for folder in (left, busy):
        (folder / "model.safetensors").write_bytes(b"half of it")
    for path in (left / "model.safetensors", left, busy):
        os.utime(path, (0, 0))
    assert newest(run, settings) == (1, 1)
    assert names(run) == [".fetching-78", "step-00000001"]


@pytest.mark.slow
def test_a_store_that_cannot_be_reached_does_not_end_training(
    tmp_path: Path, url: str, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_PATIENCE", 0.1)
    run, settings, store = tmp_path / "run", CheckpointSettings(keep=1, store=url), open_store(url)
    store.list()  # it is connected
    with fault_proxy(server.environment["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        saver = save(run, settings, 1)
        proxy.rate = 1.0
        proxy.kinds = ("reset_before",)
        saver.save(made(2, 0.1))
        saver.save(made(3, 0.1))  # does not raise
        with pytest.raises(UserError, match=r"step 3 could not be kept in the store") as refused:
            saver.finish()
        assert str(run / "checkpoints" / "step-00000003") in refused.value.remedy
        assert newest(run, CheckpointSettings()) == (3, 1)
        proxy.rate = 0.0
        saver.save(made(4, 0.1))
        saver.finish()
    assert committed(store, "run") == ["step-00000004/attempt-000001"]


def test_a_wrong_address_is_told_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: S3Server
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{free_port()}")
    with pytest.raises(UserError):
        begin_attempt(tmp_path, CheckpointSettings(store="s3://bucket/x"))
    assert not (tmp_path / "attempts").exists()


def test_a_directory_is_a_store_too(tmp_path: Path) -> None:
    settings = CheckpointSettings(keep=1, store=str(tmp_path / "store"))
    save(tmp_path / "a" / "run", settings, 1, 2)
    assert newest(tmp_path / "b" / "run", settings) == (2, 1)
    place = tmp_path / "store" / "run" / "checkpoints" / "step-00000002"
    assert [path.name for path in place.iterdir()] == ["attempt-000001"]


def test_a_directory_that_cannot_be_made_is_told_at_the_start(tmp_path: Path) -> None:
    run, settings = tmp_path / "run", CheckpointSettings(store="/proc/nope")
    for _ in range(2):  # first its attempt is claimed, then its settings are kept before that
        with pytest.raises(UserError, match="checkpoints cannot be kept at /proc/nope/run") as refused:
            begin_attempt(run, settings)
        assert refused.value.where == "checkpoint.store"
        begin(run, seed=1)


@pytest.mark.slow
@pytest.mark.cluster
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
