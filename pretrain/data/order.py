"""The order of training samples: pure functions of (shard sizes, seed, pass, lanes), the same on any topology."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX_1 = np.uint64(0xBF58476D1CE4E5B9)
_MIX_2 = np.uint64(0x94D049BB133111EB)


def mix(*words: int | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Hash words (integers or equal-length arrays of them) to uniform 64-bit integers.

    SplitMix64's finaliser (Steele, Lea and Flood, 2014) chained over the words. It is ours rather than
    numpy's Generator because an order must outlive library versions.
    """
    with np.errstate(over="ignore"):
        state = np.zeros(1, np.uint64)
        for word in words:
            value = np.asarray(word).astype(np.uint64)
            state = (state ^ value) + _GOLDEN
            state = (state ^ (state >> np.uint64(30))) * _MIX_1
            state = (state ^ (state >> np.uint64(27))) * _MIX_2
            state = state ^ (state >> np.uint64(31))
    return state


def sample_randoms(seed: int, pass_number: int, sample: int, count: int) -> list[float]:
    """`count` uniform numbers in [0, 1) that belong to (seed, pass, sample) and to nothing else."""
    words = mix(seed, pass_number, sample, np.arange(count, dtype=np.uint64))
    return [float(value) for value in (words >> np.uint64(11)).astype(np.float64) / float(1 << 53)]


def pass_order(shard_sizes: Sequence[int], seed: int, pass_number: int, block: int) -> NDArray[np.int64]:
    """The samples of one pass, each exactly once.

    Shards are shuffled; their samples, laid end to end, are shuffled inside blocks of `block` samples, so
    that a reader never has more than a block's shards open.

    Returns: int64 array, a permutation of range(sum(shard_sizes)); sample numbers count through the shards
    in index order.
    """
    sizes = np.asarray(shard_sizes, np.int64)
    firsts = np.concatenate([[0], np.cumsum(sizes)])[:-1]
    shards = np.argsort(mix(seed, pass_number, 1, np.arange(len(sizes), dtype=np.uint64)), kind="stable")
    if not len(sizes):
        return np.zeros(0, np.int64)
    laid_out = np.concatenate([np.arange(firsts[s], firsts[s] + sizes[s], dtype=np.int64) for s in shards])
    block_of = np.arange(len(laid_out)) // block
    keys = mix(seed, pass_number, 2, laid_out.astype(np.uint64))
    return laid_out[np.lexsort((keys, block_of))]


@dataclass(frozen=True)
class Order:
    """Which sample each lane shows at each step. Passes run on: a remainder opens the next batch.

    shard_sizes: samples of each shard, in index order; lanes: virtual ranks; lane_batch: samples a lane a step.
    """

    shard_sizes: tuple[int, ...]
    seed: int
    lanes: int
    lane_batch: int
    block: int = 8192

    @property
    def samples(self) -> int:
        """Samples in one pass."""
        return sum(self.shard_sizes)

    def lane(self, step: int, lane: int) -> list[tuple[int, int]]:
        """The (pass, sample) pairs of one lane at one step, `lane_batch` of them."""
        first = (step * self.lanes + lane) * self.lane_batch
        pairs = []
        for position in range(first, first + self.lane_batch):
            pass_number, offset = divmod(position, self.samples)
            order = _cached_order(self.shard_sizes, self.seed, pass_number, self.block)
            pairs.append((pass_number, int(order[offset])))
        return pairs


@lru_cache(maxsize=4)
def _cached_order(sizes: tuple[int, ...], seed: int, pass_number: int, block: int) -> NDArray[np.int64]:
    return pass_order(sizes, seed, pass_number, block)
