"""Evaluation of a run's network on a store's videos: clip@1, video@1, video@5, and their files."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from pydantic import Field

from pretrain.checkpoint import load_run
from pretrain.data.batches import Batch
from pretrain.data.clips import evaluation_starts
from pretrain.data.decode import decode_frames
from pretrain.data.loader import evaluation_clips
from pretrain.data.pool import LoaderSettings, WorkerPool
from pretrain.data.reading import ReadingSettings
from pretrain.data.stream import Damaged, Split, open_split
from pretrain.data.tensors import made_batch, plane_batch
from pretrain.data.transforms import network_input, pictures
from pretrain.data.views import ClipSettings, centre_view
from pretrain.data.worker import Work
from pretrain.engine.autotune.choose import evaluation_path
from pretrain.fusion import FuseSettings, best_rank, fuse_evaluation
from pretrain.models.network import VideoNetwork
from pretrain.models.weights import load_weights
from pretrain.models.zoo import build_model
from pretrain.run import read_settings
from sharding.aside import put_whole
from sharding.errors import UserError
from sharding.record import to_parquet
from sharding.settings import Settings
from sharding.store import open_store
from sharding.writable import writing

_THUMBS = 48
_THUMB_FRAMES = 6


class EvaluateSettings(Settings):
    """Which network on which videos, and how many clips of each."""

    run: Annotated[str, Field(description="the run's folder; its newest checkpoint is evaluated")]
    store: Annotated[str | None, Field(description="the store; the run's own unless given")] = None
    split: Annotated[str, Field(description="which split of it")] = "val"
    clips: Annotated[int, Field(ge=1, le=10**4, description="uniform clips a video (10; 100 on Sports-1M)")] = 10
    batch: Annotated[int, Field(ge=1, le=2**16, description="clips scored at once")] = 32
    fuse: Annotated[FuseSettings | None, Field(description="two-stream: add another run's scores")] = None


@dataclass(frozen=True)
class VideoScore:
    """One video: row of the split, mean softmax and mean logits over its clips [classes], clips, and how many of
    them have a right top class."""

    row: int
    scores: NDArray[np.float32]
    logits: NDArray[np.float32]
    clips: int
    clips_right: int


@dataclass(frozen=True)
class Subject:
    """What is evaluated: the network in evaluation mode, where it computes, and its input."""

    model: VideoNetwork
    device: torch.device
    clip: ClipSettings
    split: Split
    step: int


def open_subject(settings: EvaluateSettings) -> Subject:
    """Load the run's newest network and open the videos.

    Raises UserError for a folder that is no run, a store without the split, or other classes than the run's.
    """
    run = Path(settings.run)
    train, classes = read_settings(run)
    if train.model.in_channels != train.data.clip.channels:
        what = f"the network takes {train.model.in_channels} channels, and its clips have {train.data.clip.channels}"
        raise UserError(what, str(run), "evaluate a network with the clips that it was trained on")
    split = open_split(open_store(settings.store or train.data.store), settings.split)
    if not set(split.index.classes) <= set(classes):
        raise UserError(
            f"the store's {len(split.index.classes)} classes are not among the {len(classes)} that the run learned",
            split.store.url,
            "evaluate on the store the run was trained on, or fine-tune the run on this one first",
        )
    split.number_classes(classes)
    checkpoint = load_run(run)
    model = build_model(train.model, len(classes), train.data.clip.frames, train.data.clip.crop)
    load_weights(model, checkpoint.weights, "keep", str(run))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model.use(evaluation_path(run, train.engine.path, device))
    return Subject(model.to(device).eval(), device, train.data.clip, split, checkpoint.step)


def score_videos(subject: Subject, rows: list[int], clips: int, batch: int, workers: int) -> Iterator[VideoScore]:
    """Score videos by their rows in the split: softmax of each centre-cropped clip, averaged over the video's.

    `batch` clips go through the network at once; `workers` processes decode. Raises UserError for a damaged video.
    """
    work = Work(subject.clip, ReadingSettings(), unseen=subject.split, gives_way=subject.device.type == "cpu")
    with WorkerPool(workers, work, LoaderSettings().stall_seconds) as pool:
        try:
            for row, video in zip(rows, evaluation_clips(pool, rows, clips, 1), strict=True):
                yield _score(subject, row, video, batch)
        except Damaged as error:
            remedy = "find out with `reelscale shards verify STORE`, and shard it anew"
            raise UserError(f"a video cannot be evaluated: {error}", subject.split.store.url, remedy) from error


def _score(subject: Subject, row: int, video: Batch, batch: int) -> VideoScore:
    with torch.inference_mode():
        logits = []
        for begin in range(0, len(video.planes), batch):
            part = made_batch(video.planes.part(begin, begin + batch)).each(lambda planes: planes.to(subject.device))
            logits.append(subject.model(network_input(part, subject.clip)).float())
    together = torch.cat(logits).cpu()
    scores = together.softmax(1)
    right = sum(int(top) in video.labels[0] for top in scores.argmax(1))
    return VideoScore(row, scores.mean(0).numpy(), together.mean(0).numpy(), len(scores), right)


def write_evaluation(subject: Subject, settings: EvaluateSettings, found: list[VideoScore]) -> dict[str, Any]:
    """Write RUN/evaluation (summary.json, videos.parquet, clips.npz) and return the summary."""
    folder = Path(settings.run) / "evaluation"
    with writing(folder, "run"):
        folder.mkdir(parents=True, exist_ok=True)
    found = sorted(found, key=lambda score: score.row)
    classes = subject.split.index.classes
    samples = [subject.split.sample(score.row) for score in found]
    right = [best_rank(score.scores, sample.labels) for score, sample in zip(found, samples, strict=True)]
    summary = {
        "format": 1,
        "videos": len(found),
        "clips": sum(score.clips for score in found),
        "clip1": sum(score.clips_right for score in found) / sum(score.clips for score in found),
        "video1": sum(rank < 1 for rank in right) / len(found),
        "video5": sum(rank < 5 for rank in right) / len(found),
        "step": subject.step,
        "store": subject.split.store.url,
        "index": subject.split.index.version,
        "split": settings.split,
        "weights": settings.run,
        "classes": classes,
        "per_class": _per_class(classes, [sample.labels for sample in samples], right),
    }
    table = {
        "key": [sample.key for sample in samples],
        "uri": [sample.uri for sample in samples],
        "split": [settings.split] * len(samples),
        "labels": pa.array([list(sample.labels) for sample in samples], pa.list_(pa.int32())),
        "predicted": pa.array([int(score.scores.argmax()) for score in found], pa.int32()),
        "logits": pa.array([score.logits.tolist() for score in found], pa.list_(pa.float32())),
        "scores": pa.array([score.scores.tolist() for score in found], pa.list_(pa.float32())),
        "clips": pa.array([score.clips for score in found], pa.int32()),
        "clips_right": pa.array([score.clips_right for score in found], pa.int32()),
    }
    _put(folder / "videos.parquet", to_parquet(pa.table(table)))
    _write_thumbs(subject, found, folder / "clips.npz")
    if settings.fuse:
        summary["fused"] = fuse_evaluation(Path(settings.run), settings.fuse)
    _put(folder / "summary.json", json.dumps(summary, indent=1).encode())
    return summary


def _put(path: Path, data: bytes) -> None:
    with writing(path.parent, "run"), put_whole(path) as aside:
        aside.write_bytes(data)


def _per_class(classes: list[str], labels: list[tuple[int, ...]], right: list[int]) -> list[dict[str, Any]]:
    rows = []
    for number, name in enumerate(classes):
        ranks = [rank for rank, of in zip(right, labels, strict=True) if number in of]
        share = sum(rank < 1 for rank in ranks) / len(ranks) if ranks else None
        rows.append({"name": name, "videos": len(ranks), "video1": share})
    return rows


def _write_thumbs(subject: Subject, found: list[VideoScore], path: Path) -> None:
    """A few frames of the middle clip of videos spread over the evaluation, for the contact sheet."""
    count = min(len(found), _THUMBS)
    positions = [i * len(found) // count for i in range(count)]
    sheets = []
    clip = subject.clip
    for position in positions:
        sample = subject.split.sample(found[position].row)
        times = sample.times
        first = evaluation_starts(sample.frames, clip.needed(times), 1)[0]
        wanted = clip.numbers(times, first)
        planes = decode_frames(
            subject.split.store, sample, [wanted[i * len(wanted) // _THUMB_FRAMES] for i in range(_THUMB_FRAMES)]
        )
        view = centre_view(clip, (sample.height, sample.width))
        sheets.append(pictures(plane_batch([planes], [view]), clip)[0].permute(1, 2, 3, 0).numpy())  # F H W 3
    with writing(path.parent, "run"):
        np.savez_compressed(path, frames=np.stack(sheets), rows=np.asarray(positions, np.int64))
