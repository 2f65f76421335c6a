"""Checkpoints in a store under damage, kills, outages and two attempts at once: whole or not seen, and fenced."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pretrain.checkpoints import remote
from pretrain.checkpoints.attempts import Superseded
from pretrain.checkpoints.checkpoint import CheckpointSettings
from sharding.base.errors import UserError
from sharding.storage.store import Store, open_store
from tests.support.network_faults import fault_proxy
from tests.support.s3 import S3Server, free_port
from tests.support.training.checkpoints import begin_attempt, begin_run, committed, made, names, newest, save_steps
from tests.support.training.saving_process import saving

pytestmark = pytest.mark.slow


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
    save_steps(tmp_path / "a" / "run", settings, 1, 2)
    damage(open_store(url), "run/checkpoints/step-00000002/attempt-000001")
    empty = tmp_path / "b" / "run"
    assert newest(empty, settings) == (1, 1)
    assert "step 2" in run_log.text and "damaged" in run_log.text
    assert names(empty) == ["step-00000001"]


def test_damage_here_is_mended_from_the_store(tmp_path: Path, settings: CheckpointSettings) -> None:
    run = tmp_path / "run"
    save_steps(run, settings, 1, 2)
    (run / "checkpoints" / "step-00000002" / "model.safetensors").write_bytes(b"torn")
    assert newest(run, settings) == (2, 1)
    shutil.rmtree(run / "checkpoints" / "step-00000002")
    assert newest(run, CheckpointSettings()) == (1, 1)
    assert newest(run, settings) == (2, 1)
    assert names(run) == ["step-00000001", "step-00000002"]


def test_an_upload_that_was_killed_is_not_seen(tmp_path: Path, url: str, server: S3Server) -> None:
    run, settings = tmp_path / "run", CheckpointSettings(keep=2, store=url)
    store = open_store(url)
    save_steps(run, settings, 1)
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
    save_steps(run, settings, 3)
    assert store.list("run/checkpoints/step-00000002/") == []
    assert committed(store, "run") == ["step-00000001/attempt-000001", "step-00000003/attempt-000003"]


def test_a_killed_download_leaves_nothing_for_long(tmp_path: Path, settings: CheckpointSettings) -> None:
    save_steps(tmp_path / "a" / "run", settings, 1)
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


def test_a_store_that_cannot_be_reached_does_not_end_training(
    tmp_path: Path, url: str, server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_PATIENCE", 0.1)
    run, settings, store = tmp_path / "run", CheckpointSettings(keep=1, store=url), open_store(url)
    store.list()  # it is connected
    with fault_proxy(server.environment["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        saver = save_steps(run, settings, 1)
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


def test_a_directory_that_cannot_be_made_is_told_at_the_start(tmp_path: Path) -> None:
    run, settings = tmp_path / "run", CheckpointSettings(store="/proc/nope")
    for _ in range(2):  # first its attempt is claimed, then its settings are kept before that
        with pytest.raises(UserError, match="checkpoints cannot be kept at /proc/nope/run") as refused:
            begin_attempt(run, settings)
        assert refused.value.where == "checkpoint.store"
        begin_run(run, seed=1)


def test_two_attempts_on_two_machines(tmp_path: Path, url: str, settings: CheckpointSettings) -> None:
    here, moved = tmp_path / "a" / "run", tmp_path / "b" / "run"
    old = save_steps(here, settings, 1)
    assert newest(moved, settings) == (1, 1)
    new = save_steps(moved, settings)
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
    old = save_steps(here, settings.model_copy(update={"keep": 1}), 1)
    save_steps(moved, settings, 2)
    monkeypatch.setattr(old, "_fence", lambda: None)  # as if it had looked a moment before
    old.save(made(2, 0.1))
    old.save(made(3, 0.1))
    old.finish()
    assert newest(tmp_path / "c" / "run", settings) == (2, 2)
    assert "step-00000002/attempt-000002" in committed(open_store(url), "run")
