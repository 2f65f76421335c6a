"""Evaluations of runs that one command trains: checked before the runs are made, and found once they are there."""

from collections.abc import Sequence
from pathlib import Path

from cluster.jobs.evaluation import EvaluationJob
from pretrain.conversion.published import meta_network
from pretrain.data.sources import open_sources
from pretrain.evaluation.evaluate import EvaluateSettings, protocol_of
from pretrain.evaluation.videos import evaluated_videos
from pretrain.run_settings import read_settings_file
from pretrain.settings import TrainSettings
from sharding.base.settings import load_settings
from sharding.base.user_paths import absolute
from sharding.storage.store import open_store


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
