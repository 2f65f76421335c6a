"""The count of roll-backs beside a run's checkpoints."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pretrain.checkpoints.checkpointer import Checkpointer
from pretrain.settings import DataSettings, TrainSettings, what_matters
from pretrain.training.rollbacks import Rollback, parse_rollback, rollback_json, rollback_text, write_rollback
from sharding.base.settings import digest


def test_writers_of_one_process_id_do_not_meet(tmp_path: Path) -> None:
    """A trainer that was thought dead may write on another host, whose containers have the same process ids."""
    settings, together = TrainSettings(data=DataSettings(store="store")), threading.Barrier(4)

    def write(attempt: int) -> None:
        for _ in range(20):
            together.wait()
            write_rollback(Rollback(step=5, attempt=attempt, times=1, passed_over=0), Checkpointer(tmp_path), settings)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    last = parse_rollback(rollback_text(Checkpointer(tmp_path)), settings)
    assert last is not None and last.step == 5
    assert [each.name for each in tmp_path.iterdir()] == ["rollbacks.json"]


def test_a_count_that_an_earlier_version_wrote_goes_on() -> None:
    """It knew engine.compute_path as engine.path, and wrote the digest of its own names."""
    settings, rollback = TrainSettings.model_validate({"data": {"store": "s"}}), Rollback(4, 1, 2, 3)
    tree = what_matters(settings)
    tree["engine"]["path"] = tree["engine"].pop("compute_path")
    former = json.loads(rollback_json(rollback, settings)) | {"settings": digest(tree)}
    assert parse_rollback(json.dumps(former), settings) == rollback
