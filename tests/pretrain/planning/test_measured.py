"""Measured files: which figure is taken for which run, and what is said of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pretrain.planning.machines import cluster_of
from pretrain.planning.measured import Measured, by_frames, clip_rate, gpu_named, read_measured
from pretrain.planning.settings import PlanSettings
from sharding.base.errors import UserError
from tests.pretrain.planning.conftest import LOAD

H200 = {"device": "NVIDIA H200", "precision": "bf16"}


def measured_of(tmp_path: Path, *figures: dict[str, Any]) -> Measured:
    path = tmp_path / "bench.json"
    path.write_text(json.dumps({"torch": "2.11", "measured": figures}))
    return read_measured([str(path)])


def test_the_same_network_is_taken_as_it_was_measured(tmp_path: Path) -> None:
    own = {"figure": "network_clips_per_second", "value": 290, "gmacs": 150, **H200}
    other = {"figure": "network_clips_per_second", "value": 568, "gmacs": 76.2, **H200}
    rate = clip_rate(measured_of(tmp_path, other, own), "H200", True, 150e9)
    assert rate and rate.rate == 290 and not rate.is_training and "bench.json" in rate.how


def test_another_clip_counts_by_its_arithmetic(tmp_path: Path) -> None:
    figure = {"figure": "network_clips_per_second", "value": 568, "gmacs": 76.2, **H200}
    rate = clip_rate(measured_of(tmp_path, figure), "H200", True, 152.4e9)
    assert rate and rate.rate == pytest.approx(284) and "by GMACs" in rate.how


def test_another_gpu_counts_by_its_share_of_the_peak(tmp_path: Path) -> None:
    figure = {"figure": "network_clips_per_second", "value": 100, "gmacs": 150, **H200}
    rate = clip_rate(measured_of(tmp_path, figure), "A100", True, 150e9)
    assert rate and rate.rate == pytest.approx(100 * 312 / 989.5) and "MFU" in rate.how


def test_training_is_taken_before_its_network_alone(tmp_path: Path) -> None:
    network = {"figure": "network_clips_per_second", "value": 300, "gmacs": 150, **H200}
    training = {"figure": "training_clips_per_second", "value": 270, "gmacs": 150, **H200}
    measured = measured_of(tmp_path, network, training)
    rate = clip_rate(measured, "H200", True, 150e9)
    assert rate and rate.rate == 270 and rate.is_training
    cluster, figures, _ = cluster_of(PlanSettings(), LOAD, measured, remote=False)
    assert (cluster.clip_rate, cluster.e2e) == (270, 1.0)
    assert next(each.source for each in figures if each.name == "a GPU's training").startswith("measured: ")


def test_a_cpu_and_another_precision_say_nothing_of_a_gpu(tmp_path: Path) -> None:
    on_cpu = {"figure": "network_clips_per_second", "value": 9, "gmacs": 1, "device": "x86_64", "precision": "bf16"}
    fp32 = {"figure": "network_clips_per_second", "value": 9, "gmacs": 1, "device": "NVIDIA H200", "precision": "fp32"}
    measured = measured_of(tmp_path, on_cpu, fp32)
    assert clip_rate(measured, "H200", True, 150e9) is None
    assert gpu_named(measured_of(tmp_path, on_cpu)) == "" and gpu_named(measured) == "NVIDIA H200"


def test_a_loaders_figures_count_by_frames(tmp_path: Path) -> None:
    measured = measured_of(
        tmp_path,
        {"figure": "clips_per_core_second", "value": 400, "frames": 16},
        {"figure": "bytes_per_clip", "value": 19_200, "frames": 16},
        {"figure": "range_cpu_seconds", "value": 0.001},
    )
    assert (by_frames(measured, "clips_per_core_second", 32) or ())[0] == 200
    assert (by_frames(measured, "bytes_per_clip", 32) or ())[0] == pytest.approx(19_200 * 48 / 32)
    near, far = (cluster_of(PlanSettings(), LOAD, measured, remote)[0].core_rate for remote in (False, True))
    assert near == 200 and far == pytest.approx(1 / (1 / 200 + 0.001))


def test_what_is_set_wins(tmp_path: Path) -> None:
    measured = measured_of(
        tmp_path,
        {"figure": "network_clips_per_second", "value": 300, "gmacs": 150, **H200},
        {"figure": "clips_per_core_second", "value": 400, "frames": 16},
        {"figure": "checkpoint_pause_seconds", "value": 0.2, "bytes": 256_000_000, **H200},
        {"figure": "start_seconds", "value": 40, **H200},
    )
    plain = cluster_of(PlanSettings(), LOAD, measured, False)[0]
    assert (plain.clip_rate, plain.core_rate, plain.pause, plain.start) == (300, 200, pytest.approx(0.4), 40)
    ours = {
        "clips_per_second": 111,
        "clips_per_core_second": 77,
        "checkpoint_copy_gb_per_second": 1,
        "start_seconds": 5,
    }
    chosen = cluster_of(PlanSettings.model_validate(ours), LOAD, measured, False)[0]
    assert (chosen.clip_rate, chosen.core_rate, chosen.pause, chosen.start) == (111, 77, pytest.approx(0.512), 5)
    by_mfu = cluster_of(PlanSettings(mfu=0.5), LOAD, measured, False)[0]
    assert by_mfu.clip_rate == pytest.approx(989.5e12 * 0.5 / 900e9)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such measured file"):
        read_measured([str(tmp_path / "none.json")])
    path = tmp_path / "bad.json"
    for text in ('{"measured": [', '{"measured": [{"figure": "speed", "value": 1}]}', '{"measured": 3}'):
        path.write_text(text)
        with pytest.raises(UserError, match="cannot be read"):
            read_measured([str(path)])
    for text in ("[]", '{"rows": []}'):
        path.write_text(text)
        assert read_measured([str(path)]).silent == [str(path)]
