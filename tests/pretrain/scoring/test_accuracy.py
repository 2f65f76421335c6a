"""Accuracies by hand: Hit@k, classes, and intervals from published examples."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pretrain.evaluation.video_score import best_rank
from pretrain.scoring.accuracy import accuracies, mean_interval, wilson

WRONG = math.inf


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
        (20, 20, 0.8389, 1.0),
    ],
)
def test_intervals_of_published_examples(right: int, count: int, low: float, high: float) -> None:
    assert wilson(right / count, count) == pytest.approx((low, high), abs=5e-5)


def test_an_interval_of_no_video_says_nothing() -> None:
    assert wilson(0.0, 0) == (0.0, 1.0)


def test_an_interval_bounds_the_share_by_its_own_test() -> None:
    """At each bound the share lies as far off as the normal deviate allows: the score test's own equation."""
    for share, count in ((0.3, 10), (0.86, 96), (0.5, 19_404)):
        for bound in wilson(share, count):
            assert abs(share - bound) / math.sqrt(bound * (1 - bound) / count) == pytest.approx(1.959964, abs=1e-5)


def test_the_mean_of_classes_has_the_interval_of_its_parts() -> None:
    assert mean_interval([0.6], [50]) == pytest.approx(wilson(0.6, 50))
    (low, high), middle = wilson(0.8, 100), 0.8
    expected = (middle - (middle - low) / math.sqrt(4), middle + (high - middle) / math.sqrt(4))
    assert mean_interval([0.8] * 4, [100] * 4) == pytest.approx(expected)
    assert mean_interval([0.0, 1.0], [1, 1])[0] >= 0 and mean_interval([1.0, 1.0], [1, 1])[1] == 1.0


def test_figures_of_six_videos() -> None:
    """Two of class a, right at 1 and at 5; three of b, of which one is right at 1; one of both; none of c."""
    ranks = [0, 4, 0, 5, WRONG, 1]
    labels = [[0], [0], [1], [1], [1], [0, 1]]
    figures = accuracies(["a", "b", "c"], labels, ranks)
    assert figures["video1"] == pytest.approx(2 / 6) and figures["video5"] == pytest.approx(4 / 6)
    a, b, c = figures["per_class"]
    assert (a["name"], a["videos"], a["video1"], a["video5"]) == ("a", 3, pytest.approx(1 / 3), 1.0)
    assert (b["videos"], b["video1"], b["video5"]) == (4, 0.25, 0.5)
    assert c == {"name": "c", "videos": 0, "video1": None, "video5": None, "interval": None}
    assert figures["mean_class_video1"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert figures["intervals"]["video1"] == pytest.approx(wilson(2 / 6, 6))
    assert a["interval"] == pytest.approx(wilson(1 / 3, 3))


def test_where_no_video_has_a_class() -> None:
    figures = accuracies(["a"], [[]], [WRONG])
    assert (figures["video1"], figures["mean_class_video1"], figures["intervals"]["mean_class_video1"]) == (
        0,
        None,
        None,
    )


def test_hits_of_several_labels_and_ties() -> None:
    scores = np.asarray([0.1, 0.3, 0.3, 0.2, 0.05, 0.05], np.float32)
    # The best of a video's labels counts; of equal scores the lower class number comes first.
    assert [best_rank(scores, labels) for labels in ([1], [2], [3, 5], [5, 0], [4], [5])] == [0, 1, 2, 3, 4, 5]
    even = np.full(6, 1 / 6, np.float32)
    assert [best_rank(even, [label]) for label in range(6)] == [0, 1, 2, 3, 4, 5]
    figures = accuracies(list("abcdef"), [[5], [0]], [best_rank(even, [5]), best_rank(even, [0])])
    assert (figures["video1"], figures["video5"]) == (0.5, 0.5)
