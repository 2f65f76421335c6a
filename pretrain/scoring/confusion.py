"""What is taken for what: the part of a large confusion matrix that can be read, and the most confident errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Counts = NDArray[np.int64]


@dataclass(frozen=True)
class ConfusionBlock:
    """Some classes of a confusion matrix, by their numbers, in an order in which those confused lie side by side.

    counts: videos by true and by predicted class, of these; others: of each true class, the videos that were taken for
    a class that is not among them.
    """

    numbers: list[int]
    counts: Counts
    others: Counts


def confusion(labels: Sequence[Sequence[int]], predictions: Sequence[int | None], classes: int) -> Counts:
    """Videos by true class (rows) and predicted class (columns), of so many classes.

    A video with several labels is of the predicted one, if that is among them, else of the first. One without a
    prediction or a label is left out.
    """
    counts = np.zeros((classes, classes), np.int64)
    for of, taken in zip(labels, predictions, strict=True):
        if taken is not None and of:
            counts[taken if taken in of else of[0], taken] += 1
    return counts


def confused_pairs(counts: Counts, limit: int) -> list[tuple[int, int, int]]:
    """(true, predicted, videos) of the most frequent confusions, most frequent first."""
    wrong = _off_diagonal(counts)
    truths, takens = np.nonzero(wrong)
    order = np.argsort(-wrong[truths, takens], kind="stable")[:limit]
    return [(int(truths[place]), int(takens[place]), int(wrong[truths[place], takens[place]])) for place in order]


def most_confused(counts: Counts, limit: int) -> ConfusionBlock:
    """The `limit` classes of a confusion matrix, at most, that are confused with each other most often.

    Whole pairs are taken, the most frequent first, as long as they fit; all classes where there are no more.
    """
    chosen: dict[int, None] = {}
    if len(counts) <= limit:
        chosen = dict.fromkeys(range(len(counts)))
    else:
        for truth, taken, _ in confused_pairs(counts, counts.size):
            if len(chosen.keys() | {truth, taken}) <= limit:
                chosen |= dict.fromkeys((truth, taken))
    numbers = _side_by_side(counts, list(chosen))
    block = counts[np.ix_(numbers, numbers)]
    return ConfusionBlock(numbers, block, counts[numbers].sum(1) - block.sum(1))


def confident_errors(
    predictions: Sequence[int | None], scores: Sequence[float], labels: Sequence[Sequence[int]]
) -> list[int]:
    """The places of the videos that were taken for what they are not, the highest score first.

    predictions: the top class of each, None of a damaged video, which is no error of the network; scores: its score.
    """
    wrong = [
        place
        for place, (taken, of) in enumerate(zip(predictions, labels, strict=True))
        if taken is not None and taken not in of
    ]
    return sorted(wrong, key=lambda place: -scores[place])


def _off_diagonal(counts: Counts) -> Counts:
    wrong: Counts = counts * (1 - np.eye(len(counts), dtype=np.int64))
    return wrong


def _side_by_side(counts: Counts, numbers: Sequence[int]) -> list[int]:
    """The numbers so ordered that those confused with each other most often lie side by side.

    Chains are joined pair by pair, the most frequent first, by those of their ends that bring the pair nearest.
    """
    wrong = _off_diagonal(counts)
    chains = {number: [number] for number in numbers}
    for one, other, _ in confused_pairs(np.triu(wrong + wrong.T), counts.size):
        if one in chains and other in chains and chains[one] is not chains[other]:
            first, second = chains[one], chains[other]
            joined = min(
                (left + right for left in (first, first[::-1]) for right in (second, second[::-1])),
                key=lambda chain: chain.index(other) - chain.index(one),
            )
            chains |= dict.fromkeys(joined, joined)
    return list(dict.fromkeys(number for chain in chains.values() for number in chain))
