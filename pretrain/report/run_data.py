"""Reads a run's folder for a report: settings, metrics by step, evaluations."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from pretrain.checkpoints.history import HISTORY
from pretrain.evaluation.files import THUMBS, evaluations_of, read_evaluation
from pretrain.run_settings import read_settings_file
from sharding.base.errors import UserError

Event = dict[str, Any]
_EVENT = pydantic.TypeAdapter(dict[str, int | float | Literal["train", "validation"] | None])


@dataclass(frozen=True)
class ClipThumbnails:
    """The kept clips: uint8 `frames` V F H W 3, and for each its row in the evaluation's videos."""

    frames: np.ndarray
    rows: list[int]


@dataclass(frozen=True)
class Evaluation:
    """An evaluation's name and summary (fractions in [0, 1]), and what each video was and was taken for."""

    name: str
    summary: dict[str, Any]
    classes: list[str]
    keys: list[str]
    truths: list[int]  # of several labels the predicted one, if it is among them; -1 if there is no label
    predictions: list[int]  # -1 of a damaged video
    scores: list[float]  # the predicted class's; 0 of a damaged video
    clips: ClipThumbnails | None = None
    fused_settings: dict[str, Any] | None = None  # by dotted path, of the run it is fused with; None if not known

    def rights(self) -> list[bool]:
        """Whether each video was taken for a class of its own; a damaged one was not."""
        return [truth == taken >= 0 for truth, taken in zip(self.truths, self.predictions, strict=True)]

    def confusion(self) -> np.ndarray:
        """Videos by true class (rows) and predicted class (columns), classes × classes; without damaged ones."""
        counts = np.zeros((len(self.classes), len(self.classes)), dtype=np.int64)
        for truth, prediction in zip(self.truths, self.predictions, strict=True):
            if truth >= 0 and prediction >= 0:
                counts[truth, prediction] += 1
        return counts


@dataclass(frozen=True)
class RunFiles:
    """A run's folder: its settings by dotted path, its events by step, its evaluations, the last one last."""

    path: Path
    name: str
    settings: dict[str, Any]
    train: list[Event]
    validation: list[Event]
    evaluations: list[Evaluation]
    unreadable: int = 0  # lines of metrics.jsonl

    def setting(self, last: str) -> Any:
        """The first setting whose dotted path ends in this name, or None."""
        found = (value for path, value in self.settings.items() if path.split(".")[-1] == last)
        return next(found, None)


def read_run(path: Path) -> RunFiles:
    """Read a run's folder. Raises UserError if it is missing or no run's, or a file of it cannot be read."""
    if not path.is_dir():
        raise UserError(
            "there is no such run folder",
            str(path),
            "give the folder a run was written to (its settings.json lies in it)",
        )
    settings = dict(flat(read_settings_file(path).model_dump(exclude={"format", "threads"})))
    train, validation, unreadable = read_metrics(path / HISTORY)
    evaluations = [_read_evaluation(folder) for folder in evaluations_of(path)]
    name = path.resolve().name
    return RunFiles(path, name, settings, train, validation, evaluations, unreadable)


def read_metrics(path: Path, last_bytes: int | None = None) -> tuple[list[Event], list[Event], int]:
    """The training and the validation events by step, and how many lines could not be read.

    `last_bytes`: only those at the end of the file.
    A step written twice (a resumed run) counts as it was last written. A kill can cut a line short, and the
    resumed run then writes on behind it; such a line is left out.
    """
    events: dict[str, dict[int, Event]] = {"train": {}, "validation": {}}
    unreadable = 0
    text = ""
    if path.exists():
        with path.open("rb") as file:
            if last_bytes is not None:
                file.seek(max(0, path.stat().st_size - last_bytes))
            text = file.read().decode(errors="replace")
    for line in filter(str.strip, text.splitlines()):
        try:
            event = _EVENT.validate_json(line)
            kind, step = event["event"], event["step"]
            if not isinstance(kind, str) or not isinstance(step, int):
                raise ValueError("no event of a step")
            events[kind][step] = event
        except (ValueError, KeyError):
            unreadable += 1
    train, validation = ([kind[step] for step in sorted(kind)] for kind in events.values())
    return train, validation, unreadable


def series(events: list[Event], name: str) -> np.ndarray:
    """One figure over events, NaN where an event does not have it."""
    values = (event.get(name) for event in events)
    return np.array([math.nan if value is None else float(value) for value in values], dtype=float)


def seconds_at(train: list[Event], steps: Any) -> Any:
    """Seconds of training up to each of these steps, from the clips and the rate of the training events.

    Validations take no part, nor do steps that were taken anew. An event without a rate adds no time.
    """
    samples, rates = series(train, "samples"), series(train, "clips_per_second")
    clips = np.diff(samples, prepend=0.0)
    sound = np.isfinite(clips) & np.isfinite(rates) & (rates > 0)
    seconds = np.cumsum(np.where(sound, clips, 0.0) / np.where(sound, rates, 1.0))
    return np.interp(steps, np.append(0.0, series(train, "step")), np.append(0.0, seconds))


def _read_evaluation(folder: Path) -> Evaluation:
    evaluation = read_evaluation(folder, "scores")
    try:
        clips = _read_clips(folder / THUMBS)
    except (OSError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
        what = f"the evaluation cannot be read ({type(error).__name__}: {error})"
        raise UserError(what, str(folder), "evaluate the run again") from error
    predictions = [-1 if row is None else int(row.argmax()) for row in evaluation.scores]
    truths = [
        taken if taken in labels else (labels[0] if labels else -1)
        for taken, labels in zip(predictions, evaluation.labels, strict=True)
    ]
    scores = [0.0 if row is None else float(row.max()) for row in evaluation.scores]
    keys = [str(key) for key in evaluation.keys]
    fused = (evaluation.summary.get("fused") or {}).get("run")
    return Evaluation(
        folder.name, evaluation.summary, evaluation.classes, keys, truths, predictions, scores, clips,
        _settings_if_there(Path(fused)) if fused else None,
    )  # fmt: skip


def _settings_if_there(run: Path) -> dict[str, Any] | None:
    try:
        return dict(flat(read_settings_file(run).settings))
    except (UserError, OSError):  # moved since, or of another machine
        return None


def _read_clips(path: Path) -> ClipThumbnails | None:
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        frames, rows = arrays["frames"], [int(row) for row in arrays["rows"]]
    return ClipThumbnails(frames, rows) if len(rows) and frames.size else None


def flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a JSON tree with their dotted paths; a list, or an empty object, is one leaf."""
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from flat(inner, f"{path}.{name}" if path else str(name))
    else:
        yield path, value
