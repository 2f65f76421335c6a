"""The whole road through the command line with Ray: pretrain, kill, stop, go on, fine-tune, evaluate, report."""

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
from tests.support.commands import Command, checkpoints, gone, reelscale, running, succeeded, train_steps

STEPS = 80

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]  # whole commands, on a machine that may be busy


def scraped(command: Command) -> dict[str, float]:
    """Value of each metric without labels, from the URL that the command printed."""
    url = command.until(lambda: re.search(r"metrics at (http://127\.0\.0\.1:\d+/metrics)", command.out))[1]
    with urllib.request.urlopen(url, timeout=30) as answer:
        families = list(text_string_to_metric_families(answer.read().decode()))
    return {family.name: family.samples[0].value for family in families if family.samples}


def train_workers(command: Command) -> list[int]:
    """Pids of the ranks that Ray runs for a command."""
    return [pid for pid, words in command.descendants().items() if "RayTrainWorker" in words[0]]


def test_the_whole_road(store: Path, pieces: list[Path], recipe: Path, ray: dict[str, str], tmp_path: Path) -> None:
    run, tuned, other = tmp_path / "run", tmp_path / "tuned", tmp_path / "other"
    more = class_folders(tmp_path / "more", pieces, ["fast", "odd", "slow"])
    succeeded(reelscale("shard", more, other, *SMALL, "launcher=none", "workers=1", folder=tmp_path))
    by_ray, alone = ("launcher=ray", "ranks=2"), ("launcher=none", "ranks=1")
    command = (
        "pretrain", recipe, f"data.store={store}", f"run={run}",
        f"schedule.epochs={STEPS // 2}", "checkpoint.every_steps=4",
    )  # fmt: skip

    with running(*command, *by_ray, folder=tmp_path) as first:
        values = scraped(first)
        assert values["reelscale_train_steps"] == STEPS
        first.until(lambda: checkpoints(run))
        first.kill()
        # Ray's own agents outlive the command by a minute or two; what trains must not.
        assert gone(train_workers(first))
    reached = checkpoints(run)[-1]
    assert reached < STEPS

    with running(*command, *by_ray, folder=tmp_path) as second:
        second.until(lambda: checkpoints(run)[-1] > reached)
        os.kill(train_workers(second)[-1], signal.SIGKILL)
        second.until(lambda: "training again, " in second.out)
        os.kill(second.process.pid, signal.SIGTERM)
        assert second.exit_code() == 75, second.said
        assert f"going on from the checkpoint at step {reached} of {STEPS}" in second.out
        assert "with everything saved" in second.out and "Traceback" not in second.err
    reached = checkpoints(run)[-1]
    assert reached == train_steps(run)[-1] < STEPS

    # Another launcher and another number of ranks may carry the same run to its end.
    third = succeeded(reelscale(*command, *alone, folder=tmp_path))
    assert f"going on from the checkpoint at step {reached} of {STEPS}" in third.stdout
    assert f"step {STEPS}/{STEPS}" in third.stdout and checkpoints(run)[-1] == STEPS
    assert train_steps(run) == list(range(1, STEPS + 1))

    finetune = ("finetune", recipe, f"data.store={other}", f"run={tuned}", f"init.run={run}", *by_ray)
    result = succeeded(reelscale(*finetune, "--json", folder=tmp_path, environment=ray))
    assert f"starting from {run}, step {STEPS}, classifier new" in result.stderr
    assert json.loads(result.stdout)["outcome"] == "finished" and json.loads(result.stdout)["step"] == 6
    assert json.loads((tuned / "classes.json").read_text()) == ["fast", "odd", "slow"]

    (tmp_path / "evaluate.yaml").write_text("run: tuned\nstore: other\nclips: 2\n")
    evaluate = ("evaluate", "evaluate.yaml", "--json", "launcher=ray")
    result = succeeded(reelscale(*evaluate, folder=tmp_path, environment=ray))
    printed = json.loads(result.stdout)
    assert printed["videos"] == 9 and 9 <= printed["clips"] <= 18 and printed["classes"] == ["fast", "odd", "slow"]
    assert 0 <= printed["video1"] <= printed["video5"] == 1 and 0 <= printed["clip1"] <= 1
    (summary,) = (tuned / "evaluation").glob("*/summary.json")
    assert str(summary.parent) == printed["folder"] and json.loads(summary.read_text()) == printed

    succeeded(reelscale("evaluate", "evaluate.yaml", "launcher=none", "--json", folder=tmp_path))
    assert json.loads(summary.read_text()) == printed

    result = succeeded(reelscale("report", run, tuned, folder=tmp_path))
    page = Path(result.stdout.strip())
    assert page == tuned / "comparison" / "report.html"
    assert [len(list(page.parent.glob(each))) for each in ("*.png", "*/*.png", "*/report.html")] == [2, 2 + 5, 2]
    assert "<html" in page.read_text() and page.read_text().count("data:image/png;base64,") == 4
