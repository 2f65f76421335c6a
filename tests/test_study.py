"""The study: its plan, what it concludes from figures, and its road from corpora to a page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pretrain.evaluation.files import FinishedEvaluation
from pretrain.models.convolutions import FORMS
from tests.demo.motion import CLASSES
from tests.study.page import BEGIN, END, draw, tables, with_section
from tests.study.plan import FRAMES, REFERENCE, WIDTH, Trial, matched_width, size_of, trials
from tests.study.results import Result, Share, backward, claims, compare, direction, read_result, share
from tests.study.running import make_stores, run_trials


def test_every_trial_has_a_name_and_comes_after_what_it_starts_from() -> None:
    plan = trials(seeds=3)
    names = [trial.name for trial in plan]
    assert len(set(names)) == len(names)
    assert {trial.network for trial in plan if trial.part == "forms"} == set(FORMS)
    for trial in plan:
        assert trial.after is None or names.index(trial.after) < names.index(trial.name)


@pytest.mark.parametrize("network", FORMS)
def test_networks_have_as_many_parameters(network: str) -> None:
    wanted = size_of(REFERENCE, WIDTH, FRAMES)[0]
    assert matched_width(REFERENCE, FRAMES) == WIDTH
    assert size_of(network, matched_width(network, FRAMES), FRAMES)[0] == pytest.approx(wanted, rel=0.06)


def test_every_motion_has_one_that_is_its_reverse() -> None:
    for name in CLASSES:
        assert backward(name) != name and backward(backward(name)) == name
    assert backward("pan_left") == "pan_right" and backward("speed_up") == "slow_down"


def evaluation(scores: list[list[float]], labels: list[int]) -> FinishedEvaluation:
    """Of classes pan_left, pan_right, zoom_in, zoom_out."""
    classes = ["pan_left", "pan_right", "zoom_in", "zoom_out"]
    rows: list[Any] = [np.array(row, np.float32) for row in scores]
    return FinishedEvaluation(Path(), {}, classes, ["key"] * len(rows), [[label] for label in labels], rows)


def test_the_direction_is_compared_with_the_reverse_alone() -> None:
    scores = [[0.2, 0.1, 0.7, 0.0], [0.3, 0.1, 0.3, 0.3], [0.0, 0.0, 0.4, 0.4], [0.0, 0.0, 0.3, 0.7]]
    assert direction(evaluation(scores[:1], [0])) == 1.0  # wrong on the whole, right of the two
    assert direction(evaluation(scores, [0, 1, 2, 3])) == (1 + 0 + 0.5 + 1) / 4


def made(network: str, seed: int, video1: float, way: float = 1.0, loss: float = 1.0, **of: Any) -> Result:
    trial = Trial(f"{network}-{seed}-{of}", of.pop("part", "forms"), network, seed, **of)
    return Result(trial, 96, video1, video1, way, ((320, 2.0), (6400, loss)), ((6400, loss),))


def test_a_share_is_no_surer_than_its_videos_and_its_seeds() -> None:
    assert share([made("r3d", seed, 0.5) for seed in (0, 1)], "video1") == Share(0.5, pytest.approx(0.5 / 96**0.5))
    assert share([made("r3d", seed, seed) for seed in (0, 1)], "video1") == Share(0.5, pytest.approx(0.5))
    assert compare(Share(0.8, 0.03), Share(0.6, 0.04)) == "holds"
    assert compare(Share(0.7, 0.03), Share(0.6, 0.04)) == "is not decided"
    assert compare(Share(0.5, 0.03), Share(0.7, 0.04)) == "does not hold"


def test_what_holds_and_what_does_not() -> None:
    results = [
        made(network, seed, video1, way, loss)
        for network, video1, way, loss in (
            ("r2plus1d", 0.95, 0.98, 0.2), ("r3d", 0.75, 0.9, 0.5), ("r3drelu", 0.74, 0.9, 0.1),
            ("fr2d", 0.3, 0.52, 1.5),
        )
        for seed in (0, 1)
    ]  # fmt: skip
    results += [made("r2plus1d", 0, 0.6, frames=4, part="length")]
    for videos, tuned in ((1, 0.3), (5, 0.9)):
        few = {"part": "transfer", "store": f"motion2-{videos}", "videos": videos}
        results += [made("r2plus1d", 0, tuned, after="r2plus1d-0", **few), made("r2plus1d", 0, 0.3, **few)]
    verdicts = {claim.text: claim.verdict for claim in claims(results)}
    assert [(text.partition(":")[0].partition("(")[0][:40].strip(), verdict) for text, verdict in verdicts.items()] == [
        ("A network without time", "holds"),
        ("R", "holds"),
        ("R", "holds"),
        ("R3D is better with as many nonlinearitie", "is not decided"),
        ("R", "holds"),
        ("R", "holds"),
        ("Longer clips are better", "holds"),
        ("Pretraining helps with 1 video of each c", "is not decided"),
        ("Pretraining helps with 5 videos of each", "holds"),
    ]
    text = tables(results)
    assert "| r2plus1d | 901,459 | 55.2 | 95.0 ± 2.2 % |" in text
    assert with_section(f"a\n{BEGIN}\nold\n{END}\nb", text) == f"a\n{BEGIN}\n{text}{END}\nb"
    with pytest.raises(ValueError, match="the document has no"):
        with_section("a", text)


@pytest.mark.cluster
def test_from_corpora_to_a_page(tmp_path: Path) -> None:
    plan = [trial for trial in trials(1) if trial.name in ("r2plus1d-0", "tuned-1-0")]
    make_stores(tmp_path, quick=True)
    run_trials(plan, tmp_path, side_by_side=2, quick=True)
    run_trials(plan, tmp_path, side_by_side=2, quick=True)  # all of it is there
    results = [read_result(trial, tmp_path / "runs" / trial.name) for trial in plan]
    assert [result.videos for result in results] == [8, 8]
    assert results[0].train[-1][0] == 64 and [clips for clips, _ in results[0].validation] == [32, 64]
    log = (tmp_path / "logs" / "tuned-1-0.txt").read_text()
    assert log.count("classifier new") == 1 and log.count("stopped") == 0
    assert "| r2plus1d | 901,459 |" in tables(results)
    draw(results, tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 20_000
