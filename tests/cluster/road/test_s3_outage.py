"""A training run whose store's server goes away and comes back, or does not."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from sharding.storage.store import open_store
from tests.support.commands import checkpoints, reelscale, running, succeeded
from tests.support.s3 import running_s3
from tests.support.training.checkpoints import load_newest

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]  # whole commands, on a machine that may be busy


def test_a_server_that_is_gone_for_a_while(
    store: Path, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_s3() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        url = f"s3://{server.bucket}/store"
        remote = open_store(url)
        for path in store.rglob("*"):
            if path.is_file():
                remote.put_file(str(path.relative_to(store)), path)
        long = ("schedule.epochs=60", "launcher=none", "checkpoint.every_steps=1000")
        train = ("pretrain", recipe, f"data.store={url}", *long)
        succeeded(reelscale(*train, "run=whole", folder=tmp_path, environment=server.environment))
        with running(
            *train, "run=run", "data.patience_seconds=120", folder=tmp_path, environment=server.environment
        ) as command:
            command.until(lambda: "step 10/" in command.out)
            server.kill()
            command.until(lambda: "is gone (" in command.out)
            time.sleep(5)
            server.start()
            command.until(lambda: "is back after" in command.out)
            assert command.exit_code() == 0, command.said
        with running(
            *train, "run=short", "data.patience_seconds=3", folder=tmp_path, environment=server.environment
        ) as command:
            command.until(lambda: "step 10/" in command.out)
            server.kill()
            assert command.exit_code() == 75, command.said
            server.start()
            assert "with everything saved" in command.out and "Traceback" not in command.err, command.said
        assert checkpoints(tmp_path / "short")[-1] >= 10
        succeeded(reelscale(*train, "run=short", folder=tmp_path, environment=server.environment))
    whole, run, short = (load_newest(tmp_path / name) for name in ("whole", "run", "short"))
    assert whole and run and short and whole.step == run.step == short.step == 120
    for name, value in whole.model.items():
        assert torch.equal(value, run.model[name]) and torch.equal(value, short.model[name]), name
