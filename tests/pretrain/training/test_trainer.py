"""Whole tiny runs by the command line: finished, stopped, killed, resumed, and refused."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from pretrain.data.sources import MixedStore, open_sources
from pretrain.models.zoo import ModelSettings, build_model
from pretrain.run_folder import Run, read_settings
from pretrain.settings import InitSettings, check_ranks
from pretrain.training.initial_network import start_from
from pretrain.training.preflight import ResolvedRun, preflight
from sharding.base.errors import UserError
from sharding.format.index import merge
from sharding.format.record import from_parquet, record_meta, to_parquet, with_meta
from sharding.storage.store import open_store
from tests.pretrain.conftest import CLASSES, Finished, end, start, write_recipe
from tests.support.training.checkpoints import load_run

pytestmark = pytest.mark.cluster

STEPS = 30


def events(run: Path, kind: str) -> dict[int, dict[str, Any]]:
    """The events of a kind by step; the last one wins."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line for line in lines if line["event"] == kind}


def final(run: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    folder = run / "checkpoints" / f"step-{STEPS:08d}"
    return load_file(folder / "model.safetensors"), load_file(folder / "optimizer.safetensors")


def wait_for(process: subprocess.Popen[bytes], log: Path, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 200
    while not is_so():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.02)


def has_logged(run: Path, lines: int) -> bool:
    path = run / "metrics.jsonl"
    return path.exists() and path.read_text().count('"event": "train"') >= lines


def test_a_run_and_what_it_leaves(finished: Finished) -> None:
    trained = events(finished.folder, "train")
    assert sorted(trained) == list(range(1, STEPS + 1))
    for step, event in trained.items():
        assert set(event) == {
            "event", "step", "epoch", "samples", "loss", "top1", "lr", "grad_norm", "clips_per_second",
            "data_wait_ratio", "saving_ratio", "memory_bytes", "skipped",
        }  # fmt: skip
        assert all(math.isfinite(value) for value in event.values() if not isinstance(value, str))
        assert event["samples"] == 4 * step and event["epoch"] == pytest.approx(step / 10)
        assert event["grad_norm"] > 0 and 0 <= event["top1"] <= 1 and 0 <= event["data_wait_ratio"] <= 1
    assert trained[1]["loss"] == pytest.approx(math.log(len(CLASSES)), abs=0.5)
    assert trained[11]["lr"] == pytest.approx(2 * 0.005)  # the first step after the warm-up, 2 lanes
    validated = events(finished.folder, "validation")
    assert sorted(validated) == [10, 20, 30]
    assert all(event["videos"] == 5 and math.isfinite(event["loss"]) for event in validated.values())
    best = max(validated, key=lambda step: (validated[step]["clip1"], step))  # by rounding, which machines differ in
    kept = [f"step-{step:08d}" for step in sorted({best, 28, 30})]
    assert [path.name for path in sorted((finished.folder / "checkpoints").iterdir())] == kept
    settings, classes = read_settings(finished.folder)
    assert classes == CLASSES and settings.lanes == 2
    derived = json.loads((finished.folder / "settings.json").read_text())["derived"]
    assert derived["steps"] == STEPS and derived["training_samples"] == 13 and derived["classes"] == 6
    said = (finished.folder / "train.log").read_text()
    assert f"step {STEPS}/{STEPS}" in said and "MFU" not in said  # which a CPU has not
    model, optimizer = final(finished.folder)
    fresh = build_model(ModelSettings(depth=10, width=0.125), len(CLASSES), 4)
    assert set(model) == set(fresh.state_dict())
    assert set(optimizer) == {f"momentum_buffer:{name}" for name, _ in fresh.named_parameters()}
    assert int(model["stem.1.num_batches_tracked"]) == STEPS


def test_a_run_stopped_and_killed_ends_with_the_same_bits(finished: Finished, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    process = start(finished.recipe, run, log)
    wait_for(process, log, lambda: has_logged(run, 1))
    os.kill(process.pid, signal.SIGTERM)
    assert end(process) == 75, log.read_text()
    stopped = load_run(run).step
    assert 1 <= stopped < STEPS
    assert f"stopped at step {stopped} with everything saved" in log.read_text()

    lines = (run / "metrics.jsonl").read_text().count('"event": "train"')
    process = start(finished.recipe, run, log)
    wait_for(process, log, lambda: has_logged(run, lines + 5))
    os.kill(process.pid, signal.SIGKILL)
    assert end(process) == -signal.SIGKILL
    assert f"going on from the checkpoint at step {stopped} of {STEPS}" in log.read_text()
    killed = load_run(run).step
    assert stopped < killed < STEPS  # one of every fourth step, none for the kill

    assert end(start(finished.recipe, run, log, alone=True)) == 0, log.read_text()
    assert f"going on from the checkpoint at step {killed} of {STEPS}" in log.read_text()
    for there, here in zip(final(finished.folder), final(run), strict=True):
        assert there.keys() == here.keys()
        assert all(torch.equal(there[name], here[name]) for name in there)
    undisturbed, resumed = events(finished.folder, "train"), events(run, "train")
    assert undisturbed.keys() == resumed.keys()
    for step in undisturbed:
        assert resumed[step]["loss"] == undisturbed[step]["loss"]
    assert events(run, "validation")[STEPS]["loss"] == events(finished.folder, "validation")[STEPS]["loss"]


def test_two_ranks_train_the_same_lanes(finished: Finished, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    # The same 30 steps are planned, and the run is asked to stop before it begins: one step is taken.
    run.mkdir()
    (run / "stop").touch()
    assert end(start(finished.recipe, run, log, "ranks=2")) == 75, log.read_text()
    assert not (run / "stop").exists()
    one, two = events(finished.folder, "train")[1], events(run, "train")[1]
    assert two["loss"] == pytest.approx(one["loss"], rel=1e-5)
    assert two["grad_norm"] == pytest.approx(one["grad_norm"], rel=1e-3)
    assert (two["top1"], two["samples"], two["lr"]) == (one["top1"], one["samples"], one["lr"])
    assert load_run(run).step == 1
    # One rank goes on from what two have left.
    assert end(start(finished.recipe, run, log, alone=True)) == 0, log.read_text()
    assert "going on from the checkpoint at step 1 " in log.read_text()
    assert_close(events(run, "train")[2]["loss"], events(finished.folder, "train")[2]["loss"], rtol=1e-2, atol=0)


def test_a_folder_that_holds_another_run_is_refused(finished: Finished, tmp_path: Path) -> None:
    log = tmp_path / "log"
    before = (finished.folder / "settings.json").read_bytes()
    assert end(start(finished.recipe, finished.folder, log, "seed=5")) == 2
    assert "the folder holds another run (seed: 0 there, 5 here)" in log.read_text()
    assert str(finished.folder) in log.read_text() and "Traceback" not in log.read_text()
    assert (finished.folder / "settings.json").read_bytes() == before


def test_a_run_knows_the_indexes_it_began_with(finished: Finished, other_store: str) -> None:
    settings, _ = read_settings(finished.folder)
    run = Run(finished.folder, writes=False)
    assert run.versions(settings.data) == open_sources(settings.data).versions
    assert Run(finished.folder / "none", writes=False).versions(settings.data) is None
    for change in ({"store": other_store}, {"mix": (MixedStore(store=other_store),)}):
        data = settings.data.model_copy(update=change)
        assert run.versions(data) is None
        with pytest.raises(UserError, match=f"the folder holds another run .*data.{next(iter(change))}"):
            preflight(settings.model_copy(update={"run": str(finished.folder), "data": data}), 1)


def test_another_runs_network_with_a_new_head(finished: Finished, other_store: str, tmp_path: Path) -> None:
    schedule = {"lr": 1e-6, "epoch_clips": 4, "epochs": 1, "warmup_epochs": 0, "decay": "constant"}
    recipe = write_recipe(tmp_path, other_store, init={"run": str(finished.folder)}, schedule=schedule)
    run, log = tmp_path / "run", tmp_path / "log"
    assert end(start(recipe, run, log, command="finetune", alone=True)) == 0, log.read_text()
    assert f"starting from {finished.folder}, step {STEPS}, classifier new" in log.read_text()
    source, tuned = load_run(finished.folder).model, load_run(run).model
    assert tuned["fc.weight"].shape[0] == 2 and source["fc.weight"].shape[0] == 6
    weights = [name for name in tuned if name.endswith("weight") and not name.startswith("fc.")]
    for name in weights:  # one step at a rate of next to nothing
        assert_close(tuned[name], source[name], rtol=1e-3, atol=1e-4)


def test_a_fine_tuning_run_goes_on_without_the_run_it_began_from(
    finished: Finished, other_store: str, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    shutil.copytree(finished.folder, source)
    settings, _ = read_settings(source)
    data = settings.data.model_copy(update={"store": other_store})
    update = {"run": str(tmp_path / "run"), "data": data, "init": InitSettings(run=str(source))}
    tuning = settings.model_copy(update=update)
    preflight(tuning, 1)
    shutil.copytree(source / "checkpoints", tmp_path / "run" / "checkpoints")
    shutil.rmtree(source)
    preflight(tuning, 1)
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    with pytest.raises(UserError, match="not a run's folder"):
        preflight(tuning, 1)


def test_the_same_classes_keep_the_head(finished: Finished) -> None:
    settings, classes = read_settings(finished.folder)
    source = load_run(finished.folder).model
    others = [*classes[:-1], "another"]
    for names, kept in ((classes, True), (classes[::-1], True), (classes[2:] + classes[:2], True), (others, False)):
        model = build_model(settings.model, len(names), 4)
        start_from(model, settings, finished.folder, names)
        for number, name in enumerate(names):
            if name in classes:
                theirs = classes.index(name)
                assert torch.equal(model.fc.weight[number], source["fc.weight"][theirs]) is kept
                assert torch.equal(model.fc.bias[number], source["fc.bias"][theirs]) is kept
        assert torch.equal(model.stem[0].weight, source["stem.0.weight"])


def test_what_is_refused_before_a_rank_starts(finished: Finished, tmp_path: Path) -> None:
    settings, _ = read_settings(finished.folder)
    with pytest.raises(UserError, match=r"8 lanes do not spread over 3 ranks[\s\S]*1, 2, 4, 8"):
        check_ranks(8, 3)
    with pytest.raises(UserError, match="2 lanes do not spread over 4"):
        preflight(settings, 4)
    data = settings.data.model_copy(update={"store": str(tmp_path)})
    with pytest.raises(UserError):
        preflight(settings.model_copy(update={"run": None, "data": data}), 1)
    grey = settings.model.model_copy(update={"in_channels": 1})
    with pytest.raises(UserError, match=r"3 channels[\s\S]*leave model.in_channels out"):
        preflight(settings.model_copy(update={"run": None, "model": grey}), 1)
    both = ModelSettings(name="fused3d")
    with pytest.raises(UserError, match=r"set data.clip.input=rgb\+flow"):
        preflight(settings.model_copy(update={"run": None, "model": both}), 1)
    with pytest.raises(UserError, match="not a run's folder"):
        read_settings(tmp_path)
    resolved = preflight(settings, 2)
    assert ResolvedRun.model_validate_json(resolved.model_dump_json()) == resolved
    quantities = resolved.derived
    assert quantities["ranks"] == 2 and quantities["global_batch"] == 4
    assert quantities["passes"] == pytest.approx(STEPS * 4 / 13)


def test_a_store_without_validation_videos_trains(other_store: str, tmp_path: Path) -> None:
    """Every video of `val` was broken."""
    store = tmp_path / "store"
    shutil.copytree(other_store, store)
    for record in (store / "val").glob("*.parquet"):
        table = from_parquet(record.read_bytes())
        nothing = {"parts": [], "videos": 0, "samples": 0, "frames": 0, "seconds": 0.0, "lengths": {}}
        record.write_bytes(to_parquet(with_meta(table.slice(0, 0), record_meta(table.schema) | nothing)))
    merge(open_store(store))
    recipe = write_recipe(tmp_path, str(store), schedule={"epoch_clips": 8, "epochs": 1})
    log = tmp_path / "log"
    assert end(start(recipe, tmp_path / "run", log, alone=True)) == 0, log.read_text()
    assert "no validation" in log.read_text()
