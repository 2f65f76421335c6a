"""Trials: the validations that they report, and what of a cluster each takes."""

from __future__ import annotations

import json
from pathlib import Path

from cluster.launch.tuning.trial import Trial, TrialProcess
from cluster.launch.tuning.tuner import TuneOptions, trial_resources


def options(ranks: int, cpus: int | None = None) -> TuneOptions:
    return TuneOptions(Path("sweep"), ranks, cpus, None, 1)


def test_validations_are_reported_in_order_and_those_without_figures_are_not(tmp_path: Path) -> None:
    events = [
        {"event": "validation", "step": 3, "clip1": 0.25},
        {"event": "train", "step": 4},
        {"event": "validation", "step": 6, "clip1": None},
        {"event": "validation", "step": 3, "clip1": 0.5},
        {"event": "validation", "step": 8, "clip1": 0.25},
    ]
    lines = "".join(f"{json.dumps(event)}\n" for event in events)
    (tmp_path / "metrics.jsonl").write_text(lines + '{"event": "validation", "step": 9, "cl')
    process = TrialProcess(Trial(0, str(tmp_path), [["pretrain"]], {}, str(tmp_path), 10), asked=lambda: False)
    assert [process.report() for _ in range(2)] == [
        {"step": 3, "clip1": 0.5, "finished": False},
        {"step": 8, "clip1": 0.5, "finished": False},
    ]


def test_a_trial_takes_a_gpu_a_rank_or_all_cpus_of_the_smallest_node() -> None:
    two = [{"CPU": 16.0, "GPU": 8.0}, {"CPU": 32.0, "GPU": 8.0}]
    assert trial_resources({"CPU": 48.0, "GPU": 16.0}, two, options(2)) == {"cpu": 4, "gpu": 2}
    assert trial_resources({"CPU": 48.0, "GPU": 16.0}, two, options(2, cpus=1)) == {"cpu": 1, "gpu": 2}
    assert trial_resources({"CPU": 2.0}, [{"CPU": 2.0}], options(1)) == {"cpu": 2, "gpu": 0}
    assert trial_resources({"CPU": 12.0}, [{"CPU": 8.0}, {"CPU": 4.0}, {}], options(2)) == {"cpu": 4, "gpu": 0}
    assert trial_resources({"CPU": 8.0}, [{"CPU": 8.0}], options(1, cpus=2)) == {"cpu": 2, "gpu": 0}
