"""A user's mistakes: each ends with exit code 2 and one message that says what, where, and what to do."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from tests.cluster.conftest import Say
from tests.support.commands import reelscale, refused, succeeded


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("schedule.epoch=3", ["schedule.epoch", "no such setting", "did you mean", "epochs"]),
        ("model.widht=0.5", ["model.widht", "did you mean width"]),
        ("rank=2", ["rank:", "did you mean", "ranks"]),
        ("monitor.prot=1", ["monitor.prot", "port"]),
        ("lanes=many", ["lanes", "'many'", "integer"]),
        ("schedule.lr=-1", ["schedule.lr", "-1", "greater than 0"]),
        ("model.depth=19", ["model.depth", "19", "18"]),
        ("launcher=slurm", ["launcher", "'slurm'", "'auto', 'ray' or 'none'"]),
        ("lanes 4", ["lanes 4", "key.path=value"]),
        ("=4", ["=4", "key.path=value"]),
        ("lanes=[1", ["lanes", "[1", "YAML"]),
        ("lanes.deep=1", ["lanes.deep", "no fields below"]),
        ("ranks=3", ["2 lanes", "3 ranks", "1, 2"]),
        ("data.clip.crop=17", ["data.clip", "crop 17", "16 x 16", "smaller"]),
        ("model.in_channels=1", ["model.in_channels", "3"]),
        ("lane_batch=1", ["one value a channel", "lane_batch", "lane_batch=2 or more"]),
    ],
)
def test_settings_that_do_not_fit(say: Say, recipe: Path, store: Path, override: str, parts: list[str]) -> None:
    refused(say("pretrain", recipe, f"data.store={store}", override), *parts)
    assert list(Path().iterdir()) == []


def test_all_mistakes_are_told_at_once(say: Say, recipe: Path) -> None:
    refused(
        say("pretrain", recipe, "lanes=many", "model.widht=1"),
        "3 settings",
        "lanes",
        "model.widht",
        "data.store",
    )


def test_files_that_are_no_recipe(say: Say, tmp_path: Path) -> None:
    refused(say("pretrain", "nowhere.yaml"), "no such settings file", "nowhere.yaml", "configs/")
    (tmp_path / "bad.yaml").write_text("lanes: 2\ndata: {store: [\n")
    refused(say("pretrain", "bad.yaml"), "not valid YAML", "bad.yaml, line")
    (tmp_path / "list.yaml").write_text("- lanes\n")
    refused(say("pretrain", "list.yaml"), "found a list", "list.yaml")
    refused(say("evaluate", "nowhere.yaml"), "no such settings file")


def test_stores_that_hold_nothing(say: Say, recipe: Path, tmp_path: Path) -> None:
    for store in ("nowhere", "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        refused(say("pretrain", recipe, f"data.store={store}"), "no shards here", store, "reelscale shard")
        refused(say("shards", "inspect", store), "no shards here", store, "reelscale shard")
    assert not (tmp_path / "nowhere").exists()


def test_a_run_to_start_from_that_is_none(say: Say, recipe: Path, store: Path, tmp_path: Path) -> None:
    refused(say("finetune", recipe, f"data.store={store}"), "none is named", "init.run=RUN")
    (tmp_path / "letters").mkdir()
    for run in ("letters", "nowhere"):
        refused(say("finetune", recipe, f"data.store={store}", f"init.run={run}"), "not a run's folder", run)
        (tmp_path / "evaluate.yaml").write_text(f"run: {run}\n")
        refused(say("evaluate", "evaluate.yaml"), "not a run's folder", run)
    refused(say("report", "nowhere"), "nowhere")


def test_a_file_to_start_from_is_to_be_imported_first(say: Say, recipe: Path, store: Path, tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(9)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    told = refused(say("finetune", recipe, f"data.store={store}", "init.run=old.pt"), "old.pt", "reelscale import")
    assert "weights_only" not in told


def test_places_that_cannot_be_written(say: Say, recipe: Path, store: Path, tmp_path: Path) -> None:
    (tmp_path / "afile").write_text("not a folder")
    (tmp_path / "dangling").symlink_to("nowhere")
    for run in ("afile", "afile/run", "dangling"):
        for more in ([], ["--dry-run"]):
            result = say("pretrain", recipe, f"data.store={store}", f"run={run}", "launcher=none", *more)
            refused(result, "is no folder", f"run={run}", str(tmp_path / run.partition("/")[0]))
    refused(say("report", "run", "--out", "afile"), "is no folder", "--out=afile")
    refused(say("pretrain", recipe, f"data.store={store}", "run=~nobody-is-called-so/run"), "~", "without ~")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["afile", "dangling"]


def test_home_is_found_in_paths(
    say: Say, recipe: Path, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    told = succeeded(say("pretrain", recipe, f"data.store={store}", "run=~/run", "--dry-run", "--json")).stdout
    assert json.loads(told)["run"] == str(tmp_path / "home" / "run")
    refused(say("finetune", recipe, f"data.store={store}", "init.run=~/other"), str(tmp_path / "home" / "other"))
    (tmp_path / "evaluate.yaml").write_text("run: ~/other\n")
    refused(say("evaluate", "evaluate.yaml"), str(tmp_path / "home" / "other"))


def test_unknown_commands_and_missing_arguments_end_with_2(say: Say) -> None:
    for arguments in (["pretrian"], ["shard"], ["pretrain"], ["pretrain", "a.yaml", "--dry"]):
        result = say(*arguments)
        assert result.returncode == 2 and "Traceback" not in result.stderr and result.stderr


def test_every_command_explains_itself_with_an_example(say: Say) -> None:
    for command in (
        ["shard"],
        ["shards", "inspect"],
        ["shards", "verify"],
        ["shards", "retry"],
        ["pretrain"],
        ["finetune"],
        ["evaluate"],
        ["report"],
    ):
        result = say(*command, "--help")
        assert result.returncode == 0
        assert f"reelscale {' '.join(command)} " in result.stdout.partition("Example")[2]
    for arguments in (["--help"], ["shards", "--help"]):
        assert "Verify or inspect a store's shards, or retry what failed." in say(*arguments).stdout


def test_a_dry_run_tells_the_derived_quantities_and_writes_nothing(say: Say, recipe: Path, store: Path) -> None:
    printed = succeeded(say("pretrain", recipe, f"data.store={store}", "ranks=2", "--dry-run")).stdout
    names = [line.strip().rsplit("  ", 1)[0].strip() for line in printed.splitlines()]
    for name in (
        "global batch",
        "steps per epoch",
        "epochs",
        "parameters",
        "gmacs per clip",
        "memory per rank",
    ):
        assert name in names, printed
    result = succeeded(say("pretrain", recipe, f"data.store={store}", "ranks=2", "--dry-run", "--json"))
    derived = json.loads(result.stdout)
    assert (derived["global_batch"], derived["steps_per_epoch"], derived["steps"], derived["epochs"]) == (4, 2, 6, 3)
    assert derived["training_samples"] == 6 and derived["classes"] == 2 and derived["ranks"] == 2
    assert derived["parameters"] > 0 and derived["gmacs_per_clip"] > 0 and derived["memory_per_rank_bytes"] > 0
    assert list(Path().iterdir()) == []


@pytest.mark.slow
@pytest.mark.cluster
def test_a_mistake_and_a_dry_run_in_processes_of_their_own(recipe: Path, store: Path, tmp_path: Path) -> None:
    refused(reelscale("pretrain", recipe, f"data.store={store}", "lane=1", folder=tmp_path), "did you mean lanes")
    result = reelscale("pretrain", recipe, f"data.store={store}", "--dry-run", "--json", folder=tmp_path)
    assert json.loads(succeeded(result).stdout)["global_batch"] == 4
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_models_are_told_and_wrong_ones_refused(say: Say) -> None:
    asked = ("models", "--name", "r2plus1d", "--depth", "34", "--frames", "32", "--size", "112", "--classes", "400")
    described = json.loads(succeeded(say(*asked, "--json")).stdout)
    assert (described["parameters"], described["gmacs"]) == (63_697_175, 152.36)
    assert "63,697,175" in succeeded(say(*asked)).stdout
    for options, allowed in (
        (("--name", "r4d"), "'i3d' or 'c3d'"),
        (("--name", "p3d", "--depth", "18"), "bottlenecks"),
        (("--depth", "19"), "10, 16, 18, 26, 34, 50, 101 or 152"),
        (("--frames", "0"), "greater than or equal to 1"),
        (
            ("--frames", "2.5"),
            "integer; it should be greater than or equal to 1",
        ),
        (("--size", "-1"), "greater than or equal to 1"),
        (("--name", "i3d", "--depth", "18"), "i3d has no depth"),
        (("--name", "c3d", "--frames", "8"), "at least 16 frames"),
    ):
        refused(say("models", *options), allowed)


def test_passwords_in_addresses_are_refused_and_neither_shown_nor_kept(
    say: Say, store: Path, corpus: Path, tmp_path: Path
) -> None:
    shutil.copytree(store, tmp_path / "store")
    (tmp_path / "list.csv").write_text("uri,label\na.mp4,walk\n")
    secret = "s3://me:PA55WORD@bucket/x"
    for arguments in (
        ("shard", corpus, secret),
        ("shard", secret, "new"),
        ("shard", "list.csv", "new", "--media", secret),
        ("shard", "list.csv", "new", f"roots=[{secret}]"),
        ("shard", "list.csv", "new", "labels=s3://me:PA55WORD@bucket/names.txt"),
        ("shards", "retry", secret),
        ("shards", "retry", "store", "--media", secret),
        ("shards", "verify", secret),
        ("shards", "inspect", secret),
    ):
        said = say(*arguments)
        assert "PA55WORD" not in said.stdout + refused(said, "holds a password", "s3://***@bucket")
    kept = [path for path in tmp_path.rglob("*") if path.is_file() and b"PA55WORD" in path.read_bytes()]
    assert kept == [] and not (tmp_path / "new").exists()
