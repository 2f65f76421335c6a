"""The arithmetic of interruptions and checkpoints: pure functions. Times are in seconds."""

from __future__ import annotations

import math


def mean_time_between(gpus: int, per_gpu_day: float, nodes: int, per_node_day: float) -> float:
    """Seconds between two interruptions of a run, on average; infinite where there are none. Linear in its size."""
    a_day = gpus * per_gpu_day + nodes * per_node_day
    return 86400 / a_day if a_day else math.inf


def best_interval(pause: float, between: float) -> float:
    """Seconds of work between two checkpoints at which the least time is lost.

    sqrt(2 · pause · between) (Young, 1974), with Daly's terms of higher order (2006).
    """
    if not math.isfinite(between):
        return math.inf
    if pause >= 2 * between:
        return between
    share = pause / (2 * between)
    return math.sqrt(2 * pause * between) * (1 + math.sqrt(share) / 3 + share / 9) - pause


def expected_failures(seconds: float, between: float) -> float:
    """Interruptions that a stretch of work, begun anew after each, is expected to meet before it is done.

    exp(seconds / between) − 1, for interruptions that keep no time (Daly, 2006).
    """
    ratio = seconds / between
    return math.inf if ratio > 700 else math.expm1(ratio)


def stretches(work: float, interval: float, pause: float) -> list[tuple[int, float]]:
    """How many stretches of how many seconds a run's work falls into: those that a checkpoint ends, and what is left.

    Each stretch is begun anew after an interruption.
    """
    whole = math.floor(work / interval)
    rest = work - whole * interval
    both = [(whole, interval + pause), (1, rest)]
    return [(count, length) for count, length in both if count and length > 0]


def expected_seconds(work: float, interval: float, pause: float, between: float, down: float) -> tuple[float, float]:
    """(seconds, interruptions) that a run is expected to take and to meet.

    work: of steps and what belongs to them; interval: of it between two checkpoints; pause: of a checkpoint; down:
    from an interruption until the run is under way again. What was done since the last checkpoint is done anew.
    """
    lengths = stretches(work, interval, pause)
    failures = sum(count * expected_failures(length, between) for count, length in lengths)
    if math.isinf(between):
        return work + math.floor(work / interval) * pause, 0.0
    return (between + down) * failures, failures
