"""The page that compares runs, and whether two of them differ by more than chance."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pretrain.report.comparison import result_rows, run_names
from pretrain.report.report import write_report
from pretrain.report.results import SPACE, Difference, comparable_pair, difference
from pretrain.report.run_data import Evaluation, RunFiles, seconds_at
from pretrain.report.settings_shown import differing_settings, shown_settings
from pretrain.scoring.accuracy import difference_interval, wilson
from tests.pretrain.report.test_report import CLASSES, FIGURES, Page, write_run

ABOUT = {"index": "000001-aa", "split": "val", "clips_a_video": 10}


def evaluation(right: str, **changed: object) -> Evaluation:
    """Of videos that are right (1) or wrong (0)."""
    taken = [0 if each == "1" else 1 for each in right]
    keys = [f"v{number}" for number in range(len(right))]
    return Evaluation("e", {**ABOUT, **changed}, ["a", "b"], keys, [0] * len(right), taken, [0.9] * len(right))


def run_of(name: str, *evaluations: Evaluation) -> RunFiles:
    return RunFiles(Path(name), name, {}, [], [], list(evaluations))


@pytest.mark.slow
def test_runs_stand_side_by_side_and_each_has_its_page(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "<b>one", CLASSES), write_run(tmp_path / "two", CLASSES, evaluated=False)]
    settings = json.loads((runs[1] / "settings.json").read_text())
    settings["settings"]["model"]["depth"] = 34
    (runs[1] / "settings.json").write_text(json.dumps(settings))
    page = Page(write_report(runs, tmp_path / "out"))
    wanted = ["Results", "Differences in video@1", "Over steps", "Over training time, without validation"]
    assert page.headings() == [*wanted, "Networks and training", "Settings that differ (1)"]
    assert "<td>model.depth</td><td>18</td><td>34</td>" in page.html
    assert "<td>two</td><td>not evaluated</td>" in page.html and "70.0 %" in page.text and "61.0–77.7 %" in page.text
    links = [values["href"] for tag, values in page.tags if tag == "a"]
    assert links == ["01-b-one/report.html", "02-two/report.html"]
    assert [len(Page(tmp_path / "out" / str(link)).pictures()) for link in links] == [FIGURES * 2, 4]
    assert len(page.pictures()) == 4 and all(picture.min() < picture.max() for picture in page.pictures())
    assert "b" not in {tag for tag, _ in page.tags} and "&lt;b&gt;one" in page.html


def test_evaluations_of_a_run_are_told_apart_and_fused_figures_stand_below_their_own() -> None:
    about = {"store": "s3://bucket/motion", "video1": 0.5}
    words = ["10 clips x the centre crop of 112 pixels; mean of softmaxes", "10 clips x 3 crops of 128 pixels"]
    first, second = (evaluation("10", **about, protocol={"words": each}) for each in words)
    fused = {"run": "runs/flow", "of": "logits", "weight": 0.35, "video1": 0.75}
    rows = result_rows([run_of("a", first, evaluation("10", **about)), run_of("b", second)], ["a", "b"])
    assert [row[:3] for row in rows] == [
        ["a", "motion val, 10 clips a video", f"50.0{SPACE}%"],
        ["a", f"motion val, {words[0]}", f"50.0{SPACE}%"],
        ["b", f"motion val, {words[1]}", f"50.0{SPACE}%"],
    ]
    second.summary["fused"] = fused
    (own, of_both) = result_rows([run_of("b", second)], ["b"])
    assert own == rows[-1] and of_both[0] == "b" and of_both[2] == f"75.0{SPACE}%"
    assert of_both[1] == f"motion val, {words[1]}; fused with flow: logits added, weight of this run 0.35"


def test_a_difference_is_of_the_same_videos_and_says_whether_it_is_chance() -> None:
    better, base = evaluation("1" * 90 + "0" * 10), evaluation("1" * 60 + "0" * 40)
    result = difference(better, base)
    assert isinstance(result, Difference)
    assert result.share == pytest.approx(0.3) and result.videos == 100 and result.verdict == "better"
    assert difference(base, better).verdict == "worse"  # type: ignore[union-attr]  # it is a Difference
    almost = difference(evaluation("1" * 51 + "0" * 49), evaluation("0" * 49 + "1" * 51))
    assert isinstance(almost, Difference) and almost.verdict == "within chance" and almost.share == pytest.approx(0)


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"index": "000002-bb"}, "other data"),
        ({"split": "test"}, "another split"),
        ({"clips_a_video": 1}, "another protocol"),
    ],
)
def test_what_was_scored_otherwise_is_not_compared(changed: dict[str, object], reason: str) -> None:
    said = difference(evaluation("110"), evaluation("110", **changed))
    assert isinstance(said, str) and reason in said
    pair = comparable_pair(run_of("a", evaluation("110")), run_of("b", evaluation("110"), evaluation("110", **changed)))
    assert not isinstance(pair, str) and pair[0].summary == ABOUT  # an older evaluation that can be compared
    assert comparable_pair(run_of("a", evaluation("110")), run_of("b")) == "not evaluated"


def test_the_interval_of_a_difference() -> None:
    # Newcombe 1998 (paired data), method 10: 0.7 and 0.6 of 50, correlated as the counts 30, 5, 0, 15 are.
    phi = (30 * 15 - 5 * 0) / math.sqrt(35 * 15 * 30 * 20)
    (low, high), (low2, high2) = wilson(0.7, 50), wilson(0.6, 50)
    below = math.sqrt((0.7 - low) ** 2 - 2 * phi * (0.7 - low) * (high2 - 0.6) + (high2 - 0.6) ** 2)
    above = math.sqrt((high - 0.7) ** 2 - 2 * phi * (high - 0.7) * (0.6 - low2) + (0.6 - low2) ** 2)
    assert difference_interval(0.7, 0.6, 50, phi) == pytest.approx((0.1 - below, 0.1 + above))
    alone, together = difference_interval(0.7, 0.6, 50, 0.0), difference_interval(0.7, 0.6, 50, 0.9)
    assert alone[0] < together[0] < 0.1 < together[1] < alone[1]


def test_time_is_of_the_clips_at_their_rate() -> None:
    events = [
        {"step": step, "samples": 10 * step, "clips_per_second": rate}
        for step, rate in ((10, 10.0), (20, None), (30, 5))
    ]
    assert seconds_at(events, np.array([0, 5, 10, 20, 30, 99])).tolist() == [0, 5, 10, 10, 30, 30]
    assert seconds_at([], np.array([3])).tolist() == [0]


def test_settings_apart_from_their_defaults_and_those_that_differ() -> None:
    first = replace(
        run_of("a"),
        settings={"settings.run": "a", "settings.seed": 0, "settings.model.depth": 18, "settings.init": None},
    )
    second = replace(first, settings={**first.settings, "settings.run": "b", "settings.model.depth": 34})
    tuned = replace(first, settings={"settings.seed": 0, "settings.init.run": "a", "derived.steps": 5})
    shown = shown_settings(first)
    assert shown.changed == [("run", "a", "null"), ("model.depth", "18", "34")] and shown.count == 4
    assert shown.sections == {"run": [("seed", "0"), ("init", "null")]}
    assert shown_settings(tuned).changed == [("init.run", "a", "null")]
    assert list(shown_settings(tuned).sections) == ["run", "derived"]
    assert differing_settings([first, second]) == [("model.depth", ["18", "34"])]
    assert differing_settings([first, tuned]) == [("model.depth", ["18", "–"]), ("init.run", ["–", "a"])]


def test_runs_of_one_name_are_numbered() -> None:
    assert run_names([run_of("a"), run_of("b"), run_of("a")]) == ["1 a", "b", "3 a"]


def test_long_names_are_told_apart_by_what_differs() -> None:
    def named(*names: str) -> list[str]:
        return run_names([run_of(name) for name in names])

    start, end = "kinetics400-r2plus1d-", "-18-8f-pretrain-kinetics400"
    assert named(f"{start}from-sports1m-lr-1", f"{start}from-sports1m-lr-20") == ["…1", "…20"]
    assert named(f"kinetics400-r2d{end}", f"kinetics400-r2plus1d{end}") == ["…r2d-…", "…r2plus1d-…"]
    assert named(start + end, start + end) == ["1 …kinetics400", "2 …kinetics400"]
    assert named("a-" * 20, "b") == ["a-" * 20, "b"]
    assert named("a-b", "a-c") == ["a-b", "a-c"]
