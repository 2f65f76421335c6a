"""Which ranks are slower than the others, by the time of their own work."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class SlowRank(NamedTuple):
    """A rank, its host, and how many times the median rank's seconds it takes."""

    rank: int
    host: str
    times: float


def slow_ranks(own_seconds: Sequence[float], hosts: Sequence[str], factor: float = 1.3) -> list[SlowRank]:
    """The ranks that take more than `factor` times the median, the slowest first.

    own_seconds: by rank, what its steps took without waiting for others (all wait for the slowest, so that whole
    steps take the same everywhere); one that is not finite was not measured and counts nowhere. hosts: by rank.
    """
    measured = [(rank, seconds) for rank, seconds in enumerate(own_seconds) if math.isfinite(seconds)]
    median = statistics.median([seconds for _, seconds in measured]) if measured else 0.0
    if median <= 0:
        return []
    slow = [SlowRank(rank, hosts[rank], seconds / median) for rank, seconds in measured if seconds > factor * median]
    return sorted(slow, key=lambda slow: (-slow.times, slow.rank))
