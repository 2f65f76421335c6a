"""Two-stream fusion: the scores of two networks for the same videos, added class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from pretrain.data.reading.store_split import Sample
from pretrain.evaluation.files import FinishedEvaluation, evaluations_of, read_evaluation
from pretrain.evaluation.video_score import Scores
from pretrain.models.weights import first_names
from pretrain.scoring.protocol import Protocol
from sharding.base.errors import UserError
from sharding.base.settings import Settings


class FuseSettings(Settings):
    """The fusion with another network's evaluation. The defaults are I3D's; VMZ has scores and a weight of 0.6."""

    run: Annotated[str, Field(description="the other run's folder, evaluated on the same videos")]
    of: Annotated[
        Literal["logits", "scores"], Field(description="what is added: logits, or scores after the softmax")
    ] = "logits"
    weight: Annotated[
        float, Field(ge=0, le=1, description="weight from 0 to 1 of the evaluated run; the other run has the rest")
    ] = 0.5


@dataclass(frozen=True)
class OtherEvaluation:
    """Another run's evaluation: each video's scores by its key, in the order of this run's classes; None of damaged."""

    folder: Path
    scores: Mapping[str, Scores | None]


def fuse_scores(own: Scores | None, other: Scores | None, weight: float) -> Scores | None:
    """weight · own + (1 - weight) · other, of the same classes; None where there is one of them alone.

    Source: I3D, section 3.4; VMZ's fusion script.
    """
    return None if own is None or other is None else weight * own + (1 - weight) * other


def open_other_evaluation(
    settings: FuseSettings, samples: Sequence[Sample | None], classes: Sequence[str], index: str, protocol: Protocol
) -> OtherEvaluation:
    """The other run's evaluation of these videos: their keys are the same in every store.

    samples: the videos, labelled by `classes`; None where a record is damaged. Of several evaluations the one of the
    same `index` of a store, by a protocol of as many clips and crops and the same average. Raises UserError for a run
    that was not evaluated on these videos, or knows other classes.
    """
    folders = evaluations_of(Path(settings.run))
    remedy = f"evaluate it first on the same videos: reelscale evaluate CONFIG run={settings.run} {protocol.overrides}"
    if not folders:
        raise UserError("there is no evaluation to fuse", settings.run, remedy)
    evaluations = [read_evaluation(folder, settings.of) for folder in folders]
    keys = {sample.key for sample in samples if sample}
    fitting = [each for each in evaluations if _holds(each, keys, len(samples))]
    if not fitting:
        names = first_names([each.folder.name for each in evaluations])
        raise UserError(f"it was evaluated on other videos than the {len(samples)} here: {names}", settings.run, remedy)
    ranks = [(each.summary.get("index") == index, _is_alike(each.summary, protocol)) for each in fitting]
    best = [each for each, rank in zip(fitting, ranks, strict=True) if rank == max(ranks)]
    if len(best) > 1 and max(ranks) != (True, True):
        names = first_names([each.folder.name for each in best])
        raise UserError(f"which of its evaluations is to be fused is not clear: {names}", settings.run, remedy)
    chosen = best[-1]
    _require_names(chosen, settings.run, classes)
    _require_labels(chosen, settings.run, samples, classes)
    order = [chosen.classes.index(name) for name in classes]
    rows = zip(chosen.keys, chosen.scores, strict=True)
    return OtherEvaluation(
        chosen.folder, {key: None if row is None else row[order] for key, row in rows if key is not None}
    )


def _is_alike(summary: Mapping[str, Any], protocol: Protocol) -> bool:
    """Whether an evaluation was by such a protocol; those that name none had one crop, and softmaxes averaged."""
    named = {"clips": summary.get("clips_a_video"), "crops": 1, "average": "scores", **summary.get("protocol", {})}
    return bool(all(named[name] == getattr(protocol, name) for name in ("clips", "crops", "average")))


def _holds(evaluation: FinishedEvaluation, keys: set[str], videos: int) -> bool:
    """Whether it is of these videos, as far as damaged records tell."""
    return len(evaluation.keys) == videos and len(keys.difference(evaluation.keys)) <= evaluation.keys.count(None)


def _require_names(evaluation: FinishedEvaluation, run: str, classes: Sequence[str]) -> None:
    missing = [name for name in classes if name not in set(evaluation.classes)]
    strange = [name for name in evaluation.classes if name not in set(classes)]
    if missing or strange:
        differences = [
            f"{said}: {first_names(names)}"
            for said, names in (("it lacks", missing), ("this run lacks", strange))
            if names
        ]
        what = f"its {len(evaluation.classes)} classes are not this run's {len(classes)} by name "
        what += f"({'; '.join(differences)})"
        raise UserError(what, run, "fuse runs that learned the same classes; their order does not matter")


def _require_labels(
    evaluation: FinishedEvaluation, run: str, samples: Sequence[Sample | None], classes: Sequence[str]
) -> None:
    theirs = {
        key: {evaluation.classes[label] for label in of}
        for key, of in zip(evaluation.keys, evaluation.labels, strict=True)
    }
    for sample in samples:
        if sample and theirs.get(sample.key, ours := {classes[label] for label in sample.labels}) != ours:
            there, here = (first_names(sorted(names)) for names in (theirs[sample.key], ours))
            what = f"{sample.uri} is {there} in {evaluation.folder.name} and {here} here: these are not the same videos"
            raise UserError(what, run, "evaluate both runs on the same store and split")
