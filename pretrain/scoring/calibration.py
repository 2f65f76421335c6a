"""Calibration: whether a video whose top class scores 70 % is right 70 times in a hundred."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

BINS = 15
METHOD = "equal-width bins (low, high] of the top class' score; right: it is one of the video's labels"


def calibration(confidences: Sequence[float], right: Sequence[bool], bins: int = BINS) -> dict[str, Any]:
    """`ece`, the expected calibration error, and `reliability`: what videos of about the same score come to.

    Of each bin its videos, their mean score and the share that is right (None of an empty bin). The error is the mean
    over videos of how far their bin's share lies from its mean score; None of no videos. Source: Guo et al. 2017,
    equation 3.
    """
    scores, hits = np.asarray(confidences, np.float64), np.asarray(right, np.float64)
    edges = np.linspace(0.0, 1.0, bins + 1)
    # A score of exactly an edge belongs to the bin that ends there, as does 0 to the first.
    places = np.clip(np.searchsorted(edges, scores, side="left") - 1, 0, bins - 1)
    reliability, error = [], 0.0
    for number in range(bins):
        inside = places == number
        count = int(inside.sum())
        confidence = float(scores[inside].mean()) if count else None
        accuracy = float(hits[inside].mean()) if count else None
        if confidence is not None and accuracy is not None:
            error += count * abs(accuracy - confidence)
        low, high = float(edges[number]), float(edges[number + 1])
        reliability.append({"low": low, "high": high, "videos": count, "confidence": confidence, "accuracy": accuracy})
    return {
        "ece": error / len(scores) if len(scores) else None,
        "videos": len(scores),
        "bins": bins,
        "method": METHOD,
        "reliability": reliability,
    }
