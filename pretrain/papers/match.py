"""Holds a run against the published row that it is most like, and says in what it differs from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import PurePosixPath
from typing import Any

from pretrain.papers.rows import CLASSES, NAMES, ROWS, Row, Trained

_WEIGHTS = {"network": 16, "depth": 8, "input": 8, "frames": 4, "source": 4, "short_edge": 1, "size": 1}
_WORDS = {"size": "pixels", "source": "starts from", "short_edge": "short-edge scaling"}
_KEYS = {"clip@1": "clip1", "video@1": "video1", "video@5": "video5"}


@dataclass(frozen=True)
class Held:
    """The row that a run is most like, and all in which the two differ: nothing of those that are comparable."""

    row: Row
    differences: list[str]

    def figures(self, summary: Mapping[str, Any]) -> list[tuple[str, str, float, float]]:
        """Of each published figure that was measured, too: name, key in the summary, measured and published share."""
        return [
            (name, _KEYS[name], summary[_KEYS[name]], published / 100)
            for name, published in self.row.figures.items()
            if summary.get(_KEYS[name]) is not None
        ]


def trained_of(settings: Mapping[str, Any]) -> Trained:
    """What a run was trained on, of its settings by dotted path (`data.store`, …).

    Data are known by the name of their store, those that a run started from by the name of its run.
    """

    def of(path: str, usual: Any = None) -> Any:
        value = settings.get(path)
        return usual if value is None else value

    start = of("init.run")
    return Trained(
        data=_data_of(str(of("data.store", ""))) + (" and others" if of("data.mix") else ""),
        network=str(of("model.name", "")),
        depth=of("model.depth"),
        frames=of("data.clip.frames", 0),
        size=of("data.clip.crop", 0),
        input=of("data.clip.input", "rgb"),
        source="scratch" if start is None else _data_of(str(start)),
        short_edge=of("data.clip.short_edge") is not None,
    )


def hold_against(trained: Trained, width: float, summary: Mapping[str, Any], planned: int | None = None) -> Held | str:
    """The published row that a run is most like, of an evaluation's summary; else why there is none.

    `width`: the network's; `planned`: steps of the whole run.
    """
    rows = [row for row in ROWS if row.trained.data == trained.data and row.figures]
    if not rows:
        *most, last = NAMES.values()
        return f"They are of {', '.join(most)} and {last}; this run's data are {trained.data or 'others'}."
    row = min(rows, key=lambda each: sum(_WEIGHTS.get(name, 0) for name, _, _ in _unlike(trained, each.trained)))
    differences = [
        f"{_WORDS.get(name, name)} {_said(here)} (published: {_said(there)})"
        for name, here, there in _unlike(trained, row.trained)
    ]
    if width != 1:
        differences.append(f"width {width:g} (published: 1)")
    step = summary.get("step")
    if planned and step is not None and step < planned:
        differences.append(f"step {step:,} of {planned:,}")
    return Held(row, [*differences, *_scored_unlike(row, summary)])


def _data_of(name: str) -> str:
    """The data set that the name of a store or run begins with; else the name."""
    last = PurePosixPath(name.rstrip("/")).name
    return next((word for word in (*NAMES, "ig65m", "imagenet") if last.startswith(word)), last)


def _unlike(one: Trained, other: Trained) -> list[tuple[str, Any, Any]]:
    pairs = ((field.name, getattr(one, field.name), getattr(other, field.name)) for field in fields(Trained))
    return [(name, here, there) for name, here, there in pairs if here != there]


def _said(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else NAMES.get(value, str(value))


def _crops(crops: int, pixels: int) -> str:
    return f"{'the centre crop' if crops == 1 else f'{crops} crops'} of {pixels} pixels"


def _scored_unlike(row: Row, summary: Mapping[str, Any]) -> Iterable[str]:
    classes, wanted = len(summary.get("classes") or ()), CLASSES[row.trained.data]
    if classes != wanted:
        yield f"{classes} classes (published: {wanted})"
    clips, protocol = summary.get("clips_a_video"), summary.get("protocol") or {}
    if clips != row.clips:
        yield f"{clips} clips a video (published: {row.clips or 'whole videos'})"
    crops, crop = protocol.get("crops", 1), protocol.get("crop", row.trained.size)
    published = row.crops, row.crop or row.trained.size
    if (crops, crop) != published:
        yield f"scored in {_crops(crops, crop)} (published: {_crops(*published)})"
    if row.splits > 1:
        yield f"one split (published: the mean of {row.splits})"
    if summary.get("split") == "train":
        yield "scored on the training videos"
