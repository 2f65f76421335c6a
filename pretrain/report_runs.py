"""What a report is made of: a run's folder, read whole and made tidy."""

from __future__ import annotations

import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from pretrain.run_settings import CLASSES, read_classes_file, read_settings_file
from sharding.errors import UserError
from sharding.json_file import read_json
from sharding.record import from_parquet

Event = dict[str, Any]
_EVENT = pydantic.TypeAdapter(dict[str, int | float | Literal["train", "validation"] | None])
_EVALUATE = "evaluate the run again"  # a remedy


class ClassFigures(pydantic.BaseModel):
    """One class' share of an evaluation."""

    model_config = pydantic.ConfigDict(extra="allow")

    name: str
    videos: int
    video1: float | None


class Summary(pydantic.BaseModel):
    """What of an evaluation's summary.json a report shows; shares are in [0, 1]."""

    model_config = pydantic.ConfigDict(extra="allow")

    video1: float = 0.0
    video5: float = 0.0
    clip1: float = 0.0
    videos: int = 0
    clips: int = 0
    classes: list[str] = []
    per_class: list[ClassFigures] = []


@dataclass(frozen=True)
class Clips:
    """The kept clips: uint8 `frames` V F H W 3, and for each its row in the evaluation's videos."""

    frames: np.ndarray
    rows: list[int]


@dataclass(frozen=True)
class Evaluation:
    """An evaluation's summary (fractions in [0, 1]), and what each video was and was taken for."""

    summary: dict[str, Any]
    classes: list[str]
    keys: list[str]
    truths: list[int]  # of several labels the predicted one, if it is among them; -1 if there is no label
    predictions: list[int]
    scores: list[float]  # the predicted class's
    clips: Clips | None = None

    def confusion(self) -> np.ndarray:
        """Videos by true class (rows) and predicted class (columns), classes × classes."""
        counts = np.zeros((len(self.classes), len(self.classes)), dtype=np.int64)
        for truth, prediction in zip(self.truths, self.predictions, strict=True):
            if truth >= 0:
                counts[truth, prediction] += 1
        return counts


@dataclass(frozen=True)
class RunFiles:
    """A run's folder: its settings by dotted path, its events by step, its evaluation if there is one."""

    path: Path
    name: str
    settings: dict[str, Any]
    train: list[Event]
    validation: list[Event]
    evaluation: Evaluation | None
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
    settings = dict(_flat(read_settings_file(path).model_dump(exclude={"format", "threads"})))
    train, validation, unreadable = read_metrics(path / "metrics.jsonl")
    classes = read_classes_file(path) if (path / CLASSES).exists() else []
    evaluation = None
    if (path / "evaluation" / "summary.json").exists():
        evaluation = _read_evaluation(path / "evaluation", classes)
    name = path.resolve().name
    return RunFiles(path, name, settings, train, validation, evaluation, unreadable)


def read_metrics(path: Path) -> tuple[list[Event], list[Event], int]:
    """The training and the validation events by step, and how many lines could not be read.

    A step written twice (a resumed run) counts as it was last written. A kill can cut a line short, and the
    resumed run then writes on behind it; such a line is left out.
    """
    events: dict[str, dict[int, Event]] = {"train": {}, "validation": {}}
    unreadable = 0
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
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


def confused_pairs(counts: np.ndarray, limit: int) -> list[tuple[int, int, int]]:
    """(true, predicted, videos) of the most frequent confusions, most frequent first."""
    wrong = counts * (1 - np.eye(len(counts), dtype=np.int64))
    order = np.argsort(-wrong, axis=None, kind="stable")[:limit]
    pairs = (divmod(int(place), len(counts)) for place in order)
    return [(truth, taken, int(wrong[truth, taken])) for truth, taken in pairs if wrong[truth, taken]]


def _read_evaluation(folder: Path, classes: list[str]) -> Evaluation:
    try:
        summary = read_json(
            (folder / "summary.json").read_bytes(), Summary, "the evaluation's summary.json", str(folder), _EVALUATE
        ).model_dump(exclude_unset=True)
        return _evaluation(folder, summary, classes)
    except (OSError, EOFError, ValueError, LookupError, TypeError, zipfile.BadZipFile) as error:
        what = f"the evaluation cannot be read ({type(error).__name__}: {error})"
        raise UserError(what, str(folder), _EVALUATE) from error


def _evaluation(folder: Path, summary: dict[str, Any], classes: list[str]) -> Evaluation:
    columns = ["key", "labels", "predicted", "scores"]
    rows = from_parquet((folder / "videos.parquet").read_bytes(), columns).to_pydict()
    clips = _read_clips(folder / "clips.npz")
    predictions = [int(predicted) for predicted in rows["predicted"]]
    labels = [list(map(int, given)) for given in rows["labels"]]
    truths = [
        taken if taken in given else (given[0] if given else -1)
        for taken, given in zip(predictions, labels, strict=True)
    ]
    names = [str(name) for name in summary.get("classes") or classes]
    most = max([*predictions, *truths, -1])
    names += [f"class {number}" for number in range(len(names), most + 1)]
    scores = [float(row[taken]) for row, taken in zip(rows["scores"], predictions, strict=True)]
    return Evaluation(summary, names, [str(key) for key in rows["key"]], truths, predictions, scores, clips)


def _read_clips(path: Path) -> Clips | None:
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as arrays:
        frames, rows = arrays["frames"], [int(row) for row in arrays["rows"]]
    return Clips(frames, rows) if len(rows) and frames.size else None


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for name, inner in value.items():
            yield from _flat(inner, f"{path}.{name}" if path else str(name))
    else:
        yield path, value
