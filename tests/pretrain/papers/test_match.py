"""Published figures beside a run's: shown as comparable to its own row alone, and else with all that differs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.jobs.training import TrainingJob
from pretrain.evaluation.evaluate import EvaluateSettings
from pretrain.evaluation.fusion import FuseSettings
from pretrain.papers.match import Held, Seen, hold_against
from pretrain.papers.rows import CLASSES, ROWS, Row, Trained
from pretrain.papers.trained import data_of_run, data_of_store, trained_of
from pretrain.report.run_data import flat
from sharding.base.settings import load_settings

CONFIGS = Path(__file__).parents[3] / "configs"
TABLE_2 = Trained("kinetics400", "r2plus1d", 18, 8)
SEEN = Seen("stores/kinetics400", ["000001-aa"])


def summary_of(row: Row, **changed: Any) -> dict[str, Any]:
    scored = {
        "classes": ["c"] * CLASSES.get(row.trained.data, 1),
        "clips_a_video": row.clips,
        "split": "val",
        "index": "000001-aa",
    }
    crop = row.crop or row.trained.size
    recipe = EvaluateSettings(**yaml.safe_load((CONFIGS / f"{row.scored or row.recipe}.yaml").read_text()))
    scored["protocol"] = {"crops": row.crops, "crop": crop, "trained_crop": row.trained.size}
    scored["protocol"] |= {"pooling": recipe.pooling, "average": recipe.average}
    return {**scored, "clip1": 0.5, "video1": 0.6, "video5": 0.8, **changed}


def fused_by(row: Row) -> dict[str, Any]:
    settings = yaml.safe_load((CONFIGS / f"{row.recipe}.yaml").read_text())
    return FuseSettings(**settings["fuse"]).model_dump(mode="json")


@pytest.mark.parametrize(
    "row", [row for row in ROWS if not row.recipe.endswith("evaluate")], ids=lambda row: row.recipe.rpartition("/")[2]
)
def test_a_run_of_a_recipe_is_what_its_row_says(row: Row) -> None:
    settings = load_settings(TrainingJob, str(CONFIGS / f"{row.recipe}.yaml")).train.model_dump(mode="json")
    assert trained_of(dict(flat(settings))) == row.trained


def test_every_row_is_comparable_to_its_own_run() -> None:
    for row in ROWS:
        if row.figures and row.splits == 1:
            stream = {"both": "flow"}.get(row.trained.input, row.trained.input)
            trained, summary = replace(row.trained, input=stream), summary_of(row)
            if row.trained.input == "both":
                summary["fused"] = fused_by(row)
            held = hold_against(trained, summary, SEEN, replace(trained, input="rgb"))
            assert isinstance(held, Held)
            assert held.row.trained == row.trained and held.differences == []


def test_figures_are_shares_beside_each_other() -> None:
    row = next(row for row in ROWS if row.trained == TABLE_2)
    held = hold_against(TABLE_2, summary_of(row), SEEN)
    assert isinstance(held, Held)
    assert held.figures(summary_of(row)) == [("clip@1", "clip1", 0.5, 0.528), ("video@1", "video1", 0.6, 0.648)]
    assert held.figures(summary_of(row, clip1=None)) == [("video@1", "video1", 0.6, 0.648)]


def test_all_that_differs_is_named() -> None:
    row = next(row for row in ROWS if row.trained == TABLE_2)
    crops = {"crops": 3, "crop": 128, "trained_crop": 112}
    summary = summary_of(row, classes=["a"] * 8, clips_a_video=1, protocol=crops)
    run = replace(TABLE_2, frames=12, size=96, source="mine", width=0.25)
    held = hold_against(run, {**summary, "step": 9}, replace(SEEN, steps=10))
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


def test_all_that_a_run_may_change_within_a_row_is_named() -> None:
    row = next(row for row in ROWS if row.trained == TABLE_2)
    settings = {
        "data.store": "stores/kinetics400", "model.name": "r2plus1d", "model.depth": 18, "data.clip.frames": 8,
        "data.clip.crop": 112, "data.clip.resize": [128, 171], "schedule.epochs": 45, "schedule.epoch_clips": 10**6,
        "schedule.lr": 0.01, "schedule.decay": "steps", "lane_batch": 32, "engine.optimizer": "sgd",
        "engine.weight_decay": 1e-4,
    }  # fmt: skip
    changed = {
        "data.clip.stride": 4, "model.midplanes": "block", "model.pool1": True, "schedule.epochs": 4.5,
        "schedule.lr": 0.02, "schedule.decay": "cosine", "engine.optimizer": "adamw", "engine.weight_decay": 0.05,
        "data.clip.short_edge": [128, 144], "loss.mixup": 0.2, "schedule.rates.stem": 0.0,
    }  # fmt: skip
    assert trained_of(settings) == TABLE_2
    held = hold_against(trained_of(settings | changed), summary_of(row), SEEN)
    assert isinstance(held, Held) and held.row == row
    assert held.differences == [
        "resized to a short edge of 128 to 144 (published: to 128 x 171)",
        "stride 4 (published: 1)",
        "mid-planes by block (published: conv)",
        "max pooling after the stem yes (published: no)",
        "besides loss.mixup 0.2, schedule.rates.stem 0.0 (published: nothing)",
        "schedule's clips 4,500,000 (published: 45,000,000)",
        "learning rate divided by the clips of a step 0.000625 (published: 0.0003125)",
        "weight decay 0.05 (published: 0.0001)",
        "learning rate's decay by cosine (published: steps)",
        "optimizer adamw (published: sgd)",
    ]
    # As the papers have it where the number of GPUs is another: the rate goes with the batch.
    assert trained_of(settings | {"schedule.lr": 0.0025, "lane_batch": 8}) == TABLE_2
    other_rate = trained_of(settings | {"data.clip.fps": 5.0, "data.clip.stride": 4})
    held = hold_against(other_rate, summary_of(row), SEEN)
    assert isinstance(held, Held)
    assert held.differences == ["frames a second 5 (published: the video's)"]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"protocol": {"average": "logits"}}, ["mean of logits (published: of softmaxes)"]),
        ({"left_out": 20_000}, ["20,000 videos left out"]),
        ({"store": "s3://bucket/other", "index": "000001-bb"}, ["scored on another store, other"]),
        ({"store": "stores/kinetics400/", "index": "000002-cc"}, []),  # grown since
        ({"store": "/here/stores/kinetics400"}, []),  # of the index that it was trained with
    ],
)
def test_what_was_scored_otherwise_or_of_other_videos_is_named(changed: dict[str, Any], said: list[str]) -> None:
    row = next(row for row in ROWS if row.trained == TABLE_2)
    held = hold_against(TABLE_2, summary_of(row, **changed), SEEN)
    assert isinstance(held, Held) and held.differences == said


def test_a_larger_crop_that_is_pooled_is_not_scored_as_published() -> None:
    row = next(row for row in ROWS if row.crop and row.figures)
    protocol = summary_of(row)["protocol"] | {"pooling": "average"}
    held = hold_against(row.trained, summary_of(row, protocol=protocol), SEEN)
    assert isinstance(held, Held) and held.differences == ["all of a crop pooled (published: place by place)"]


def test_two_streams_are_one_of_pictures_and_one_of_flow_of_one_network() -> None:
    row = next(row for row in ROWS if row.trained.input == "both" and row.trained.data == "kinetics400")
    flow = replace(row.trained, input="flow")

    def differences(one: Trained, other: Trained | None, **fused: Any) -> list[str]:
        held = hold_against(one, summary_of(row, fused=fused_by(row) | fused), SEEN, other)
        assert isinstance(held, Held)
        return held.differences

    rgb = replace(flow, input="rgb")
    assert differences(rgb, flow) == []
    assert "input rgb and rgb" in differences(rgb, rgb)[0]
    assert differences(flow, None) == ["input and network of the run that it is fused with cannot be told"]
    assert differences(flow, replace(rgb, depth=18)) == ["fused with a run of depth 18 (this one: 34)"]
    assert differences(flow, rgb, of="logits", weight=0.35) == [
        "logits added (published: scores)", "weight 0.35 of this run (in the row's recipe: 0.5)",
    ]  # fmt: skip


def test_a_data_set_is_known_by_its_whole_name() -> None:
    for store, data in (
        ("s3://b/kinetics400/", "kinetics400"), ("kinetics400-256", "kinetics400"), ("stores/hmdb51-2", "hmdb51"),
        ("kinetics400-mini", "kinetics400-mini"), ("kinetics400x", "kinetics400x"), ("sports1m-tiny", "sports1m-tiny"),
    ):  # fmt: skip
        assert data_of_store(store) == data
    for run, data in (
        ("runs/kinetics400-r2plus1d-18-8f-pretrain-kinetics400", "kinetics400"), ("imagenet-i3d-rgb", "imagenet"),
        ("runs/kinetics400-r2plus1d-18-8f-pretrain-kinetics400-mini", "kinetics400-mini"), ("ig65m", "ig65m"),
        ("kinetics400-mini-r2plus1d-18", "kinetics400-mini-r2plus1d-18"),
    ):  # fmt: skip
        assert data_of_run(run) == data


def test_one_split_of_three_and_whole_videos_are_not_comparable() -> None:
    for data, network, word in (("ucf101", "r2plus1d", "the mean of 3"), ("kinetics400", "i3d", "whole videos")):
        row = next(row for row in ROWS if (row.trained.data, row.trained.network) == (data, network))
        held = hold_against(row.trained, summary_of(row, clips_a_video=10), SEEN)
        assert isinstance(held, Held) and len(held.differences) == 1 and word in held.differences[0]


def test_other_data_have_no_published_figure() -> None:
    said = hold_against(replace(TABLE_2, data="motion"), {})
    assert isinstance(said, str) and "Kinetics-400" in said and "motion" in said
