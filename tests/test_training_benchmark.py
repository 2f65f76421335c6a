"""The training benchmark: what it judges, and by what."""

from __future__ import annotations

import math
import subprocess
from pathlib import Path

import pytest
import torch

from tests.benchmarks import training


def test_a_contender_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        training.watched([["nowhere"]], tmp_path, 32, {})
    assert "No module named nowhere" in failed.value.stderr


def seen_training(name: str, ranks: int, ms: float, cpu_ms: float, **output: float) -> training.Seen:
    """Two rounds of three windows of 10 clips at these costs a clip."""
    window = training.Window(10, 0.01 * ms, 0.01 * cpu_ms, output)
    return training.Seen(name, ranks, [[window] * 3] * 2)


def test_training_on_a_gpu_is_of_the_size_that_is_judged() -> None:
    gpu = torch.device("cuda")
    assert [recipe["model"]["depth"] for recipe in training.cases(gpu, False, [1]).values()] == [34]
    assert [recipe["model"]["depth"] for recipe in training.cases(gpu, True, [1], every=True).values()] == [34, 152]


def test_training_is_judged_by_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU network and clips share two cores, on a GPU the slower of them bounds."""
    monkeypatch.setattr(training.os, "cpu_count", lambda: 2)
    results = {(each.name, each.ranks): each for each in (
        seen_training("ours", 1, 10, 20), seen_training("model", 1, 6, 12), seen_training("loader", 1, 4, 4),
        seen_training("plain", 1, 15, 30), seen_training("ours", 2, 8, 16), seen_training("model", 2, 6, 12),
        seen_training("loader", 2, 4, 4), training.Seen("plain", 2, failed="out of memory"),
    )}  # fmt: skip
    result = {"saving": {"share": 0.03}, "first_step": {"first": 24.0, "later": 30.0}}
    on_cpu = {line["what"]: line for line in training.judged(result, results, [1, 2], torch.device("cpu"))}
    values = {what: round(line["value"], 3) for what, line in on_cpu.items() if math.isfinite(line["value"])}
    assert values == {
        "training / network alone (e2e), 1 rank": 0.6,
        "ours / bound, by the clock, 1 rank": 0.8,
        "ours / bound, by CPU seconds, 1 rank": 0.8,
        "ours / plain DDP, 1 rank": 1.5,
        "training / network alone (e2e), 2 ranks": 0.75,
        "ours / bound, by the clock, 2 ranks": 1.0,
        "ours / bound, by CPU seconds, 2 ranks": 1.0,
        "ours on 2 ranks / on 1": 1.25,
        "seconds to the first step, first start": 24.0,
        "seconds to the first step, later start": 30.0,
        "saving, a share of 10 minutes": 0.03,
    }
    passed = [line["passed"] for line in on_cpu.values()]
    assert passed == [None, False, False, True, None, True, True, None, True, None, None, False]
    on_gpu = {line["what"]: line for line in training.judged(result, results, [1, 2], torch.device("cuda"))}
    assert on_gpu["ours / bound, by the clock, 1 rank"]["value"] == pytest.approx(0.6)
    assert on_gpu["ours on 2 ranks / on 1 / 2"]["value"] == pytest.approx(0.625)
    assert not on_gpu["training / network alone (e2e), 1 rank"]["passed"]
    starts = [on_gpu[f"seconds to the first step, {name} start"]["passed"] for name in ("first", "later")]
    assert starts == [True, False]


def test_training_pauses_for_a_checkpoint_as_long_as_steps_with_one_take_more() -> None:
    steps = [training.Window(32, 0.3 + 0.12 * (number % 2), 0.0, {}) for number in range(9)]
    saving = training.Seen("ours, saving every second step", 1, [steps, steps])
    ours = seen_training("ours", 1, 10, 20, saving_ratio=0.01)
    result = training.saved(saving, ours)
    assert result == pytest.approx({"seconds": 0.12, "share": 0.12 / 600, "told_share": 0.01})
    rows = [training.row(each, {}, 1e9, 1e12, 1) for each in (ours, training.Seen("plain", 1, failed="no memory"))]
    assert rows[0]["mfu"] == pytest.approx(100 * 6e9 / 1e12)
    figures = {"gmacs_per_clip": 1.0, "peak_tflops": 1.0, "load": 0.0, "rows": rows, "saving": result, "judged": []}
    assert all(part in training.table("case", figures) for part in ("100.0", "does not run: no memory", "120 ms"))
