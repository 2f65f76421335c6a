"""The whole road through the command line with Ray: shard, pretrain, stop, kill, go on, fine-tune, evaluate, report."""

from __future__ import annotations

import json
import os
import re
import signal
import urllib.request
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.conftest import SMALL, class_folders
from tests.cluster.running import Command, checkpoints, gone, reelscale, running, succeeded, train_steps

STEPS = 80

pytestmark = pytest.mark.timeout(900)  # whole commands, on a machine that may be busy


def scraped(command: Command) -> dict[str, float]:
    """Value of each metric without labels, from the URL that the command printed."""
    url = command.until(lambda: re.search(r"metrics at (http://127\.0\.0\.1:\d+/metrics)", command.out))[1]
    with urllib.request.urlopen(url, timeout=30) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {family.name: family.samples[0].value for family in families if family.samples}


def test_the_whole_road(corpus: Path, pieces: list[Path], recipe: Path, tmp_path: Path) -> None:
    run, tuned = tmp_path / "run", tmp_path / "tuned"
    store, other = tmp_path / "store", tmp_path / "other"
    ray = ("launcher=ray",)
    succeeded(reelscale("shard", corpus, store, *SMALL, *ray, folder=tmp_path))
    more = class_folders(tmp_path / "more", pieces, ["fast", "odd", "slow"])
    succeeded(reelscale("shard", more, other, *SMALL, "launcher=none", "workers=1", folder=tmp_path))

    command = (
        "pretrain", recipe, f"data.store={store}", f"run={run}", "ranks=2",
        f"schedule.epochs={STEPS // 2}", "checkpoint.every_steps=4", *ray,
    )  # fmt: skip
    with running(*command, folder=tmp_path) as first:
        values = scraped(first)
        assert values["reelscale_train_steps"] in (0, STEPS) and "reelscale_train_loss" in values
        first.until(lambda: checkpoints(run))
        os.kill(first.process.pid, signal.SIGINT)
        assert first.exit_code() == 75, first.said
        assert "with everything saved" in first.out and "Traceback" not in first.err
    reached = checkpoints(run)[-1]
    assert reached == train_steps(run)[-1] < STEPS

    with running(*command, folder=tmp_path) as second:
        second.until(lambda: checkpoints(run)[-1] > reached)
        assert f"going on from the checkpoint at step {reached} of {STEPS}" in (run / "train.log").read_text()
        second.kill()
        assert gone(list(second.descendants())), second.descendants()
    reached = checkpoints(run)[-1]
    assert reached < STEPS

    third = succeeded(reelscale(*command, folder=tmp_path))
    assert f"going on from the checkpoint at step {reached} of {STEPS}" in third.stdout
    assert f"step {STEPS}/{STEPS}" in third.stdout and checkpoints(run)[-1] == STEPS
    assert set(train_steps(run)) == set(range(1, STEPS + 1))

    finetune = ("finetune", recipe, f"data.store={other}", f"run={tuned}", f"init.run={run}", *ray)
    result = succeeded(reelscale(*finetune, folder=tmp_path))
    assert f"starting from {run}, step {STEPS}, classifier new" in result.stdout
    assert json.loads((tuned / "classes.json").read_text()) == ["fast", "odd", "slow"]

    (tmp_path / "evaluate.yaml").write_text(f"run: {tuned}\nclips: 2\n")
    result = succeeded(reelscale("evaluate", "evaluate.yaml", "--json", *ray, folder=tmp_path))
    found = json.loads(result.stdout)
    assert found["videos"] == 9 and 9 <= found["clips"] <= 18 and found["classes"] == ["fast", "odd", "slow"]
    assert 0 <= found["video1"] <= found["video5"] == 1 and 0 <= found["clip1"] <= 1
    assert json.loads((tuned / "evaluation" / "summary.json").read_text()) == found

    succeeded(reelscale("evaluate", "evaluate.yaml", "launcher=none", "--json", folder=tmp_path))
    assert json.loads((tuned / "evaluation" / "summary.json").read_text()) == found

    result = succeeded(reelscale("report", run, tuned, folder=tmp_path))
    page = Path(result.stdout.strip()).read_text()
    assert Path(result.stdout.strip()) == tuned / "report" / "report.html"
    assert "<html" in page and "tuned" in page and page.count("data:image/png;base64,") == 7
