"""The scores of one video, and which place its labels have among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float32]


@dataclass(frozen=True)
class VideoScore:
    """One video: its row in the split, its mean softmax and mean logits over its clips [classes], and its clips.

    `clips_right` of the clips have a right top class. Of a damaged video there is what is wrong, and no scores: all its
    clips count as wrong.
    """

    row: int
    scores: Scores | None
    logits: Scores | None
    clips: int
    clips_right: int
    damaged: str | None = None

    @property
    def predicted(self) -> int | None:
        """The class of the highest score, the first of equal ones; None of a damaged video."""
        return None if self.scores is None else int(self.scores.argmax())

    @property
    def confidence(self) -> float:
        """The highest score; 0 of a damaged video."""
        return 0.0 if self.scores is None else float(self.scores.max())


def best_rank(scores: Scores | None, labels: Sequence[int]) -> float:
    """Rank (0 is the top) of the best-placed of a video's labels: below k it is right at k (video@k, Hit@k).

    Infinite, wrong at any k, where there are no scores or no labels.
    """
    if scores is None:
        return float("inf")
    order = np.argsort(-scores, kind="stable").tolist()
    return min((order.index(label) for label in labels), default=float("inf"))
