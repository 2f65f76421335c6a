"""What a run was trained on, of its settings, in the words of the published rows."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from pretrain.papers.rows import NAMES, NAMES_OF_FORMS, Trained

_SETS = "|".join((*NAMES, "ig65m", "imagenet"))
_STORE = re.compile(rf"({_SETS})(-\d+)?")  # kinetics400, kinetics400-256; hmdb51-1, of its first split
_RUN = re.compile(rf"({_SETS})(-({'|'.join((*NAMES_OF_FORMS, 'i3d'))})(-.*)?)?")  # imagenet-i3d-rgb
_MADE = re.compile(r".+-(?:pretrain|finetune)-(.+)")  # RECIPE-STORE


def trained_of(settings: Mapping[str, Any]) -> Trained:
    """What a run was trained on, of its settings by dotted path (`data.store`, …).

    Data are known by the name of their store, those that a run started from by the name of its run, where the names are
    as recipes have them.
    """

    def of(path: str, usual: Any = None) -> Any:
        value = settings.get(path)
        return usual if value is None else value

    start, epochs, epoch_clips = of("init.run"), of("schedule.epochs"), of("schedule.epoch_clips")
    return Trained(
        data=data_of_store(str(of("data.store", ""))) + (" and others" if of("data.mix") else ""),
        network=str(of("model.name", "")),
        depth=of("model.depth"),
        frames=of("data.clip.frames", 0),
        size=of("data.clip.crop", 0),
        input=of("data.clip.input", "rgb"),
        source="scratch" if start is None else data_of_run(str(start)),
        short_edge=of("data.clip.short_edge") is not None,
        clips=None if epochs is None or epoch_clips is None else round(epochs * epoch_clips),
        stride=of("data.clip.stride", 1) if of("data.clip.fps") is None else 1,  # which frames a second replace
        fps=of("data.clip.fps"),
        width=of("model.width", 1.0),
        midplanes=of("model.midplanes", "conv"),
        pool1=of("model.pool1", False),
    )


def data_of_store(store: str) -> str:
    """The data set that a store is named after, whole or with a size or split after it; else the store's name."""
    last = _last(store)
    named = _STORE.fullmatch(last)
    return named[1] if named else last


def data_of_run(run: str) -> str:
    """The data set that a run's name says it was trained on, by its store if that is named; else the run's name."""
    last = _last(run)
    if made := _MADE.fullmatch(last):
        return data_of_store(made[1])
    named = _RUN.fullmatch(last)
    return named[1] if named else last


def _last(path: str) -> str:
    return PurePosixPath(path.rstrip("/")).name
