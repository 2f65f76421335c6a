"""The files of an evaluation, in a folder of its run's: partial scores as they come, and the results."""

from __future__ import annotations

import json
import logging
import secrets
import shutil
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pydantic

from pretrain.data.reading.store_split import Sample
from pretrain.evaluation.video_score import Scores, VideoScore
from pretrain.scoring.confusion import confusion
from sharding.base.atomic import atomic_write_bytes
from sharding.base.errors import UserError
from sharding.base.text import file_name, read_json
from sharding.format.record import from_parquet, record_meta, to_parquet, with_meta

log = logging.getLogger("reelscale")

SUMMARY, VIDEOS, CLASSES, THUMBS = "summary.json", "videos.parquet", "classes.parquet", "clips.npz"
_AGAIN = "evaluate the run again"  # a remedy
_PIECES = "pieces"
FORMAT = 1
_SECONDS = 1.0  # that scores wait to be written, at least
_SHARE = 0.01  # of the time so far: pieces of a long evaluation are not many


def evaluation_folder(run: Path, store: str, index: str, split: str, protocol: str) -> Path:
    """The folder of a run's evaluation: one for each content of a store, split and name of a protocol.

    RUN/evaluation/NAME-SPLIT-PROTOCOL-DIGEST: the store's last name, and the first of what its index' version digests.
    """
    name = file_name(PurePosixPath(store.rstrip("/")).name, 150) or "store"
    return run / "evaluation" / f"{name}-{split}-{protocol}-{index.rpartition('-')[2][:8]}"


def evaluations_of(run: Path) -> list[Path]:
    """The folders of a run's finished evaluations, the last finished last."""
    summaries = (run / "evaluation").glob(f"*/{SUMMARY}")
    return [path.parent for path in sorted(summaries, key=lambda path: (path.stat().st_mtime_ns, path))]


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
class FinishedEvaluation:
    """A finished evaluation: its summary, and of each video its key, its labels and its scores or logits [classes].

    Labels are numbers of `classes`. A damaged video has no scores, one whose record is damaged no key either.
    """

    folder: Path
    summary: dict[str, Any]
    classes: list[str]
    keys: list[str | None]
    labels: list[list[int]]
    scores: list[Scores | None]


def read_evaluation(folder: Path, of: str) -> FinishedEvaluation:
    """What `write_files` wrote there; `of`: scores or logits. Raises UserError if it is damaged."""
    try:
        data = (folder / SUMMARY).read_bytes()
        summary = read_json(data, Summary, f"the evaluation's {SUMMARY}", str(folder), _AGAIN, FORMAT)
        table = from_parquet((folder / VIDEOS).read_bytes(), ["key", "labels", of])
        classes = [str(name) for name in record_meta(table.schema)["classes"]]
        keys, labels = (table[name].to_pylist() for name in ("key", "labels"))
        return FinishedEvaluation(
            folder, summary.model_dump(exclude_unset=True), classes, keys, labels, _rows_of(table[of])
        )
    except (OSError, EOFError, ValueError, LookupError, TypeError) as error:
        what = f"the evaluation cannot be read ({type(error).__name__}: {error})"
        raise UserError(what, str(folder), _AGAIN) from error


class PartialScores:
    """Scores of an evaluation that is under way, written as they come: what an earlier call left is taken up.

    Only of the same identity; damaged videos are tried again. A context manager, which writes what is left as it ends,
    however it ends.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        """`folder`: of the evaluation; `identity`: JSON values, all that the scores follow from."""
        self.folder, self._identity = folder / _PIECES, {"format": FORMAT, **identity}
        self._waiting: list[VideoScore] = []
        self._begun = self._written = time.monotonic()
        self._warned = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.flush()

    def read(self) -> dict[int, VideoScore]:
        """The scores of sound videos that are there, by row."""
        scores: dict[int, VideoScore] = {}
        for path in sorted(self.folder.glob("*.parquet")):
            try:
                table = from_parquet(path.read_bytes())
                if record_meta(table.schema) == self._identity:
                    scores |= {score.row: score for score in _scores(table) if score.damaged is None}
            except (OSError, ValueError, KeyError):  # made anew, as is what it held
                continue
        return scores

    def add(self, scores: Iterable[VideoScore]) -> None:
        """Have some more written, within about a second."""
        self._waiting += scores
        now = time.monotonic()
        if now - self._written > max(_SECONDS, _SHARE * (now - self._begun)):
            self.flush()

    def flush(self) -> None:
        """Write what waits. A disk that takes nothing is told once: the scores are still at hand."""
        if not self._waiting:
            return
        data = to_parquet(with_meta(_table(self._waiting), self._identity))
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(self.folder / f"{secrets.token_hex(8)}.parquet", data)
        except OSError as error:
            if not self._warned:
                log.warning("scores cannot be written as they come: %s; the evaluation goes on", error)
            self._warned = True
        else:
            self._waiting = []
        self._written = time.monotonic()

    def clear(self) -> None:
        """Remove them, once the evaluation's own files are there."""
        self._waiting = []
        shutil.rmtree(self.folder, ignore_errors=True)


