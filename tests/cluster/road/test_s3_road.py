"""The road on a real S3 server: the demo's own commands with nothing changed but the store's URL."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.conftest import SMALL
from tests.support.commands import ROOT, checkpoints, reelscale, refused, succeeded

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]  # whole commands, on a machine that may be busy


def test_a_store_on_s3_holds_what_one_in_a_directory_does(
    corpus: Path, store: Path, s3: tuple[dict[str, str], str], tmp_path: Path
) -> None:
    environment, bucket = s3
    url = f"s3://{bucket}/road/small"
    shard = ("shard", corpus, url, *SMALL, "launcher=none", "workers=1", "--json")
    made = json.loads(succeeded(reelscale(*shard, folder=tmp_path, environment=environment)).stdout)
    there = json.loads(succeeded(reelscale("shards", "inspect", store, "--json", folder=tmp_path)).stdout)
    assert made["store"] == url
    assert {**made, "store": None} == {**there, "store": None}

    wrong = {**environment, "AWS_SECRET_ACCESS_KEY": "not-the-secret"}
    refused(reelscale("shards", "inspect", url, folder=tmp_path, environment=wrong), "refused the credentials", url)


def test_the_demo_runs_on_s3(s3: tuple[dict[str, str], str], tmp_path: Path) -> None:
    environment, bucket = s3
    root, url = tmp_path / "demo", f"s3://{bucket}/demo"
    demo = [sys.executable, "-m", "tests.demo", "--quick", "--root", str(root), "--store", url]
    done = subprocess.run(demo, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"

    assert sorted(path.name for path in root.iterdir()) == [
        "corpora",
        "finished",
        "pipeline",
        "report",
        "runs",
        "store.txt",
    ]
    for corpus, run in (("motion", "pretrain"), ("motion2", "finetune")):
        inspect = ("shards", "inspect", f"{url}/{corpus}", "--json")
        found = json.loads(succeeded(reelscale(*inspect, folder=tmp_path, environment=environment)).stdout)
        assert (found["samples"], len(found["classes"]), sum(found["failures"].values())) == (12, 2, 2)
        assert checkpoints(root / "runs" / run)[-1] == 4
        (path,) = (root / "runs" / run / "evaluation").glob("*/summary.json")
        summary = json.loads(path.read_text())
        assert (summary["videos"], summary["store"]) == (4, f"{url}/{corpus}")
    assert "<img" in (root / "report" / "report.html").read_text()
