"""Calibration by hand, and on scores that are calibrated by the way they were drawn."""

from __future__ import annotations

import numpy as np
import pytest

from pretrain.scoring.calibration import calibration


def test_four_videos_by_hand() -> None:
    """Bins of 0.2: in (0.4, 0.6] one right of two whose mean is 0.55; in (0.8, 1.0] two right of two, mean 0.95."""
    figures = calibration([0.5, 0.6, 0.9, 1.0], [True, False, True, True], bins=5)
    assert figures["ece"] == pytest.approx(0.5 * abs(0.5 - 0.55) + 0.5 * abs(1.0 - 0.95))
    assert [row["videos"] for row in figures["reliability"]] == [0, 0, 2, 0, 2]
    third = figures["reliability"][2]
    assert (third["low"], third["high"]) == (pytest.approx(0.4), pytest.approx(0.6))
    assert (third["confidence"], third["accuracy"]) == (pytest.approx(0.55), 0.5)
    assert figures["reliability"][0]["confidence"] is None and figures["reliability"][0]["accuracy"] is None
    assert (figures["videos"], figures["bins"]) == (4, 5) and "equal-width" in figures["method"]


def test_edges_belong_to_the_bin_that_ends_there() -> None:
    figures = calibration([0.0, 0.25, 0.5, 0.75, 1.0], [True] * 5, bins=4)
    assert [row["videos"] for row in figures["reliability"]] == [2, 1, 1, 1]


def test_of_no_video_there_is_no_error() -> None:
    assert calibration([], [])["ece"] is None and calibration([], [])["videos"] == 0


def test_who_is_right_as_often_as_his_score_says_is_calibrated() -> None:
    draw = np.random.default_rng(7)
    scores = draw.uniform(0.2, 1.0, 40_000)
    fair = calibration(scores.tolist(), (draw.uniform(size=scores.size) < scores).tolist())
    boastful = calibration(scores.tolist(), (draw.uniform(size=scores.size) < scores - 0.2).tolist())
    assert fair["ece"] < 0.01 and boastful["ece"] == pytest.approx(0.2, abs=0.01) and fair["bins"] == 15
