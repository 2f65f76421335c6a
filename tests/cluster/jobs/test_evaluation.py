"""The job `evaluate` as a command: it goes on where it was stopped, and outlives its workers."""

from __future__ import annotations

import json
import os
import shutil
import signal
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from cluster.jobs.evaluation import _with_absolute_paths
from pretrain.evaluation.evaluate import EvaluateSettings
from tests.cluster.conftest import SMALL, Say, class_folders
from tests.support.commands import Command, evaluation_summary, reelscale, refused, running, succeeded
from tests.support.training.evaluations import spoil

pytestmark = pytest.mark.timeout(900)  # whole commands, on a machine that may be busy

LONG = ("clips=300", "batch=1")  # some of a second a video


@pytest.fixture(scope="module")
def whole(begun: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The summary of an evaluation that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    run = shutil.copytree(begun, folder / "run")
    (folder / "none.yaml").write_text(f"run: {run}\nlauncher: none\n")
    return evaluation_summary(succeeded(reelscale("evaluate", "none.yaml", "--json", *LONG, folder=folder)).stdout)


def partial_scores(run: Path) -> list[Path]:
    return list(run.glob("evaluation/*/pieces/*.parquet"))


@pytest.mark.cluster
def test_an_evaluation_goes_on_where_it_was_stopped(begun: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    run = shutil.copytree(begun, tmp_path / "run")
    (tmp_path / "none.yaml").write_text(f"run: {run}\nlauncher: none\n")
    command = ("evaluate", "none.yaml", "--json", *LONG)
    with running(*command, folder=tmp_path) as first:
        first.until(lambda: partial_scores(run))
        (url,) = [line.split()[2] for line in first.err.splitlines() if line.startswith("metrics at ")]
        page = urllib.request.urlopen(url, timeout=60).read().decode()
        first.kill()
    assert "reelscale_evaluate_videos_total{node=" in page and 'outcome="good",rank="0",run="run"} ' in page
    assert "reelscale_evaluate_remaining_videos{" in page
    there = len(partial_scores(run))
    with running(*command, folder=tmp_path) as second:
        second.until(lambda: len(partial_scores(run)) > there)
        second.process.send_signal(signal.SIGTERM)
        assert second.exit_code() == 75, second.said
    assert "of 6 videos are scored already" in second.err and "Traceback" not in second.err
    assert not list(run.glob("evaluation/*/*.*"))
    last = succeeded(reelscale(*command, folder=tmp_path))
    assert int(last.stderr.partition(" of 6 videos are scored already")[0].split()[-1]) >= 2
    assert evaluation_summary(last.stdout) == whole and not partial_scores(run)


@pytest.mark.cluster
def test_a_worker_of_ray_that_dies_is_replaced(begun: Path, whole: dict[str, Any], tmp_path: Path) -> None:
    """The network is read once, by the command: the others need no checkpoint."""
    run = shutil.copytree(begun, tmp_path / "run")
    (tmp_path / "ray.yaml").write_text(f"run: {run}\nlauncher: ray\nworkers: 2\n")

    def scoring(command: Command) -> list[int]:
        return [pid for pid, words in command.descendants().items() if words[0].startswith("ray::scoring")]

    with running("evaluate", "ray.yaml", "--json", *LONG, folder=tmp_path) as command:
        command.until(lambda: partial_scores(run))
        (run / "checkpoints").rename(tmp_path / "elsewhere")
        os.kill(command.until(lambda: scoring(command))[0], signal.SIGKILL)
        assert command.exit_code() == 0, command.said
    assert "begins anew: its worker is gone (" in command.err and "Traceback" not in command.err
    found = evaluation_summary(command.out)
    assert {name: found[name] for name in ("videos", "clips", "clip1", "video1", "per_class")} == {
        name: whole[name] for name in ("videos", "clips", "clip1", "video1", "per_class")
    }


@pytest.mark.cluster
def test_seven_videos_over_three_workers_of_ray(begun: Path, pieces: list[Path], tmp_path: Path) -> None:
    """One of them damaged, three crops of each clip: the figures are those of one process."""
    corpus = class_folders(tmp_path / "corpus", pieces, ["calm", "lively"])
    shutil.copyfile(pieces[1], corpus / "val" / "calm" / "seventh.mp4")
    succeeded(reelscale("shard", corpus, tmp_path / "seven", *SMALL, "launcher=none", folder=tmp_path))
    (key,) = spoil(str(tmp_path / "seven"), [3])
    summaries = []
    for launcher in ("none", "ray"):
        run = shutil.copytree(begun, tmp_path / f"run-{launcher}")
        (tmp_path / "job.yaml").write_text(f"run: {run}\nstore: {tmp_path / 'seven'}\nlauncher: {launcher}\n")
        settings = ("clips=3", "crops=3", "average=logits", *(("workers=3", "batch=2") if launcher == "ray" else ()))
        done = succeeded(reelscale("evaluate", "job.yaml", "--json", *settings, folder=tmp_path))
        assert done.stderr.count(f"damaged: sample {key}") == 1
        summaries.append(evaluation_summary(done.stdout))
    one, three = summaries
    assert (one["videos"], one["damaged"], one["clips"]) == (7, 1, 21)
    assert three.pop("calibration")["ece"] == pytest.approx(one.pop("calibration")["ece"], abs=1e-5)
    errors = [summary.pop("errors") for summary in summaries]
    assert [error["key"] for error in errors[0]] == [error["key"] for error in errors[1]]
    assert three == one


def test_what_cannot_be_fused_is_refused_at_once(say: Say, begun: Path, tmp_path: Path) -> None:
    (tmp_path / "none.yaml").write_text(f"run: {begun}\nlauncher: none\n")
    refused(say("evaluate", "none.yaml", "fuse.run=nowhere", *LONG), "not a run's folder", str(tmp_path / "nowhere"))
    refused(say("evaluate", "none.yaml", f"fuse.run={begun}", *LONG), "no evaluation to fuse", str(begun))
    assert not (begun / "evaluation").exists()


def test_damage_is_named_and_too_much_of_it_refused(say: Say, begun: Path, store: Path, tmp_path: Path) -> None:
    run, copied = shutil.copytree(begun, tmp_path / "run"), shutil.copytree(store, tmp_path / "copied")
    (key,) = spoil(str(copied), [2])
    (tmp_path / "none.yaml").write_text(f"run: {run}\nstore: {copied}\nlauncher: none\nclips: 1\n")
    refused(say("evaluate", "none.yaml", "damaged=0"), "damaged videos: 1 of 6; damaged=0 allows 0", key)
    done = say("evaluate", "none.yaml")
    assert done.returncode == 0 and "1, counted as wrong" in done.stdout, done.stderr
    for words in ("1 clip x the centre crop of 16 pixels", "clip@1 ", "video@1, mean class", "ECE ", " to "):
        assert words in done.stdout
    assert done.stderr.count(f"damaged: sample {key}") == 1 and "are scored already" in done.stderr
    (path,) = run.glob("evaluation/*/summary.json")
    found = json.loads(path.read_text())
    assert (found["videos"], found["damaged"]) == (6, 1) and found["clip1"] == found["video1"] <= 5 / 6


def test_the_version_is_told(say: Say) -> None:
    told = say("--version")
    assert told.returncode == 0 and told.stdout.split()[0] == "reelscale" and told.stdout.count(".") == 2


@pytest.mark.parametrize(("store", "expected"), [(None, None), ("", None), ("s3://a/b", "s3://a/b"), ("/a", "/a")])
def test_no_store_is_named_by_an_empty_text_either(store: str | None, expected: str | None) -> None:
    assert _with_absolute_paths(EvaluateSettings(run="/run", store=store)).store == expected
