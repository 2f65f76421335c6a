"""The road on a real S3 server: shard, pretrain and evaluate with nothing in between but the store's URL."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cluster.conftest import SMALL
from tests.cluster.running import checkpoints, reelscale, refused, succeeded

pytestmark = pytest.mark.timeout(900)  # whole commands, on a machine that may be busy


def test_shard_pretrain_and_evaluate_on_s3(
    corpus: Path, store: Path, recipe: Path, s3: tuple[dict[str, str], str], tmp_path: Path
) -> None:
    environment, bucket = s3
    url = f"s3://{bucket}/road/small"
    shard = ("shard", corpus, url, *SMALL, "launcher=none", "workers=1", "--json")
    made = json.loads(succeeded(reelscale(*shard, folder=tmp_path, environment=environment)).stdout)
    there = json.loads(succeeded(reelscale("shards", "inspect", store, "--json", folder=tmp_path)).stdout)
    assert made["store"] == url
    assert {**made, "store": None} == {**there, "store": None}

    pretrain = ("pretrain", recipe, f"data.store={url}", "launcher=none")
    result = succeeded(reelscale(*pretrain, folder=tmp_path, environment=environment))
    run = tmp_path / "runs" / "tiny-small"
    assert checkpoints(run)[-1] == 6 and "step 6/6" in result.stdout
    assert result.stdout.count("global batch ") == 1

    (tmp_path / "evaluate.yaml").write_text(f"run: {run}\nclips: 1\nlauncher: none\n")
    evaluate = ("evaluate", "evaluate.yaml", "--json")
    found = json.loads(succeeded(reelscale(*evaluate, folder=tmp_path, environment=environment)).stdout)
    assert found["videos"] == 6 and found["store"] == url

    wrong = {**environment, "AWS_SECRET_ACCESS_KEY": "not-the-secret"}
    refused(reelscale(*evaluate, folder=tmp_path, environment=wrong), "refused the credentials", url)
