"""Weights & Biases by its own library: offline, without a key, and with a server that is not there."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pretrain.engine.distributed import free_port
from pretrain.tracking.settings import TrackingSettings, WandbSettings
from pretrain.tracking.trackers import trackers
from sharding.base.errors import UserError

_BLOCK, _HEAD = 32768, 7  # bytes of a file's blocks, and of what is before its first record and before each part
_WHOLE, _LAST = 1, 4  # kinds of part


def records(path: Path) -> Iterator[Any]:
    """The records of a W&B file, which are in LevelDB's log format."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, position, record = path.read_bytes(), _HEAD, b""
    while position + _HEAD <= len(data):
        if _BLOCK - position % _BLOCK < _HEAD:
            position += _BLOCK - position % _BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + _HEAD])
        record += data[position + _HEAD : position + _HEAD + length]
        position += _HEAD + length
        if kind in (_WHOLE, _LAST):
            yield Record.FromString(record)
            record = b""


@pytest.fixture()
def no_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nobody's key, and no server of W&B's: a port of this machine's on which nothing answers."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    import wandb

    wandb.teardown()  # it has read the environment by then


def follow(folder: Path, begins: bool = True, **settings: Any) -> None:
    """A run of three steps and a validation."""
    asked = TrackingSettings(wandb=WandbSettings(project="videos", **settings))
    with trackers(asked, folder, "run0123", {"seed": 7}, begins) as ready:
        for tracker in ready:
            tracker.rewind(0)
            for step in (1, 2, 3):
                tracker.event("train", {"step": step, "loss": 1 / step, "grad_norm": None})
            tracker.event("validation", {"step": 3, "clip1": 0.5})


def test_a_run_offline_twice_is_one_run(no_account: None, tmp_path: Path) -> None:
    folder = tmp_path / "a-run"
    folder.mkdir()
    for _ in range(2):
        follow(folder, mode="offline", tags=["ucf"])
        time.sleep(1.1)  # W&B names a folder by the second
    files = sorted(folder.glob("wandb/offline-run-*/*.wandb"))
    assert len(files) == 2
    for path in files:
        entries = list(records(path))
        run = next(each.run for each in entries if each.WhichOneof("record_type") == "run")
        assert (run.run_id, run.project, run.display_name, list(run.tags)) == ("run0123", "videos", "a-run", ["ucf"])
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config["seed"] == 7
        rows = [
            {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in each.history.item}
            for each in entries
            if each.WhichOneof("record_type") == "history"
        ]
        figures = [{name: value for name, value in row.items() if not name.startswith("_")} for row in rows]
        assert figures == [
            {"step": 1, "train/loss": 1.0},
            {"step": 2, "train/loss": 0.5},
            {"step": 3, "train/loss": pytest.approx(1 / 3)},
            {"step": 3, "validation/clip1": 0.5},
        ]


def test_without_a_key(no_account: None, tmp_path: Path, run_log: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match="No API key configured") as error:
        follow(tmp_path)
    assert error.value.where == "tracking.wandb" and "WANDB_API_KEY" in error.value.remedy
    follow(tmp_path, begins=False)
    assert "No API key configured" in run_log.text and "training goes on without it" in run_log.text


def test_a_server_that_does_not_answer(
    no_account: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_log: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setattr("pretrain.tracking.weights_and_biases._BEGIN_SECONDS", 2.0)
    follow(tmp_path)
    assert "Weights & Biases takes no figures" in run_log.text and "training goes on without it" in run_log.text
    assert "0" * 40 not in run_log.text
