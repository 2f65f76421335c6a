"""Two-stream fusion: the scores of two networks for the same videos, added class by class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from pretrain.data.reading.store_split import Sample
from pretrain.evaluation.files import FinishedEvaluation, evaluations_of, read_evaluation
from pretrain.evaluation.video_score import Scores
from pretrain.models.weights import first_names
from pretrain.run_settings import read_settings_file
from pretrain.scoring.fusion_weight import best_weight
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
    search_split: Annotated[
        str | None,
        Field(
            description="another split, on which both runs have been evaluated by the same protocol: the weight with "
            "the highest video@1 there is taken; replaces weight"
        ),
    ] = None

    @model_validator(mode="after")
    def _one_weight(self) -> Self:
        if self.search_split is not None and "weight" in self.model_fields_set:
            raise ValueError("weight and search_split both say how much each run counts; leave one of them out")
        return self


@dataclass(frozen=True)
class SearchedWeight:
    """Where the weight was the best: the split, how many `videos` it has, and the fusion's video@1 there.

    `folders`: of the two evaluations, the evaluated run's first.
    """

    weight: float
    split: str
    videos: int
    video1: float
    folders: tuple[Path, Path]

    @property
    def identity(self) -> dict[str, Any]:
        """Where and how it was found, as JSON values."""
        folders = [str(folder) for folder in self.folders]
        return {"split": self.split, "videos": self.videos, "video1": self.video1, "folders": folders}

    @property
    def words(self) -> str:
        """It in a line, for people."""
        return f"searched on {self.split!r}, where video@1 is {100 * self.video1:.1f} % of {self.videos:,} videos"


@dataclass(frozen=True)
class OtherEvaluation:
    """Another run's evaluation: each video's scores by its key, in the order of this run's classes; None of damaged.

    `step`: of the weights that were evaluated. `protocol`: as `_protocol_of` has it.
    """

    folder: Path
    step: int | None
    protocol: Mapping[str, Any]
    scores: Mapping[str, Scores | None]


@dataclass(frozen=True)
class Reported:
    """The evaluation whose fusion is reported: its run, the step of its weights, its split, and its videos' keys."""

    run: Path
    step: int
    split: str
    keys: frozenset[str]
    protocol: Protocol


@dataclass(frozen=True)
class Fusion:
    """What is fused, and the weight of the evaluated run; `searched`: where it was found, None of a given one."""

    other: OtherEvaluation
    weight: float
    searched: SearchedWeight | None


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
    same `index` of a store, by a protocol of as many clips and crops and the same average. Raises UserError for a
    folder that is no run's, and for a run that was not evaluated on these videos, or knows other classes.
    """
    folders = evaluations_of(Path(settings.run))
    remedy = f"evaluate it first on the same videos: reelscale evaluate CONFIG run={settings.run} {protocol.overrides}"
    if not folders:
        read_settings_file(Path(settings.run))  # no run's folder is no run without an evaluation
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
    step = chosen.summary.get("step")
    return OtherEvaluation(chosen.folder, step, _protocol_of(chosen.summary), _by_key(chosen, classes))


def search_weight(settings: FuseSettings, reported: Reported, other: OtherEvaluation) -> SearchedWeight:
    """The weight with the highest video@1 on `settings.search_split`, by both runs' evaluations of it.

    These are of the same weights and protocol as the reported ones; where there are several, the newest pair that has
    the same videos. Raises UserError where there is none, and where the split has a video that is reported.
    """
    split = settings.search_split
    assert split is not None
    if split == reported.split:
        what = f"the weight would be searched on the split that is reported, {split!r}, and its figure be too high"
        raise UserError(what, "fuse.search_split", "name a split that is not reported, or give fuse.weight")
    protocol = _protocol_of({"protocol": reported.protocol.identity})
    own = _evaluations_by(reported.run, split, reported.step, settings.of, protocol)
    theirs = _evaluations_by(Path(settings.run), split, other.step, settings.of, other.protocol)
    pairs = [(one, two) for one in reversed(own) for two in reversed(theirs) if set(one.keys) == set(two.keys)]
    if not pairs:
        what = f"the two runs were evaluated on different videos of the split {split!r}, so no weight can be searched"
        raise UserError(what, settings.run, "evaluate both on one store, by one version of its index")
    one, two = pairs[0]
    _require_names(two, settings.run, one.classes)
    if shared := set(reported.keys).intersection(key for key in one.keys if key is not None):
        what = f"{len(shared)} of the split's {len(one.keys)} videos are among those that are reported"
        raise UserError(what, f"fuse.search_split={split}", "name a split of other videos, or give fuse.weight")
    labels = {key: of for key, of in zip(one.keys, one.labels, strict=True) if key is not None}
    weight, right = best_weight(labels, _by_key(one, one.classes), _by_key(two, one.classes))
    return SearchedWeight(weight, split, len(one.keys), right / len(one.keys), (one.folder, two.folder))


def _by_key(evaluation: FinishedEvaluation, classes: Sequence[str]) -> dict[str, Scores | None]:
    """Each video's scores by its key, in the order of `classes`, which the evaluation has; None of damaged ones."""
    order = [evaluation.classes.index(name) for name in classes]
    rows = zip(evaluation.keys, evaluation.scores, strict=True)
    return {key: None if row is None else row[order] for key, row in rows if key is not None}


def _is_alike(summary: Mapping[str, Any], protocol: Protocol) -> bool:
    """Whether an evaluation was by a protocol of as many clips and crops, and the same average."""
    named = _protocol_of(summary)
    return bool(all(named[name] == getattr(protocol, name) for name in ("clips", "crops", "average")))


def _protocol_of(summary: Mapping[str, Any]) -> dict[str, Any]:
    """All of an evaluation's protocol but its words; those that name none had one crop, and softmaxes averaged."""
    named = {"clips": summary.get("clips_a_video"), "crops": 1, "average": "scores", **summary.get("protocol", {})}
    return {name: value for name, value in named.items() if name != "words"}


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


def _evaluations_by(
    run: Path, split: str, step: int | None, of: str, protocol: Mapping[str, Any]
) -> list[FinishedEvaluation]:
    """The run's evaluations of a split by a protocol, with the weights of a step; the last finished last."""
    every = [read_evaluation(folder, of) for folder in evaluations_of(run)]
    fitting = [
        each
        for each in every
        if (each.summary.get("split"), each.summary.get("step"), _protocol_of(each.summary)) == (split, step, protocol)
    ]
    if not fitting:
        what = f"it has no evaluation of the split {split!r} by this protocol, with the weights of step {step}"
        settings = Protocol(**protocol).overrides if "crop" in protocol else f"clips={protocol['clips']}"
        remedy = (
            f"make it first, of the checkpoint that is reported: reelscale evaluate CONFIG run={run} split={split} "
        )
        raise UserError(what, str(run), remedy + settings)
    return fitting
