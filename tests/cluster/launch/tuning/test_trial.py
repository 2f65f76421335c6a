"""Trials: the validations that they report, and what of a cluster each takes."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.launch.tuning.trial import validations_of
from cluster.launch.tuning.tuner import TuneOptions, trial_resources


def options(ranks: int, cpus: int | None = None) -> TuneOptions:
    return TuneOptions(Path("sweep"), ranks, cpus, None, 1)


def test_the_last_line_of_a_step_counts_and_half_a_line_does_not(tmp_path: Path) -> None:
    assert validations_of(tmp_path) == []
    events = [
        {"event": "validation", "step": 3, "clip1": 0.25},
        {"event": "train", "step": 4},
        {"event": "validation", "step": 6, "clip1": None},
        {"event": "validation", "step": 3, "clip1": 0.5},
    ]
    lines = "".join(f"{json.dumps(event)}\n" for event in events)
    (tmp_path / "metrics.jsonl").write_text(lines + '{"event": "validation", "step": 9, "cl')
    assert [(event["step"], event["clip1"]) for event in validations_of(tmp_path)] == [(3, 0.5)]


def test_a_trial_takes_a_gpu_a_rank_or_all_cpus_of_the_smallest_node() -> None:
    two = [{"CPU": 16.0, "GPU": 8.0}, {"CPU": 32.0, "GPU": 8.0}]
    assert trial_resources({"CPU": 48.0, "GPU": 16.0}, two, options(2)) == {"cpu": 4, "gpu": 2}
    assert trial_resources({"CPU": 48.0, "GPU": 16.0}, two, options(2, cpus=1)) == {"cpu": 1, "gpu": 2}
    assert trial_resources({"CPU": 2.0}, [{"CPU": 2.0}], options(1)) == {"cpu": 2, "gpu": 0}
    assert trial_resources({"CPU": 12.0}, [{"CPU": 8.0}, {"CPU": 4.0}, {}], options(2)) == {"cpu": 4, "gpu": 0}
    assert trial_resources({"CPU": 8.0}, [{"CPU": 8.0}], options(1, cpus=2)) == {"cpu": 2, "gpu": 0}
