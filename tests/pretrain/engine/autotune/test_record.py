"""What was measured of the compute paths, across runs: taken again where all is the same, and never in the way."""

from __future__ import annotations

import copy
import json
import logging
import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pretrain.engine.autotune import choose, record
from pretrain.engine.autotune.choose import candidate_names, choose_compute_path, exclude_compute_path
from pretrain.engine.autotune.isolated import NetworkSpec
from pretrain.engine.autotune.process import CannotStart
from pretrain.engine.autotune.record import (
    AutotuneResult,
    library_versions,
    read_cached_result,
    read_result,
    result_key,
    write_result,
)
from pretrain.engine.deepspeed_config import EngineSettings
from pretrain.engine.distributed import World
from pretrain.engine.precision import MicroStep
from pretrain.models.groups import freeze
from pretrain.models.network import VideoNetwork
from pretrain.models.zoo import ModelSettings, build_model
from sharding.base.environment import cache_folder

GPU = World(0, 1, torch.device("meta"))  # a device that is no CPU, and on which nothing is computed here
BEST, NEXT, *_ = candidate_names(GPU.device)
TRAINING = MicroStep((3, 4, 16, 16), 2, "bf16", held=100)
STORED = (
    '{"compute_path":"plain","planar":[],"recomputed":0,"device":"cpu","batch":1,"precision":"fp32",'
    '"clips_per_second":{}}'
)
SPEC = NetworkSpec(model=ModelSettings(), classes=3, rates={}, engine=EngineSettings(), ranks=1)


def network(width: float = 0.125, frames: int = 4) -> VideoNetwork:
    return build_model(ModelSettings(depth=10, width=width), 3, frames)


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[list[str]]:
    """Every measuring's compute paths, of which the first is the fastest. The cache folder is this test's own."""
    asked: list[list[str]] = []

    def autotune_in_child(
        recipe: object, training: MicroStep, device: object, names: list[str], recomputed: object, **_: object
    ) -> AutotuneResult:
        asked.append(names)
        rates = {name: 100.0 - number for number, name in enumerate(names)}
        result = AutotuneResult(
            compute_path="", planar=["stem.0"], recomputed=0, device="cpu", batch=training.batch,
            precision=training.precision, clips_per_second=rates, made_by=library_versions(),
        )  # fmt: skip
        return result.without([])

    monkeypatch.setattr(choose, "autotune_in_child", autotune_in_child)
    monkeypatch.setenv("REELSCALE_CACHE", str(tmp_path / "cache"))
    return asked


def begin(
    folder: Path, model: VideoNetwork | None = None, training: MicroStep = TRAINING, recipe: NetworkSpec = SPEC
) -> str:
    """A run of this folder begins: the compute path that it keeps."""
    folder.mkdir(exist_ok=True)
    choose_compute_path(folder, model or network(), training, GPU, None, recipe)
    found = read_result(folder)
    assert found is not None
    return found.compute_path


def test_another_run_takes_what_one_measured(
    runs: list[list[str]], tmp_path: Path, run_log: pytest.LogCaptureFixture
) -> None:
    run_log.set_level(logging.INFO, "reelscale")
    assert begin(tmp_path / "one") == BEST and len(runs) == 1
    assert "as measured on such a device" not in run_log.text
    assert begin(tmp_path / "two") == BEST and len(runs) == 1
    assert f"path {BEST}, as measured on such a device ({tmp_path / 'cache'}/" in run_log.text
    assert (tmp_path / "one" / "compute_path.json").read_text() == (tmp_path / "two" / "compute_path.json").read_text()
    assert begin(tmp_path / "three", training=replace(TRAINING, batch=4)) == BEST and len(runs) == 2
    assert begin(tmp_path / "one") == BEST and len(runs) == 2  # of its own folder
    assert [path.suffix for path in (tmp_path / "cache").iterdir()] == [".json"] * 2


def test_a_path_that_failed_is_left_out_by_other_runs(
    runs: list[list[str]], tmp_path: Path, run_log: pytest.LogCaptureFixture
) -> None:
    run_log.set_level(logging.INFO, "reelscale")
    begin(tmp_path / "one")
    assert exclude_compute_path(tmp_path / "one", GPU) == NEXT
    assert begin(tmp_path / "one") == begin(tmp_path / "two") == NEXT and len(runs) == 1
    assert f"path {NEXT}, as measured" in run_log.text and f"clips/s; {BEST} failed" in run_log.text


