"""The metrics of a run: which there are, on which rank, and that Prometheus is content with them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

import pretrain.metrics
import pretrain.telemetry.gpu_usage
import sharding.metrics
from pretrain.engine.distributed import World, free_port
from pretrain.engine.engine import Engine
from pretrain.engine.scaler import LossScale
from pretrain.training.batch_stream import save_before
from pretrain.training.step import StepReport
from sharding.telemetry.declare import DECLARED, PREFIX
from tests.support.made_once import made_once
from tests.support.training.forked_ranks import config

DECLARING = pretrain.metrics, pretrain.telemetry.gpu_usage, sharding.metrics  # imported, they declare theirs
ROOT = Path(__file__).parents[2]
STEPS = 12

HOST = {
    "reelscale_build_info", "reelscale_run_info", "reelscale_host_memory_available_bytes",
    "reelscale_disk_free_bytes", "reelscale_disk_size_bytes",
}  # fmt: skip
COUNTED = {  # by every process that trains, if only as 0
    "reelscale_clips_decoded", "reelscale_clips_looped", "reelscale_read_bytes", "reelscale_read_retries",
    "reelscale_damaged_samples", "reelscale_decode_errors", "reelscale_decode_seconds", "reelscale_loss_spikes",
    "reelscale_skipped_steps", "reelscale_rollbacks", "reelscale_slow_ranks", "reelscale_checkpoints",
    "reelscale_checkpoint_failures", "reelscale_checkpoint_seconds", "reelscale_train_step_seconds",
    "reelscale_train_data_wait_seconds", "reelscale_train_compute_seconds", "reelscale_train_exchange_seconds",
}  # fmt: skip
OF_EACH_RANK = {
    "reelscale_train_step", "reelscale_train_started_timestamp_seconds", "reelscale_train_last_step_timestamp_seconds",
    "reelscale_train_data_wait_ratio", "reelscale_train_saving_ratio", "reelscale_train_memory_bytes",
}  # fmt: skip
OF_RANK_0 = {
    "reelscale_train_steps", "reelscale_train_samples", "reelscale_train_epoch", "reelscale_train_attempts",
    "reelscale_train_interruptions", "reelscale_train_lost_seconds", "reelscale_train_loss",
    "reelscale_train_top1_ratio", "reelscale_train_learning_rate", "reelscale_train_gradient_norm",
    "reelscale_train_clips_per_second", "reelscale_validation_clip1_ratio",
    "reelscale_validation_last_timestamp_seconds", "reelscale_checkpoint_last_timestamp_seconds",
}  # fmt: skip
# Not of every run: of a GPU, of fp16, where a rank is slow.
NOW_AND_THEN = {
    "reelscale_gpu_memory_used_bytes", "reelscale_gpu_memory_total_bytes", "reelscale_gpu_utilization_ratio",
    "reelscale_gpu_temperature_celsius", "reelscale_train_mfu_ratio", "reelscale_train_loss_scale",
    "reelscale_train_straggler_rank",
}  # fmt: skip


@dataclass(frozen=True)
class Scrape:
    """What a rank serves: the text, and its families of ours by name."""

    text: str

    @property
    def families(self) -> dict[str, Metric]:
        families = text_string_to_metric_families(self.text)
        ours = {each.name: each for each in families if each.name.startswith(PREFIX) and each.samples}
        return {name: family for name, family in ours.items() if not name.endswith("_created")}

    def value(self, name: str, **labels: str) -> float:
        """Of the one sample with this name and these labels among its own."""
        samples = [sample for family in self.families.values() for sample in family.samples if sample.name == name]
        (value,) = [sample.value for sample in samples if labels.items() <= sample.labels.items()]
        return value


@pytest.fixture(scope="module")
def scrapes(store: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Scrape]:
    """Of two ranks, as they begin and when all is saved: `0.begin`, `0.end`, `1.begin`, `1.end`."""

    def train(root: Path) -> None:
        settings = config(store, root / "run") | {"validation": {"every_steps": 6, "videos": 5}}
        settings["engine"] |= {"compute_path": "channels-last"}
        settings["schedule"] |= {"epochs": STEPS * 4 / 40}
        (root / "settings.json").write_text(json.dumps(settings))
        place = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
        }
        place |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
        command = [sys.executable, "-m", "tests.support.training.scraped_rank", str(root / "settings.json")]
        with (root / "log").open("w") as log:
            ranks = [
                subprocess.Popen(
                    [*command, str(root / str(rank))],
                    cwd=ROOT,
                    env={**os.environ, **place, "RANK": str(rank), "LOCAL_RANK": str(rank)},
                    stdout=log,
                    stderr=log,
                )
                for rank in range(2)
            ]
            try:
                codes = [rank.wait(240) for rank in ranks]
            finally:
                for rank in ranks:
                    rank.kill()
        assert codes == [0, 0], (root / "log").read_text()

    root = made_once(tmp_path_factory, "scraped", train)
    return {path.name: Scrape(path.read_text()) for path in root.iterdir() if path.suffix in (".begin", ".end")}


@pytest.mark.cluster
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0.begin", {"reelscale_train_steps"}),
        ("1.begin", set()),
        ("0.end", OF_EACH_RANK | OF_RANK_0),
        ("1.end", OF_EACH_RANK),
    ],
)
def test_a_rank_serves_what_it_knows_and_nothing_else(
    name: str, expected: set[str], scrapes: dict[str, Scrape]
) -> None:
    started = {"reelscale_train_started_timestamp_seconds"}
    served = scrapes[name].families.keys() - {"reelscale_train_straggler_rank"}  # on a machine that does other work
    assert served == HOST | COUNTED | started | expected
    assert "NaN" not in scrapes[name].text


@pytest.mark.cluster
def test_the_figures_are_those_of_the_run(scrapes: dict[str, Scrape]) -> None:
    first, second = scrapes["0.end"], scrapes["1.end"]
    for scrape in (first, second):
        assert scrape.value("reelscale_train_step") == STEPS
        for name in ("train_step", "train_data_wait", "train_compute", "train_exchange"):
            assert scrape.value(f"reelscale_{name}_seconds_count") == STEPS
            assert scrape.value(f"reelscale_{name}_seconds_sum") > 0
        clips = scrape.value("reelscale_clips_decoded_total")
        assert clips == scrape.value("reelscale_decode_seconds_count") == 2 * STEPS
        assert scrape.value("reelscale_decode_seconds_sum") > 0
        parts = [scrape.value(f"reelscale_train_{part}_seconds_sum") for part in ("compute", "exchange", "data_wait")]
        assert sum(parts) <= scrape.value("reelscale_train_step_seconds_sum")
        assert scrape.value("reelscale_run_info", kind="pretrain", recipe="tiny.yaml", world_size="2") == 1
        assert scrape.value("reelscale_run_info", network="r2plus1d-10", device="cpu") == 1
    assert first.value("reelscale_train_samples") == 4 * STEPS
    assert first.value("reelscale_train_epoch") == 4 * STEPS / 40
    assert first.value("reelscale_train_attempts") == 1 and first.value("reelscale_train_interruptions") == 0
    saved = first.value("reelscale_checkpoints_total")
    assert saved == first.value("reelscale_checkpoint_seconds_count") >= STEPS // 3
    assert second.value("reelscale_checkpoints_total") == 0
    times = [first.value(f"reelscale_{name}_timestamp_seconds") for name in ("train_started", "checkpoint_last")]
    assert times == sorted(times)


def test_names_go_by_prometheus_rules() -> None:
    for name, each in DECLARED.items():
        assert re.fullmatch(r"reelscale_[a-z0-9]+(_[a-z0-9]+)*", name)
        assert name.endswith("_total") == (each.kind == "counter")
        assert name.endswith("_info") == (each.kind == "info")
        assert each.kind != "histogram" or name.endswith("_seconds")
        assert each.meaning.endswith(".") and len(each.labels) <= 6
        assert not {"run", "rank", "node", "job", "instance", "le"} & set(each.labels)
        assert not re.search(r"milli|micro|_ms\b|_mb\b|percent|minutes|hours", name)


@pytest.mark.cluster
def test_promtool_is_content(scrapes: dict[str, Scrape]) -> None:
    promtool = shutil.which("promtool")
    if not promtool:
        pytest.skip("promtool is not installed (Debian's package prometheus)")
    for scrape in scrapes.values():
        done = subprocess.run([promtool, "check", "metrics"], input=scrape.text, capture_output=True, text=True)
        assert (done.returncode, done.stdout + done.stderr) == (0, "")


@pytest.mark.cluster
def test_all_that_is_declared_is_served_or_said_to_be_rare(scrapes: dict[str, Scrape]) -> None:
    served = {name for scrape in scrapes.values() for name in scrape.families}
    of_a_run = ("every process", "every rank", "rank 0")
    declared = {name for name, each in DECLARED.items() if each.served_by in of_a_run} - {"reelscale_ready"}  # by HTTP
    assert {name.removesuffix("_total") for name in declared} == served | NOW_AND_THEN


def test_a_rate_sinks_while_no_step_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("pretrain.metrics.time.monotonic", lambda: now[0])
    throughput = pretrain.metrics.Throughput()
    assert throughput.rate() != throughput.rate()  # NaN: nothing is measured
    throughput.measured(40, 10.0)
    now[0] += 10
    assert throughput.rate() == 4.0
    now[0] += 10
    assert throughput.rate() == 2.0
    throughput.step()
    assert throughput.rate() == 4.0
    now[0] += 4000
    assert throughput.rate() == 0.01


def skipped() -> dict[str, float]:
    """Steps left out, by reason, over all tests of this process."""
    (family,) = pretrain.metrics.SKIPPED_STEPS.collect()
    return {each.labels["reason"]: each.value for each in family.samples if each.name.endswith("_total")}


@pytest.mark.parametrize(
    ("rank", "half", "factor", "reason"),
    [
        (0, torch.float16, 2.0**16, "overflow"),
        (0, torch.float16, 0.5, "not_finite"),  # it is not the scale's fault
        (0, torch.bfloat16, 1.0, "not_finite"),
        (1, torch.bfloat16, 1.0, None),
    ],
)
def test_a_step_left_out_counts_once_by_its_reason(
    rank: int, half: torch.dtype, factor: float, reason: str | None
) -> None:
    engine = object.__new__(Engine)
    engine.world, engine._half, engine._scale = World(rank, 2, torch.device("cpu")), half, LossScale(True)
    engine._scale.factor = factor
    before = skipped()
    engine.record_verdict(True)
    engine.record_verdict(False)
    assert {name: value - before[name] for name, value in skipped().items() if value > before[name]} == (
        {reason: 1} if reason else {}
    )


def test_a_step_without_clips_counts_as_left_out() -> None:
    saved: list[bool] = []
    state: Any = SimpleNamespace(
        world=World(0, 1, torch.device("cpu")),
        position=SimpleNamespace(step=8),
        watchdog=SimpleNamespace(patience=lambda seconds: nullcontext()),
        save=lambda last: saved.append(last),
    )
    before = skipped()["no_clips"]
    save_before(state, StepReport(8, 64, 0.1, absent=True))
    assert (state.position.step, saved, skipped()["no_clips"] - before) == (7, [True], 1)
