"""Evaluates a run's network on a store's videos: opens both, and scores each video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import Field
from torch import Tensor

from pretrain.checkpoints.checkpoint import CheckpointChoice
from pretrain.checkpoints.checkpointer import Checkpointer
from pretrain.conversion.published import meta_network
from pretrain.data.device.tensors import made_batch
from pretrain.data.device.transforms import network_input
from pretrain.data.loader import evaluation_clips
from pretrain.data.reading.reading_mode import ReadingSettings
from pretrain.data.reading.store_split import DamagedData, Split
from pretrain.data.views.frames import evaluation_starts
from pretrain.data.views.views import ClipSettings
from pretrain.data.workers.batches import Batch
from pretrain.data.workers.pool import LoaderSettings, WorkerPool
from pretrain.data.workers.worker import WorkerSetup
from pretrain.engine.autotune.choose import evaluation_compute_path
from pretrain.evaluation.fusion import FuseSettings
from pretrain.evaluation.video_score import VideoScore, best_rank
from pretrain.evaluation.videos import evaluated_videos
from pretrain.models.network import VideoNetwork
from pretrain.models.weights import check_weights, load_weights
from pretrain.models.zoo import build_model
from pretrain.run_folder import Run, read_settings
from pretrain.settings import TrainSettings
from sharding.base.errors import CommandFailed, UserError
from sharding.base.settings import Settings, unit
from sharding.storage.store import open_store


class EvaluateSettings(Settings):
    """Which network on which videos, and how many clips of each."""

    run: Annotated[str, Field(description="the run's folder; one of its checkpoints is evaluated")]
    checkpoint: CheckpointChoice = "newest"
    store: Annotated[str | None, Field(description="directory or URL of the store; null: the run's own")] = None
    split: Annotated[str, Field(description="split of the store whose videos are scored")] = "val"
    index: Annotated[
        str | None,
        Field(
            description="version of the store's index, or `newest`; null: the one that the run began with where the "
            "store is one of the run's, else the newest"
        ),
    ] = None
    clips: Annotated[
        int,
        Field(
            json_schema_extra=unit("clips"),
            ge=1,
            le=10**4,
            description="clips of each video, spread evenly over it (100 on Sports-1M)",
        ),
    ] = 10
    batch: Annotated[
        int, Field(json_schema_extra=unit("clips"), ge=1, le=2**16, description="clips scored at once")
    ] = 32
    damaged: Annotated[
        float,
        Field(
            json_schema_extra=unit("share"),
            ge=0,
            le=1,
            description="share from 0 to 1 of the videos that may be damaged, or a single one if it is not 0, before "
            "the evaluation fails; each is named and counts as wrong",
        ),
    ] = 0.01
    fuse: Annotated[
        FuseSettings | None, Field(description="another run whose scores are added (two streams); null: none")
    ] = None


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a run's network of a step, and the rows of a split; its labels are the run's class numbers.

    `notes`: what to tell about the choice of videos; `left_out`: of how many videos no label is among the classes.
    """

    run: Path
    train: TrainSettings
    classes: list[str]
    weights: dict[str, Tensor]
    step: int
    split: Split
    rows: list[int]
    left_out: int
    notes: list[str]

    @property
    def clip(self) -> ClipSettings:
        """The run's clips."""
        return self.train.data.clip

    def network(self) -> VideoNetwork:
        """The network in evaluation mode, on the device of this process."""
        model = build_model(self.train.model, len(self.classes), self.clip.frames, self.clip.crop)
        load_weights(model, self.weights, "keep", str(self.run))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model.use(evaluation_compute_path(self.run, self.train.engine.compute_path, device))
        return model.to(device).eval()


def open_subject(settings: EvaluateSettings) -> Subject:
    """Load the run's network and open the videos.

    Raises UserError for a folder that is no run, a store without the split, or without a class of the run's.
    """
    run = Path(settings.run)
    train, classes = read_settings(run)
    if train.model.in_channels != train.data.clip.channels:
        what = f"the network takes {train.model.in_channels} channels, and its clips have {train.data.clip.channels}"
        raise UserError(what, str(run), "evaluate a network with the clips that it was trained on")
    versions = Run(run, writes=False).versions(train.data) or []
    if settings.store is None and not versions:
        what = "the run was imported and has no store of its own to be evaluated on"
        raise UserError(what, str(run), "name one: store=STORE")
    store = open_store(settings.store or train.data.store)
    videos = evaluated_videos(store, settings.split, settings.index, versions, classes)
    clip = train.data.clip
    if clip.input == "flow" and not _has_flow(videos.split, videos.rows[0]):
        what = "the network takes optical flow, and the store holds none"
        raise UserError(what, store.url, "shard the corpus into a new store with the setting flow={}")
    checkpoint = Checkpointer(run).load_weights_only(settings.checkpoint)
    check_weights(meta_network(train.model, len(classes), clip.frames, clip.crop), checkpoint.weights, "keep", str(run))
    return Subject(
        run, train, classes, checkpoint.weights, checkpoint.step, videos.split, videos.rows, videos.left_out,
        videos.notes,
    )  # fmt: skip


def _has_flow(split: Split, row: int) -> bool:
    try:
        return split.sample(row).flow is not None
    except DamagedData:
        return True


class Scorer:
    """Scores a subject's videos, by a network and processes that decode for it; these end with it. A context manager.

    `workers`: how many decode. They change no score.
    """

    def __init__(self, subject: Subject, workers: int) -> None:
        self.subject = subject
        self.model = subject.network()
        self.device = next(self.model.parameters()).device
        yields_cpu = self.device.type == "cpu"
        work = WorkerSetup(subject.clip, ReadingSettings(), unseen=subject.split, yields_cpu=yields_cpu)
        self._pool = WorkerPool(workers, work, LoaderSettings().stall_seconds)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        self._pool.close()

    def scores(self, rows: list[int], clips: int, batch: int) -> Iterator[VideoScore]:
        """Softmax of each centre-cropped clip, averaged over the video's; `batch` clips go through at once.

        Raises CommandFailed for a network whose outputs are not finite.
        """
        for row, video in zip(rows, evaluation_clips(self._pool, rows, clips, 1), strict=True):
            if video.damaged:
                yield VideoScore(row, None, None, self._clips_of(row, clips), 0, str(video.damaged[0]))
            else:
                yield self._score(row, video, batch)

    def _score(self, row: int, video: Batch, batch: int) -> VideoScore:
        with torch.inference_mode():
            logits = []
            for begin in range(0, len(video.planes), batch):
                part = made_batch(video.planes.part(begin, begin + batch)).map_tensors(
                    lambda planes: planes.to(self.device)
                )
                logits.append(self.model(network_input(part, self.subject.clip)).float())
        together = torch.cat(logits).cpu()
        if not together.isfinite().all():
            what = f"the network of step {self.subject.step} gives scores that are not finite"
            raise CommandFailed(f"{what} (video {video.keys[0]}): its weights are of no use")
        scores = together.softmax(1)
        # By the function that judges a video, so that a video of one clip is right when its clip is.
        right = sum(best_rank(clip, video.labels[0]) < 1 for clip in scores.numpy())
        return VideoScore(row, scores.mean(0).numpy(), together.mean(0).numpy(), len(scores), right)

    def _clips_of(self, row: int, clips: int) -> int:
        """How many clips a damaged video would have given, as far as its record tells."""
        try:
            sample = self.subject.split.sample(row)
        except DamagedData:
            return clips
        return len(evaluation_starts(sample.frames, self.subject.clip.needed_frames(sample.times), clips))
