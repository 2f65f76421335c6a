"""Evaluations of runs that one command trains: checked before the runs are made, and found once they are there."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.jobs.evaluation import EvaluationJob
from pretrain.conversion.published import meta_network
from pretrain.data.sources import open_sources
from pretrain.evaluation.evaluate import EvaluateSettings, protocol_of
from pretrain.evaluation.files import SUMMARY, evaluations_of
from pretrain.evaluation.fusion import FuseSettings
from pretrain.evaluation.videos import NEWEST, evaluated_videos
from pretrain.run_settings import SETTINGS, read_settings_file
from pretrain.settings import TrainSettings
from sharding.base.errors import UserError
from sharding.base.settings import load_settings
from sharding.base.user_paths import absolute
from sharding.format.index import has_version
from sharding.storage.store import open_store

FIGURES = ("video1", "video5", "clip1")


def load_evaluation(recipe: str, overrides: Sequence[str], train: TrainSettings) -> EvaluateSettings:
    """The settings of an evaluation of a run that is still to be trained.

    Raises UserError for those that do not fit: unknown ones, a crop that the network does not take, a store without
    the split or without the run's classes, another run to fuse that is none.
    """
    settings = load_settings(EvaluationJob, recipe, overrides).evaluation
    clip, sources = train.data.clip, open_sources(train.data)
    protocol_of(settings, clip, meta_network(train.model, len(sources.classes), clip.frames, clip.crop))
    store = open_store(absolute(settings.store) if settings.store else train.data.store)
    evaluated_videos(store, settings.split, settings.index, (), sources.classes)
    if settings.fuse:
        read_settings_file(Path(absolute(settings.fuse.run)))
    return settings


def finished_evaluation(settings: EvaluateSettings) -> tuple[Path, dict[str, Any]] | None:
    """The folder and summary of the newest of a run's evaluations that is by these settings; None where there is none.

    That is: of their split and store, by their protocol, fused as they say. One that cannot be read counts as none, as
    does one whose run cannot.
    """
    run = Path(settings.run)
    for folder in reversed(evaluations_of(run)):
        try:
            summary = json.loads((folder / SUMMARY).read_bytes())
            if all(isinstance(summary[name], float | int) for name in (*FIGURES, "videos")) and _is_by(
                summary, settings, run
            ):
                return folder, summary
        except (UserError, OSError, ValueError, LookupError, TypeError, AttributeError):
            continue
    return None


def figures_of(summary: Mapping[str, Any], fuse: FuseSettings | None) -> dict[str, float]:
    """The figures of an evaluation: those of the fused scores where `fuse` asks for them.

    Clips are not fused: clip@1 is the evaluated run's own.
    """
    own = {name: float(summary[name]) for name in FIGURES}
    return own | {name: float(summary["fused"][name]) for name in FIGURES if fuse and name in summary["fused"]}


def _is_by(summary: Mapping[str, Any], settings: EvaluateSettings, run: Path) -> bool:
    """Whether an evaluation of a run is by these settings."""
    protocol = summary["protocol"]
    trained = protocol["trained_crop"]
    crop = settings.crop or trained
    asked = {"clips": settings.clips, "crops": settings.crops, "crop": crop, "average": settings.average}
    asked |= {"pooling": settings.pooling} if crop > trained else {}
    return (
        summary["split"] == settings.split
        and all(protocol[name] == value for name, value in asked.items())
        and _is_of_store(summary, settings, run)
        and (settings.fuse is None or _is_fused(summary, settings.fuse))
    )


def _is_of_store(summary: Mapping[str, Any], settings: EvaluateSettings, run: Path) -> bool:
    """Whether it is of the store, and of the version of its index, that `evaluated_videos` takes by these settings."""
    index = settings.index
    if settings.store:
        at_hand = open_store(absolute(settings.store), ask=False)
        return bool(summary["store"] == at_hand.url) and index in (None, NEWEST, summary["index"])
    whole = read_settings_file(run)
    own = open_store(whole.settings["data"]["store"], ask=False)
    if index is not None or summary["store"] != own.url:
        return bool(summary["store"] == own.url) and index in (NEWEST, summary["index"])
    began = whole.began_with(str(run / SETTINGS))["index"]
    return summary["index"] in began or not any(has_version(own, version) for version in began)


def _is_fused(summary: Mapping[str, Any], fuse: FuseSettings) -> bool:
    """Whether it was fused as `fuse` says; of a weight that was searched, only where matters."""
    asked = fuse.model_copy(update={"run": absolute(fuse.run)}).model_dump(mode="json")
    if fuse.search_split is not None:
        del asked["weight"]
    fused = summary.get("fused") or {}
    return all(fused.get(name) == value for name, value in asked.items())
