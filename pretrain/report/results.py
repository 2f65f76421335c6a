"""What evaluations come to: shares with their intervals in words, and whether two runs differ by more than chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pretrain.report.run_data import Evaluation, RunFiles, seconds_at
from pretrain.scoring.accuracy import difference_interval
from sharding.base.printable import duration

NONE = "–"
SPACE = "\N{NO-BREAK SPACE}"
LABELS = {"video1": "video@1", "video5": "video@5", "clip1": "clip@1", "mean_class_video1": "mean class video@1"}


@dataclass(frozen=True)
class Share:
    """One accuracy of an evaluation, in [0, 1], with the interval of 95 % confidence if the evaluation has one."""

    label: str
    share: float
    interval: tuple[float, float] | None

    @property
    def interval_text(self) -> str:
        """The interval in per cent, "94.3–99.8 %", or a dash."""
        return interval_text(self.interval)


@dataclass(frozen=True)
class Difference:
    """By how much an evaluation's video@1 lies above another's, in [-1, 1], with its interval.

    `videos`: those that both scored.
    """

    share: float
    interval: tuple[float, float]
    videos: int

    @property
    def verdict(self) -> str:
        """Whether it is more than chance."""
        low, high = self.interval
        if low <= 0 <= high:
            return "within chance"
        return "better" if low > 0 else "worse"


@dataclass(frozen=True)
class Cost:
    """A network's size and what its training took, in words; a dash for what is not known."""

    parameters: str = NONE
    gmacs: str = NONE
    steps: str = NONE
    clips: str = NONE
    rate: str = NONE
    time: str = NONE


def cost_of(run: RunFiles) -> Cost:
    """The cost of a run up to its last written step; its rate is that of all steps, without validations."""
    derived = {name: run.settings.get(f"derived.{name}") for name in ("parameters", "gmacs_per_clip")}
    count, gmacs = (float(value or 0) for value in derived.values())
    size = Cost(f"{count / 1e6:.3g}{SPACE}M" if count else NONE, f"{gmacs:.3g}" if gmacs else NONE)
    if not run.train:
        return size
    step, clips = run.train[-1]["step"], run.train[-1].get("samples")
    seconds = float(seconds_at(run.train, step))
    if not clips or not seconds:
        return replace(size, steps=f"{step:,}")
    rate, time = f"{clips / seconds:,.0f}", duration(seconds).replace(" ", SPACE)
    return replace(size, steps=f"{step:,}", clips=f"{clips:,}", rate=rate, time=time)


def shares_of(summary: Mapping[str, Any]) -> list[Share]:
    """The accuracies of an evaluation's summary, video@1 first."""
    intervals = summary.get("intervals") or {}
    return [
        Share(label, summary[name], tuple(intervals[name]) if intervals.get(name) else None)
        for name, label in LABELS.items()
        if summary.get(name) is not None
    ]


def fused_words(fused: Mapping[str, Any]) -> str:
    """How two runs were fused: what was added, by which weight, and where that was searched."""
    searched = (fused.get("searched") or {}).get("words")
    parts = (f"{fused['of']} added", f"weight of this run {fused['weight']:g}", searched)
    return ", ".join(filter(None, parts))


def difference(one: Evaluation, other: Evaluation) -> Difference | str:
    """By how much `one` is better at video@1 than `other`, of the same videos; else why that cannot be said.

    Of a video with several labels each is judged by Hit@1, as in the evaluation.
    """
    for name, words in (("index", "other data"), ("split", "another split")):
        if one.summary.get(name) != other.summary.get(name):
            return f"evaluated on {words}: not comparable"
    if _protocol(one.summary) != _protocol(other.summary):
        return "evaluated by another protocol: not comparable"
    rights = [_right_by_key(each) for each in (one, other)]
    keys = [key for key in rights[0] if key in rights[1]]
    if not keys:
        return "no video in common: not comparable"
    pairs = [(rights[0][key], rights[1][key]) for key in keys]
    shares = [sum(column) / len(pairs) for column in zip(*pairs, strict=True)]
    interval = difference_interval(shares[0], shares[1], len(pairs), _correlation(pairs))
    return Difference(shares[0] - shares[1], interval, len(pairs))


def comparable_pair(first: RunFiles, run: RunFiles) -> tuple[Evaluation, Evaluation, Difference] | str:
    """The newest evaluations that can be compared, `run`'s and `first`'s, and their difference; else why none can."""
    reason = "not evaluated"
    for one in reversed(run.evaluations):
        for other in reversed(first.evaluations):
            result = difference(one, other)
            if isinstance(result, Difference):
                return one, other, result
            reason = result if reason == "not evaluated" else reason
    return reason


def percent(fraction: float) -> str:
    """In per cent, with a space that does not break."""
    return f"{100 * fraction:.1f}{SPACE}%"


def interval_text(interval: Sequence[float] | None) -> str:
    """An interval of shares in per cent, or a dash."""
    if interval is None:
        return NONE
    return f"{100 * interval[0]:.1f}–{percent(interval[1])}"


def _protocol(summary: Mapping[str, Any]) -> Any:
    return summary.get("protocol") or summary.get("clips_a_video")


def _right_by_key(evaluation: Evaluation) -> dict[str, bool]:
    return dict(zip(evaluation.keys, evaluation.rights(), strict=True))


def _correlation(pairs: Sequence[tuple[bool, bool]]) -> float:
    """The phi coefficient of two networks' being right on the same videos; 0 where one is always or never right."""
    both = sum(one and other for one, other in pairs)
    only_one, only_other = (sum(pair[n] and not pair[1 - n] for pair in pairs) for n in (0, 1))
    neither = len(pairs) - both - only_one - only_other
    margins = (both + only_one) * (only_other + neither) * (both + only_other) * (only_one + neither)
    return (both * neither - only_one * only_other) / math.sqrt(margins) if margins else 0.0
