"""Holds a run against the published row that it is most like, and says in what it differs from it."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any

from pretrain.papers.rows import CLASSES, NAMES, ROWS, Row, Trained

_WEIGHTS = {"network": 16, "depth": 8, "input": 8, "frames": 4, "source": 4, "resized": 1, "size": 1}
_WORDS = {
    "size": "pixels",
    "source": "starts from",
    "clips": "schedule's clips",
    "rate": "learning rate divided by the clips of a step",
    "weight_decay": "weight decay",
    "decay": "learning rate's decay by",
    "fps": "frames a second",
    "midplanes": "mid-planes by",
    "pool1": "max pooling after the stem",
}
_NONE = {"fps": "the video's", "clips": "not known"}  # what None is said as
_KEYS = {"clip@1": "clip1", "video@1": "video1", "video@5": "video5"}
_STREAMS = {"rgb", "flow"}
_FUSED_WEIGHT = 0.5  # of either stream, in the recipes


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


@dataclass(frozen=True)
class Seen:
    """What a run was to see: its `store`, versions of its stores' `indexes`, and the `steps` of the whole run."""

    store: str = ""
    indexes: Collection[str] = ()
    steps: int | None = None


def hold_against(
    trained: Trained, summary: Mapping[str, Any], seen: Seen = Seen(), other: Trained | None = None
) -> Held | str:
    """The published row that a run is most like, of an evaluation's summary; else why there is none.

    `other`: the run that the summary's `fused` names; None where its settings are not known.
    """
    rows = [row for row in ROWS if row.trained.data == trained.data and row.figures]
    if not rows:
        *most, last = NAMES.values()
        return f"They are of {', '.join(most)} and {last}; this run's data are {trained.data or 'others'}."
    fused = summary.get("fused")
    shown = replace(trained, input=_both_inputs(trained, other)) if fused else trained
    row = min(rows, key=lambda each: sum(_WEIGHTS.get(name, 0) for name, _, _ in _unlike(shown, each.trained)))
    differences = [
        f"{_WORDS.get(name, name)} {_said(name, here)} (published: {_said(name, there)})"
        for name, here, there in _unlike(shown, row.trained)
    ]
    step = summary.get("step")
    if seen.steps and step is not None and step < seen.steps:
        differences.append(f"step {step:,} of {seen.steps:,}")
    differences += _scored_unlike(row, trained, summary)
    differences += _other_videos(summary, seen)
    return Held(row, differences + (list(_fused_unlike(row, trained, other, fused)) if fused else []))


def _both_inputs(trained: Trained, other: Trained | None) -> str:
    """The input of two runs together: both, where one saw pictures and one flow, or where the other's is not known."""
    if other is None or {trained.input, other.input} == _STREAMS:
        return "both"
    return f"{trained.input} and {other.input}"


def _unlike(one: Trained, other: Trained) -> list[tuple[str, Any, Any]]:
    there = vars(other) | vars(other.policy)
    pairs = ((name, here, there[name]) for name, here in (vars(one) | vars(one.policy)).items() if name != "policy")
    return [(name, here, there) for name, here, there in pairs if _said(name, here) != _said(name, there)]


def _said(name: str, value: Any) -> str:
    if value is None:
        return _NONE.get(name, "none")
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, tuple):
        return ", ".join(value) or "nothing"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:g}" if isinstance(value, float) else NAMES.get(value, str(value))


def _crops(crops: int, pixels: int) -> str:
    return f"{'the centre crop' if crops == 1 else f'{crops} crops'} of {pixels} pixels"


def _scored_unlike(row: Row, trained: Trained, summary: Mapping[str, Any]) -> Iterator[str]:
    """In what an evaluation differs from that by which the row's recipe is scored."""
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
    if crop > trained.size and protocol.get("pooling", "convolutional") != "convolutional":
        yield "all of a crop pooled (published: place by place)"
    if protocol.get("average", "scores") != "scores":
        yield "mean of logits (published: of softmaxes)"
    if row.splits > 1:
        yield f"one split (published: the mean of {row.splits})"
    if summary.get("split") == "train":
        yield "scored on the training videos"


def _other_videos(summary: Mapping[str, Any], seen: Seen) -> Iterator[str]:
    """What tells that not all videos of the run's own store were scored."""
    store, index = str(summary.get("store") or ""), summary.get("index")
    if index not in seen.indexes and store.rstrip("/") != seen.store.rstrip("/"):
        yield f"scored on another store, {PurePosixPath(store).name or 'not known'}"
    if summary.get("left_out"):
        yield f"{summary['left_out']:,} videos left out"


def _fused_unlike(row: Row, trained: Trained, other: Trained | None, fused: Mapping[str, Any]) -> Iterator[str]:
    """In what a fusion differs from two streams of one network, fused as the row's recipe does it."""
    if other is None:
        yield "input and network of the run that it is fused with cannot be told"
    else:
        for name, here, there in _unlike(other, trained):
            if name != "input":
                said, ours = _said(name, here), _said(name, there)
                yield f"fused with a run of {_WORDS.get(name, name)} {said} (this one: {ours})"
    added = "logits" if row.trained.network == "i3d" else "scores"
    if fused.get("of", added) != added:
        yield f"{fused['of']} added (published: {added})"
    if fused.get("weight", _FUSED_WEIGHT) != _FUSED_WEIGHT:
        yield f"weight {fused['weight']:g} of this run (in the row's recipe: {_FUSED_WEIGHT})"
