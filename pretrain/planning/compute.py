"""The arithmetic of a step's computing: pure functions."""

from __future__ import annotations

from statistics import NormalDist


def flops_per_clip(macs: float) -> float:
    """Operations of training on one clip: two a multiply-accumulate, the backward pass twice the forward pass.

    PaLM (arXiv 2204.02311), appendix B.
    """
    return 3 * 2 * macs


def clips_per_second(peak: float, mfu: float, macs: float) -> float:
    """Clips that a GPU of `peak` FLOP/s trains in a second at a model FLOPs utilisation of `mfu`."""
    return peak * mfu / flops_per_clip(macs)


def compute_seconds(clips: int, rate: float, e2e: float) -> float:
    """Seconds in which a rank computes its `clips` of a step, at `rate` clips/s of the network alone."""
    return clips / (rate * e2e)


def slowest_of(ranks: int, jitter: float) -> float:
    """The factor by which the slowest of `ranks` is expected to take longer than the mean.

    `jitter`: the standard deviation of a rank's step as a share of it. The expected maximum of normal numbers, by
    Blom's approximation (1958).
    """
    return 1.0 if ranks == 1 else 1 + jitter * NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))
