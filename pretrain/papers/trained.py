"""What a run was trained on, of its settings, in the words of the published rows."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from pretrain.papers.rows import NAMES, NAMES_OF_FORMS, Policy, Trained

_SETS = "|".join((*NAMES, "ig65m", "imagenet"))
_STORE = re.compile(rf"({_SETS})(-\d+)?")  # kinetics400, kinetics400-256; hmdb51-1, of its first split
_RUN = re.compile(rf"({_SETS})(-({'|'.join((*NAMES_OF_FORMS, 'i3d'))})(-.*)?)?")  # imagenet-i3d-rgb
_USUAL: dict[str, Any] = {  # of settings of learning; `schedule.rates` has no parts by itself
    "data.order.balance": 0, "data.clip.flip": True, "model.dropout": 0, "model.batch_norm": "lane",
    "loss.kind": "softmax", "loss.label_smoothing": 0, "loss.mixup": 0, "engine.momentum": 0.9, "engine.average": None,
    "engine.clip_gradient": 0, "precise_statistics": 0, "validation.early_stop.metric": None,
}  # fmt: skip
_MADE = re.compile(r".+-(?:pretrain|finetune)-(.+)")  # RECIPE-STORE


def trained_of(settings: Mapping[str, Any]) -> Trained:
    """What a run was trained on, of its settings by dotted path (`data.store`, …).

    Data are known by the name of their store, those that a run started from by the name of its run, where the names are
    as recipes have them.
    """

    def of(path: str, usual: Any = None) -> Any:
        value = settings.get(path)
        return usual if value is None else value

    start = of("init.run")
    return Trained(
        data=data_of_store(str(of("data.store", ""))) + (" and others" if of("data.mix") else ""),
        network=str(of("model.name", "")),
        depth=of("model.depth"),
        frames=of("data.clip.frames", 0),
        size=of("data.clip.crop", 0),
        input=of("data.clip.input", "rgb"),
        source="scratch" if start is None else data_of_run(str(start)),
        resized=_resized(of("data.clip.short_edge"), of("data.clip.resize")),
        policy=_policy(of),
        stride=of("data.clip.stride", 1) if of("data.clip.fps") is None else 1,  # which frames a second replace
        fps=of("data.clip.fps"),
        width=of("model.width", 1.0),
        midplanes=of("model.midplanes", "conv"),
        pool1=of("model.pool1", False),
        besides=tuple(f"{path} {value}" for path, value in sorted(settings.items()) if _is_unusual(path, value)),
    )


def _is_unusual(path: str, value: Any) -> bool:
    return path.startswith("schedule.rates.") or (path in _USUAL and value != _USUAL[path])


def _resized(short_edge: Sequence[int] | None, resize: Sequence[int] | None) -> str:
    if short_edge is not None:
        return "to a short edge of " + " to ".join(str(edge) for edge in dict.fromkeys(short_edge))
    return "not at all" if resize is None else f"to {resize[0]} x {resize[1]}"


def _policy(of: Callable[..., Any]) -> Policy:
    epochs, epoch_clips = of("schedule.epochs"), of("schedule.epoch_clips")
    return Policy(
        clips=None if epochs is None or epoch_clips is None else round(epochs * epoch_clips),
        rate=of("schedule.lr", 0.0) / of("lane_batch", 1),
        weight_decay=of("engine.weight_decay", 0.0),
        decay=of("schedule.decay", ""),
        optimizer=of("engine.optimizer", ""),
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
