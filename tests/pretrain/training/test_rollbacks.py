"""The count of roll-backs in a run's folder."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pretrain.settings import DataSettings, TrainSettings
from pretrain.training.rollbacks import Rollback, decoded, keep, kept


def test_writers_of_one_process_id_do_not_meet(tmp_path: Path) -> None:
    """A trainer that was thought dead may write on another host, whose containers have the same process ids."""
    settings, together = TrainSettings(data=DataSettings(store="store")), threading.Barrier(4)

    def write(attempt: int) -> None:
        for _ in range(20):
            together.wait()
            keep(Rollback(step=5, attempt=attempt, times=1, passed_over=0), tmp_path, settings)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    last = decoded(kept(tmp_path, settings.checkpoint), settings)
    assert last is not None and last.step == 5
    assert [each.name for each in tmp_path.iterdir()] == ["rollbacks.json"]