def write_files(
    folder: Path,
    summary: dict[str, Any],
    scores: Sequence[VideoScore],
    samples: Sequence[Sample | None],
    thumbs: bytes | None,
) -> None:
    """Write videos.parquet, classes.parquet, clips.npz and, when these are there, summary.json.

    Raises UserError where they cannot be.

    A video that is damaged has no prediction and no scores; of one whose record is, nothing else is known either.
    """
    labels = [list(sample.labels) if sample else [] for sample in samples]
    table = {
        "key": pa.array([sample and sample.key for sample in samples], pa.string()),
        "uri": pa.array([sample and sample.uri for sample in samples], pa.string()),
        "split": pa.array([summary["split"]] * len(scores), pa.string()),
        "labels": pa.array(labels, pa.list_(pa.int32())),
        "predicted": pa.array([score.predicted for score in scores], pa.int32()),
        **_columns(scores),
    }
    meta = {"format": FORMAT, "classes": summary["classes"]}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / SUMMARY).unlink(missing_ok=True)  # it says of files that all belong together
        atomic_write_bytes(folder / VIDEOS, to_parquet(with_meta(pa.table(table), meta)))
        classes = _class_table(summary["per_class"], labels, scores)
        atomic_write_bytes(folder / CLASSES, to_parquet(with_meta(classes, {"format": FORMAT})))
        if thumbs is None:
            (folder / THUMBS).unlink(missing_ok=True)
        else:
            atomic_write_bytes(folder / THUMBS, thumbs)
        atomic_write_bytes(folder / SUMMARY, json.dumps(summary, indent=1).encode())
    except OSError as error:
        remedy = "make room, then give the same command: it goes on from the scores that are there"
        raise UserError(f"the evaluation cannot be written: {error}", str(folder), remedy) from error


def _class_table(
    per_class: Sequence[dict[str, Any]], labels: Sequence[Sequence[int]], scores: Sequence[VideoScore]
) -> pa.Table:
    """A row a class: its figures, and what most of its wrong videos were taken for, and how many these are."""
    counts = confusion(labels, [score.predicted for score in scores], len(per_class))
    np.fill_diagonal(counts, 0)
    takens, wrong = counts.argmax(1), counts.max(1)
    lows, highs = zip(*(entry["interval"] or (None, None) for entry in per_class), strict=True)
    return pa.table(
        {
            "name": pa.array([entry["name"] for entry in per_class], pa.string()),
            "videos": pa.array([entry["videos"] for entry in per_class], pa.int64()),
            "video1": pa.array([entry["video1"] for entry in per_class], pa.float64()),
            "video5": pa.array([entry["video5"] for entry in per_class], pa.float64()),
            "low": pa.array(lows, pa.float64()),
            "high": pa.array(highs, pa.float64()),
            "taken_for": pa.array(
                [per_class[taken]["name"] if count else None for taken, count in zip(takens, wrong, strict=True)],
                pa.string(),
            ),
            "taken": pa.array(wrong, pa.int64()),
        }
    )


def _table(scores: Sequence[VideoScore]) -> pa.Table:
    return pa.table({"row": pa.array([score.row for score in scores], pa.int64()), **_columns(scores)})


def _columns(scores: Sequence[VideoScore]) -> dict[str, pa.Array]:
    return {
        "logits": _vectors([score.logits for score in scores]),
        "scores": _vectors([score.scores for score in scores]),
        "clips": pa.array([score.clips for score in scores], pa.int32()),
        "clips_right": pa.array([score.clips_right for score in scores], pa.int32()),
        "damaged": pa.array([score.damaged for score in scores], pa.string()),
    }


def _vectors(rows: Sequence[Scores | None]) -> pa.Array:
    """Lists of numbers, a row each, without a Python object for each number."""
    there = [row for row in rows if row is not None]
    values = np.concatenate(there) if there else np.zeros(0, np.float32)
    ends = np.cumsum([0, *(0 if row is None else len(row) for row in rows)])
    offsets = pa.array(ends, pa.int32(), mask=np.array([row is None for row in rows] + [False]))
    return pa.ListArray.from_arrays(offsets, pa.array(values, pa.float32()))


def _scores(table: pa.Table) -> list[VideoScore]:
    columns = {name: table[name].to_pylist() for name in ("row", "clips", "clips_right", "damaged")}
    vectors = [_rows_of(table[name]) for name in ("scores", "logits")]
    return [
        VideoScore(row, scores, logits, clips, right, damaged)
        for row, clips, right, damaged, scores, logits in zip(*columns.values(), *vectors, strict=True)
    ]


def _rows_of(column: pa.ChunkedArray) -> list[Scores | None]:
    return [None if not row.is_valid else np.asarray(row.values, np.float32) for row in column]
