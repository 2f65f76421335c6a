"""Accuracies of videos by the ranks of their labels: over all, by class and over classes, with their intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

CONFIDENCE = 0.95
_Z = 1.959963984540054  # of a normal distribution within which 95 % lie

Interval = tuple[float, float]


@dataclass(frozen=True)
class ClassAccuracy:
    """One class: its videos, and the shares of them that are right at 1 and at 5, with the interval of the first."""

    name: str
    videos: int
    video1: float | None
    video5: float | None
    interval: list[float] | None


def wilson(share: float, count: int) -> Interval:
    """The interval that holds the true share with 95 % confidence, where `share` of `count` draws was right.

    Source: Wilson 1927, its score interval without continuity correction. (0, 1) of no draws.
    """
    if not count:
        return 0.0, 1.0
    middle = share + _Z**2 / (2 * count)
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    scale = 1 + _Z**2 / count
    return max((middle - half) / scale, 0.0), min((middle + half) / scale, 1.0)


def mean_interval(shares: Sequence[float], counts: Sequence[int]) -> Interval:
    """The interval of the mean of independent shares, of the Wilson interval of each.

    Source: Zou and Donner 2008 (method of variance estimates recovery), for a sum with equal weights.
    """
    bounds = [wilson(share, count) for share, count in zip(shares, counts, strict=True)]
    mean = sum(shares) / len(shares)
    below = math.hypot(*(share - low for share, (low, _) in zip(shares, bounds, strict=True))) / len(shares)
    above = math.hypot(*(high - share for share, (_, high) in zip(shares, bounds, strict=True))) / len(shares)
    return max(mean - below, 0.0), min(mean + above, 1.0)


def difference_interval(one: float, other: float, count: int, correlation: float) -> Interval:
    """The interval of `one` - `other`, two shares of the same `count` draws that correlate so (phi, -1 to 1).

    Source: Newcombe 1998 (Improved confidence intervals for the difference between binomial proportions based on
    paired data), its square-and-add method 10, without the correction of phi.
    """
    (one_low, one_high), (other_low, other_high) = wilson(one, count), wilson(other, count)
    difference = one - other

    def reach(first: float, second: float) -> float:
        return math.sqrt(max(first**2 - 2 * correlation * first * second + second**2, 0.0))

    return difference - reach(one - one_low, other_high - other), difference + reach(one_high - one, other - other_low)


def accuracies(classes: Sequence[str], labels: Sequence[Sequence[int]], ranks: Sequence[float]) -> dict[str, Any]:
    """video1, video5, mean_class_video1, their `intervals`, and `per_class`, of the ranks of videos' best labels.

    Of a video with several labels video@k is Hit@k, and it counts in each of its classes. The mean is over the classes
    that have videos; None of none.
    """
    per_class = class_accuracies(classes, labels, ranks)
    shares = [each.video1 for each in per_class if each.video1 is not None]
    counts = [each.videos for each in per_class if each.videos]
    video1, video5 = _below(ranks, 1), _below(ranks, 5)
    return {
        "video1": video1,
        "video5": video5,
        "mean_class_video1": sum(shares) / len(shares) if shares else None,
        "intervals": {
            "video1": list(wilson(video1, len(ranks))),
            "video5": list(wilson(video5, len(ranks))),
            "mean_class_video1": list(mean_interval(shares, counts)) if shares else None,
        },
        "per_class": [asdict(each) for each in per_class],
    }


def class_accuracies(
    classes: Sequence[str], labels: Sequence[Sequence[int]], ranks: Sequence[float]
) -> list[ClassAccuracy]:
    """Of each class its share; a video is right in all of its classes or in none."""
    by_class: list[list[float]] = [[] for _ in classes]
    for rank, of in zip(ranks, labels, strict=True):
        for number in set(of):
            by_class[number].append(rank)
    return [_class(name, own) for name, own in zip(classes, by_class, strict=True)]


def _class(name: str, ranks: Sequence[float]) -> ClassAccuracy:
    if not ranks:
        return ClassAccuracy(name, 0, None, None, None)
    video1 = _below(ranks, 1)
    return ClassAccuracy(name, len(ranks), video1, _below(ranks, 5), list(wilson(video1, len(ranks))))


def _below(ranks: Sequence[float], k: int) -> float:
    return sum(rank < k for rank in ranks) / len(ranks)
