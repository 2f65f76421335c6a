"""What came out of the study's trials, and whether the paper's claims hold by it."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pretrain.evaluation.files import FinishedEvaluation, evaluations_of, read_evaluation
from pretrain.report.run_data import read_metrics
from tests.demo.motion import CLASSES
from tests.study.plan import FRAMES, LENGTHS, REFERENCE, VIDEOS_A_CLASS, Trial, matched_width, size_of

Verdict = Literal["holds", "does not hold", "is not decided"]
_SURE = 2.0  # standard errors


@dataclass(frozen=True)
class Result:
    """Of a trial: shares of the validation's videos, losses, and curves of (clips, loss).

    `direction`: of a motion and its reverse, how often the right one has the higher score; a tie is half.
    """

    trial: Trial
    videos: int
    clip1: float
    video1: float
    direction: float
    train: tuple[tuple[int, float], ...]
    validation: tuple[tuple[int, float], ...]

    @property
    def train_loss(self) -> float:
        """The mean of the last line of the log: of the last steps' training clips."""
        return self.train[-1][1]


@dataclass(frozen=True)
class Share:
    """A share, over seeds: its mean and the standard error of that."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{100 * self.mean:.1f} ± {100 * self.error:.1f} %"


@dataclass(frozen=True)
class Claim:
    """A claim, whether it holds by the study's figures, and these."""

    text: str
    verdict: Verdict
    figures: str


def read_result(trial: Trial, run: Path) -> Result:
    """A finished trial's figures, by its run's folder."""
    evaluation = read_evaluation(evaluations_of(run)[-1], "scores")
    train, validation, _ = read_metrics(run / "metrics.jsonl")
    return Result(
        trial,
        videos=len(evaluation.labels),
        clip1=evaluation.summary["clip1"],
        video1=evaluation.summary["video1"],
        direction=direction(evaluation),
        train=tuple((event["samples"], event["loss"]) for event in train),
        validation=tuple((event["samples"], event["loss"]) for event in validation),
    )


def direction(evaluation: FinishedEvaluation) -> float:
    """How often a video's class has a higher score than the same motion backward."""
    names = evaluation.classes
    right = 0.0
    for labels, scores in zip(evaluation.labels, evaluation.scores, strict=True):
        assert scores is not None, "a video of the study is damaged"
        own, other = float(scores[labels[0]]), float(scores[names.index(backward(names[labels[0]]))])
        right += 0.5 if own == other else float(own > other)
    return right / len(evaluation.labels)


def backward(name: str) -> str:
    """The class that a motion is when it is run backward in time."""
    axis, is_backward = CLASSES[name]
    return next(each for each, of in CLASSES.items() if of == (axis, not is_backward))


def share(results: Sequence[Result], name: str) -> Share:
    """A figure over seeds. Its error is by the seeds' spread, and no less than by the number of videos."""
    values = [float(getattr(result, name)) for result in results]
    mean = statistics.fmean(values)
    spread = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    counted = math.sqrt(max(mean * (1 - mean), 0.0) / results[0].videos)  # every seed has the same videos
    return Share(mean, max(spread, counted))


def compare(higher: Share, lower: Share) -> Verdict:
    """Whether the one share is higher than the other, by two standard errors of the difference."""
    difference, error = higher.mean - lower.mean, math.hypot(higher.error, lower.error)
    if abs(difference) <= _SURE * error:
        return "is not decided"
    return "holds" if difference > 0 else "does not hold"


