"""A run of two ranks, of which one is stopped: the other one says that it does not get on, and that it lives."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.cluster.monitor.conftest import Answer, ask
from tests.support.commands import running

pytestmark = [pytest.mark.slow, pytest.mark.cluster, pytest.mark.timeout(900)]


def test_a_rank_that_waits_for_a_stopped_one_is_not_ready_until_that_goes_on(
    store: Path, recipe: Path, tmp_path: Path
) -> None:
    targets = tmp_path / "targets"
    with running(
        "pretrain", recipe, f"data.store={store}", "launcher=none", "ranks=2", "run=run", "schedule.epochs=100000",
        "checkpoint.every_steps=1000000", "validation.every_steps=1000000",
        "pulse.lost_seconds=3600", "monitor.ready.stall_seconds=2", f"monitor.targets={targets}", folder=tmp_path,
    ) as command:  # fmt: skip
        command.until(lambda: "step 2/" in command.out)
        places = {int(file.stem[-5:]): _place(file) for file in targets.iterdir()}
        assert sorted(places) == [0, 1] and len(set(places.values())) == 2
        ranks = command.ranks()
        command.until(lambda: _ready(places[0]).status == _ready(places[1]).status == 200)
        page = ask(places[1]).text
        assert 'rank="1",run="run"' in page and "reelscale_ready{" in page

        os.kill(ranks[1], signal.SIGSTOP)
        stalled = command.until(lambda: (answer := _ready(places[0])).status == 503 and answer)
        assert stalled.text.startswith("no step for ") and stalled.text.endswith("(limit 2 s)\n")
        assert ask(places[0], "/healthz").status == 200
        assert _gauge(ask(places[0])) == 0

        os.kill(ranks[1], signal.SIGCONT)
        command.until(lambda: _ready(places[0]).status == _ready(places[1]).status == 200)

        os.kill(command.process.pid, signal.SIGTERM)
        assert command.exit_code() == 75, command.said
        assert list(targets.iterdir()) == [], "they end in order"


def test_a_rank_that_is_killed_leaves_its_file(store: Path, recipe: Path, tmp_path: Path) -> None:
    targets = tmp_path / "targets"
    with running(
        "pretrain", recipe, f"data.store={store}", "launcher=none", "ranks=1", "run=run", "schedule.epochs=100000",
        f"monitor.targets={targets}", folder=tmp_path,
    ) as command:  # fmt: skip
        command.until(lambda: "step 1/" in command.out)
        os.kill(command.ranks()[0], signal.SIGKILL)
        assert command.exit_code() == 1
    assert [file.name.startswith("run-") for file in targets.iterdir()] == [True]


def test_a_secret_is_in_no_word_that_others_see(store: Path, recipe: Path, tmp_path: Path) -> None:
    secret = "c0ffee-of-a-test"
    targets, file = tmp_path / "targets", tmp_path / "secret"
    file.write_text(secret)
    with running(
        "pretrain", recipe, f"data.store={store}", "launcher=none", "ranks=1", "run=run", "schedule.epochs=100000",
        "monitor.address=0.0.0.0", "monitor.port=0", "monitor.access.secret_file=secret", "monitor.targets=targets",
        folder=tmp_path,
    ) as command:  # fmt: skip
        command.until(lambda: "step 1/" in command.out)
        (place,) = [_place(file) for file in targets.iterdir()]
        assert urlsplit(place).hostname not in ("0.0.0.0", "127.0.0.1")
        assert ask(place).status == 401 and ask(place, Authorization=f"Bearer {secret}").status == 200
        words = [word for words in command.descendants().values() for word in words]
        assert not any(secret in word for word in words)
        os.kill(command.process.pid, signal.SIGTERM)
        assert command.exit_code() == 75, command.said
    assert secret not in command.said and "crosses the network in the clear" in command.out
    kept = [path for path in (tmp_path / "run").rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert kept == []


def _place(file: Path) -> str:
    (entry,) = json.loads(file.read_text())
    return f"http://{entry['targets'][0]}"


def _ready(place: str) -> Answer:
    return ask(place, "/readyz")


def _gauge(answer: Answer) -> float:
    (line,) = [line for line in answer.text.splitlines() if line.startswith("reelscale_ready{")]
    return float(line.split()[-1])
