"""Weights of linear resizing along one axis: which samples make a sample of the result, and how much of each."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_KEPT = 1024  # a few kilobytes each


@dataclass(frozen=True, eq=False)
class Taps:
    """Sample i of the result is the sum over k of weights[i, k] * source[index[i, k]]; both are [n, K].

    The index rises along k, and rises or falls all along i.
    """

    index: NDArray[np.int32]
    weights: NDArray[np.float32]

    @property
    def copies(self) -> bool:
        """Whether the result's samples are samples of the source."""
        return bool(self.index.shape[1] == 1)

    @property
    def mirrored(self) -> bool:
        """Whether the result begins with the source's end."""
        return bool(self.index[0, 0] > self.index[-1, 0])


@lru_cache(_KEPT)
def linear_taps(source: int, target: int, begin: int, count: int, mirrored: bool = False, origin: int = 0) -> Taps:
    """Resize `source` samples to `target`, ends aligned, and take `count` from `begin` on, in reverse if mirrored.

    The index counts from the source's sample `origin` on.

    Each is the mean of the source under a triangle that reaches to the next sample's centre, of the source where it
    grows and of the result where it shrinks: torch's bilinear interpolation with antialias, and Pillow's BILINEAR.
    """
    order = np.arange(begin, begin + count)
    if mirrored:
        order = order[::-1]
    if source == target:
        return Taps(order.astype(np.int32)[:, None] - np.int32(origin), np.ones((count, 1), np.float32))
    scale = source / target
    reach = max(scale, 1.0)
    centre = (order + 0.5) * scale
    first = np.maximum(np.floor(centre - reach + 0.5), 0).astype(np.int32)
    last = np.minimum(np.floor(centre + reach - 0.5), source - 1).astype(np.int32)
    taps = int((last - first).max()) + 1
    index = np.minimum(first, source - taps)[:, None] + np.arange(taps, dtype=np.int32)
    weights = np.maximum(1.0 - np.abs(index + 0.5 - centre[:, None]) / reach, 0.0)
    weights /= weights.sum(1, keepdims=True)
    return Taps(index - np.int32(origin), weights.astype(np.float32))


def source_window(source: int, target: int, begin: int, count: int) -> tuple[int, int]:
    """Begin and end of all the source's samples that `linear_taps` takes, of it and of a plane of half as many.

    Even, but for the end of an odd source; a few more than that.
    """
    scale = source / target
    reach = max(scale, 2.0) + 2.0
    first = max(math.floor((begin + 0.5) * scale - reach), 0)
    last = math.ceil((begin + count - 0.5) * scale + reach)
    return first // 2 * 2, min((last + 1) // 2 * 2, source)


def taps_range(taps: Sequence[Taps]) -> tuple[int, int]:
    """Begin and end of the source's samples that these name."""
    corners = [each.index[end] for each in taps for end in (0, -1)]
    return min(int(corner[0]) for corner in corners), max(int(corner[-1]) for corner in corners) + 1


def stacked_taps(taps: Sequence[Taps]) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Index and weights of several, all of n samples, as [N, n, K]; where one has fewer than K, the rest weighs 0."""
    shape = (len(taps), len(taps[0].index), max(each.index.shape[1] for each in taps))
    index, weights = np.empty(shape, np.int32), np.zeros(shape, np.float32)
    for number, each in enumerate(taps):
        count = each.index.shape[1]
        index[number, :, :count], weights[number, :, :count] = each.index, each.weights
        index[number, :, count:] = each.index[:, -1:]
    return index, weights


def taps_as_matrices(taps: Taps, size: int) -> list[tuple[int, NDArray[np.float32]]]:
    """The taps as small matrices, each for the next `size` samples of the result.

    Of each: where its samples of the source begin, counted from the first one that any takes, and the matrix.
    """
    matrices = []
    start, _ = taps_range([taps])
    for begin in range(0, len(taps.index), size):
        some = Taps(taps.index[begin : begin + size], taps.weights[begin : begin + size])
        first, last = taps_range([some])
        matrix = np.zeros((last - first, len(some.index)), np.float32)
        np.put_along_axis(matrix.T, some.index.astype(np.intp) - first, some.weights, 1)
        matrices.append((first - start, matrix))
    return matrices
