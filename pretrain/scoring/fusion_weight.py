"""The weight of two streams by which most videos are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

WEIGHTS = tuple(place / 100 for place in range(101))  # of the first stream; the second has the rest

Scores = NDArray[np.float32]


def best_weight(
    labels: Mapping[str, Sequence[int]], own: Mapping[str, Scores | None], other: Mapping[str, Scores | None]
) -> tuple[float, int]:
    """The weight of `own` by which most videos are right, of `WEIGHTS`, and how many are; all by a video's key.

    A video is right where the highest sum, the first of equal ones, is of one of its labels; one without scores is
    wrong by any. Of several weights that are the best the one in their middle.
    """
    keys = [key for key in labels if own.get(key) is not None and other.get(key) is not None]
    if not keys:
        return 0.5, 0
    one, two = (np.stack([each[key] for key in keys]) for each in (own, other))  # type: ignore[misc]  # none is None
    is_label: NDArray[np.bool_] = np.zeros(one.shape, np.bool_)
    for row, key in enumerate(keys):
        is_label[row, list(labels[key])] = True
    rows = np.arange(len(keys))
    right = [int(is_label[rows, (weight * one + (1 - weight) * two).argmax(1)].sum()) for weight in WEIGHTS]
    best = [weight for weight, count in zip(WEIGHTS, right, strict=True) if count == max(right)]
    return best[(len(best) - 1) // 2], max(right)