@pytest.mark.parametrize("text", ["", "{", "[]", '{"path": "none such"}', "\0\xff"])
def test_garbage_is_measured_again(runs: list[list[str]], tmp_path: Path, text: str) -> None:
    begin(tmp_path / "one")
    (file,) = (tmp_path / "cache").iterdir()
    whole = file.read_text()
    file.write_bytes(text.encode("latin-1"))
    assert begin(tmp_path / "two") == BEST and len(runs) == 2
    assert file.read_text() == whole


def test_a_record_of_another_key_is_not_taken(runs: list[list[str]], tmp_path: Path) -> None:
    begin(tmp_path / "one")
    (file,) = (tmp_path / "cache").iterdir()
    file.write_text(json.dumps(json.loads(file.read_text()) | {"key": "another"}))
    assert begin(tmp_path / "two") == BEST and len(runs) == 2


def test_a_folder_that_cannot_be_used_costs_measuring_again(
    runs: list[list[str]], tmp_path: Path, run_log: pytest.LogCaptureFixture
) -> None:
    run_log.set_level(logging.DEBUG, "reelscale")
    (tmp_path / "cache").write_text("a file where the folder is to be")
    assert begin(tmp_path / "one") == begin(tmp_path / "two") == BEST and len(runs) == 2
    assert {record.levelname for record in run_log.records if "other runs" in record.message} == {"DEBUG"}


def test_other_libraries_are_measured_again(
    runs: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(tmp_path / "one")
    monkeypatch.setattr(record, "_MEASURING", record._MEASURING + 1)
    assert begin(tmp_path / "two") == BEST and len(runs) == 2
    monkeypatch.setattr(torch, "__version__", "9.0")
    assert begin(tmp_path / "three") == BEST and len(runs) == 3
    assert begin(tmp_path / "one") == BEST and len(runs) == 3  # as the third has kept it


def test_without_a_child_this_process_measures(
    runs: list[list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run_log: pytest.LogCaptureFixture
) -> None:
    run_log.set_level(logging.INFO, "reelscale")
    here = choose.autotune_in_child

    def none(*_: object, **__: object) -> AutotuneResult:
        raise CannotStart("all GPUs are taken")

    monkeypatch.setattr(choose, "autotune_in_child", none)
    monkeypatch.setattr(choose, "autotune", lambda model, *given: here(SPEC, *given))
    assert begin(tmp_path / "one") == BEST and len(runs) == 1
    assert "measured in this process: none beside it can (all GPUs are taken)" in run_log.text


def test_the_key_is_of_all_that_decides() -> None:
    def key(
        model: VideoNetwork, training: MicroStep = TRAINING, device: str = "a GPU", asked: int | None = None
    ) -> str:
        return result_key(model, training, device, asked, "{}")

    frozen = network()
    freeze(frozen, {"stem": 0})
    keys = [
        key(network()),
        key(network(0.25)),
        key(frozen),
        key(network(), device="another"),
        key(network(), asked=0),
        result_key(network(), TRAINING, "a GPU", None, "zero 3"),
        *(
            key(network(), replace(TRAINING, **{name: value}))
            for name, value in {
                "clip": (3, 8, 16, 16), "batch": 3, "precision": "fp16", "held": 7, "joint_batch_norm": True,
            }.items()
        ),
    ]  # fmt: skip
    assert len(set(keys)) == len(keys)
    assert key(copy.deepcopy(network())) == keys[0]


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache_folder() == Path(os.environ["REELSCALE_CACHE"])  # of all tests
    monkeypatch.delenv("REELSCALE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "reelscale"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "reelscale"
    assert read_cached_result("no such key") is None
    write_result(tmp_path, AutotuneResult.model_validate_json(STORED))
    assert not cache_folder().exists()  # a CPU's choice has no key


def test_results_of_runs_from_before_a_renaming_are_read(tmp_path: Path) -> None:
    (tmp_path / "path.json").write_text(STORED.replace('"compute_path"', '"path"'))
    found = read_result(tmp_path)
    assert found == AutotuneResult.model_validate_json(STORED)
    write_result(tmp_path, found.without(["plain"]))
    again = read_result(tmp_path)
    assert again is not None and again.failed == ["plain"]  # of the run's own file, which it has now
