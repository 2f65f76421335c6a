"""Published figures beside a run's: shown as comparable to its own row alone, and else with all that differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.jobs.training import TrainingJob
from pretrain.papers.match import Held, hold_against, trained_of
from pretrain.papers.rows import CLASSES, ROWS, Row, Trained
from pretrain.report.run_data import flat
from sharding.base.settings import load_settings

CONFIGS = Path(__file__).parents[3] / "configs"
TABLE_2 = Trained("kinetics400", "r2plus1d", 18, 8)


def summary_of(row: Row, **changed: Any) -> dict[str, Any]:
    scored = {"classes": ["c"] * CLASSES.get(row.trained.data, 1), "clips_a_video": row.clips, "split": "val"}
    crop = row.crop or row.trained.size
    scored["protocol"] = {"crops": row.crops, "crop": crop, "trained_crop": row.trained.size}
    return {**scored, "clip1": 0.5, "video1": 0.6, "video5": 0.8, **changed}


@pytest.mark.parametrize(
    "row", [row for row in ROWS if not row.recipe.endswith("evaluate")], ids=lambda row: row.recipe.rpartition("/")[2]
)
def test_a_run_of_a_recipe_is_what_its_row_says(row: Row) -> None:
    settings = load_settings(TrainingJob, str(CONFIGS / f"{row.recipe}.yaml")).train.model_dump(mode="json")
    assert trained_of(dict(flat(settings))) == row.trained


def test_every_row_is_comparable_to_its_own_run() -> None:
    for row in ROWS:
        if row.figures and row.splits == 1:
            held = hold_against(row.trained, 1.0, summary_of(row))
            assert isinstance(held, Held)
            assert held.row.trained == row.trained and held.differences == []


def test_figures_are_shares_beside_each_other() -> None:
    row = next(row for row in ROWS if row.trained == TABLE_2)
    held = hold_against(TABLE_2, 1.0, summary_of(row))
    assert isinstance(held, Held)
    assert held.figures(summary_of(row)) == [("clip@1", "clip1", 0.5, 0.528), ("video@1", "video1", 0.6, 0.648)]
    assert held.figures(summary_of(row, clip1=None)) == [("video@1", "video1", 0.6, 0.648)]


def test_all_that_differs_is_named() -> None:
    row = next(row for row in ROWS if row.trained == TABLE_2)
    crops = {"crops": 3, "crop": 128, "trained_crop": 112}
    summary = summary_of(row, classes=["a"] * 8, clips_a_video=1, protocol=crops)
    held = hold_against(replace(TABLE_2, frames=12, size=96, source="mine"), 0.25, {**summary, "step": 9}, 10)
    assert isinstance(held, Held) and held.row == row
    assert held.differences == [
        "frames 12 (published: 8)",
        "pixels 96 (published: 112)",
        "starts from mine (published: scratch)",
        "width 0.25 (published: 1)",
        "step 9 of 10",
        "8 classes (published: 400)",
        "1 clips a video (published: 10)",
        "scored in 3 crops of 128 pixels (published: the centre crop of 112 pixels)",
    ]


def test_one_split_of_three_and_whole_videos_are_not_comparable() -> None:
    for data, network, word in (("ucf101", "r2plus1d", "the mean of 3"), ("kinetics400", "i3d", "whole videos")):
        row = next(row for row in ROWS if (row.trained.data, row.trained.network) == (data, network))
        held = hold_against(row.trained, 1.0, summary_of(row, clips_a_video=10))
        assert isinstance(held, Held) and len(held.differences) == 1 and word in held.differences[0]


def test_other_data_have_no_published_figure() -> None:
    said = hold_against(replace(TABLE_2, data="motion"), 1.0, {})
    assert isinstance(said, str) and "Kinetics-400" in said and "motion" in said