def claims(results: Iterable[Result]) -> list[Claim]:
    """The papers' claims that these results speak of."""
    results = list(results)
    forms = {result.trial.network: of_network(results, result.trial.network) for result in results}

    def higher(text: str, one: str, other: str) -> Claim:
        shares = share(forms[one], "video1"), share(forms[other], "video1")
        return Claim(text, compare(*shares), f"{one} {shares[0]}, {other} {shares[1]}")

    made = list[Claim]()
    if "fr2d" in forms:
        without = share(forms["fr2d"], "direction")
        is_chance = abs(without.mean - 0.5) <= _SURE * without.error
        text = "A network without time (f-R2D) is at chance, 50 %, between a motion and its reverse"
        made.append(Claim(text, "holds" if is_chance else "does not hold", f"fr2d {without}"))
        text = "R(2+1)D tells a motion from its reverse"
        made.append(Claim(text, compare(share(forms[REFERENCE], "direction"), without),
                           f"{REFERENCE} {share(forms[REFERENCE], 'direction')}"))  # fmt: skip
    for one, other, text in (
        (REFERENCE, "r3d", "R(2+1)D is better than R3D of as many parameters (Table 2, Figure 4)"),
        (REFERENCE, "mc3", "R(2+1)D is better than a network with 3D convolutions at its begin alone, MC3 (Table 2)"),
        (REFERENCE, "rmc3", "R(2+1)D is better than a network with 3D convolutions at its end alone, rMC3 (Table 2)"),
        ("r3drelu", "r3d", "R3D is better with as many nonlinearities as R(2+1)D (the control that the paper lacks)"),
        (REFERENCE, "r3drelu", "R(2+1)D is better than R3D with as many nonlinearities: factoring itself helps"),
    ):
        if one in forms and other in forms:
            made.append(higher(text, one, other))
    if "r3d" in forms:
        losses = [statistics.fmean(result.train_loss for result in forms[each]) for each in (REFERENCE, "r3d")]
        verdict: Verdict = "holds" if losses[0] < losses[1] else "does not hold"
        text = "R(2+1)D's training loss is lower than R3D's: it is easier to optimise (Figure 3)"
        made.append(Claim(text, verdict, f"{losses[0]:.3f} and {losses[1]:.3f} at the end"))
    return made + _length_claims(results) + _transfer_claims(results)


def of_network(results: Iterable[Result], network: str) -> list[Result]:
    """The results of a network at the study's clip length."""
    return [result for result in results if (result.trial.part, result.trial.network) == ("forms", network)]


def of_length(results: Iterable[Result], frames: int) -> list[Result]:
    """The reference's results at a clip length."""
    reference = [result for result in results if result.trial.part != "transfer" and result.trial.network == REFERENCE]
    return [result for result in reference if result.trial.frames == frames]


def of_transfer(results: Iterable[Result], videos: int, tuned: bool) -> list[Result]:
    """The results on so many videos of each class, fine-tuned or from scratch."""
    chosen = [result for result in results if result.trial.part == "transfer" and result.trial.videos == videos]
    return [result for result in chosen if bool(result.trial.after) == tuned]


def network_rows(results: Sequence[Result]) -> list[tuple[str, int, int, Share, Share, Share, float]]:
    """Of each network: name, parameters, multiply-accumulates, video@1, clip@1, direction, training loss."""
    rows = []
    for network in dict.fromkeys(result.trial.network for result in results if result.trial.part == "forms"):
        of = of_network(results, network)
        size, work = size_of(network, matched_width(network, FRAMES), FRAMES)
        figures = [share(of, name) for name in ("video1", "clip1", "direction")]
        rows.append((network, size, work, *figures, statistics.fmean(result.train_loss for result in of)))
    return sorted(rows, key=lambda row: row[3].mean)  # type: ignore[return-value]


def _length_claims(results: Sequence[Result]) -> list[Claim]:
    shares = {frames: share(of, "video1") for frames in LENGTHS if (of := of_length(results, frames))}
    if len(shares) < 2:
        return []
    text = "Longer clips are better (Figure 5)"
    figures = ", ".join(f"{frames} frames {value}" for frames, value in shares.items())
    return [Claim(text, compare(shares[max(shares)], shares[min(shares)]), figures)]


def _transfer_claims(results: Sequence[Result]) -> list[Claim]:
    made = []
    for videos in VIDEOS_A_CLASS:
        groups = [of_transfer(results, videos, tuned) for tuned in (True, False)]
        if all(groups):
            tuned, scratch = (share(group, "video1") for group in groups)
            text = f"Pretraining helps with {videos} video{'s' * (videos > 1)} of each class (Tables 4 and 6)"
            made.append(Claim(text, compare(tuned, scratch), f"fine-tuned {tuned}, from scratch {scratch}"))
    return made
