"""Evaluates a run's network on a store's videos: opens both, and scores each video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field
from torch import Tensor

from pretrain.checkpoints.checkpointer import Checkpointer
from pretrain.conversion.published import meta_network
from pretrain.data.loader import evaluation_clips
from pretrain.data.reading.reading_mode import ReadingSettings
from pretrain.data.reading.store_split import DamagedData, Split
from pretrain.data.views.frames import evaluation_starts
from pretrain.data.views.views import ClipSettings
from pretrain.data.workers.pool import LoaderSettings, WorkerPool
from pretrain.data.workers.worker import WorkerSetup
from pretrain.evaluation.clip_scorer import ClipScorer
from pretrain.evaluation.fusion import FuseSettings
from pretrain.evaluation.trained_network import loaded_network, require_channels
from pretrain.evaluation.video_score import VideoScore
from pretrain.evaluation.videos import evaluated_videos
from pretrain.models.network import VideoNetwork
from pretrain.models.weights import check_weights
from pretrain.run_folder import Run, read_settings
from pretrain.settings import TrainSettings
from sharding.base.errors import UserError
from sharding.base.settings import Settings, unit
from sharding.storage.store import open_store


class EvaluateSettings(Settings):
    """Which network on which videos, and how many clips of each."""

    run: Annotated[str, Field(description="the run's folder; its newest checkpoint is evaluated")]
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
        clip, path = self.clip, self.train.engine.compute_path
        return loaded_network(self.train.model, len(self.classes), clip, self.weights, str(self.run), self.run, path)


def open_subject(settings: EvaluateSettings) -> Subject:
    """Load the run's newest network and open the videos.

    Raises UserError for a folder that is no run, a store without the split, or without a class of the run's.
    """
    run = Path(settings.run)
    train, classes = read_settings(run)
    require_channels(train.model, train.data.clip, str(run))
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
    checkpoint = Checkpointer(run).load_weights_only()
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
        self._scorer = ClipScorer(subject.network(), subject.clip, f"the network of step {subject.step}")
        yields_cpu = self._scorer.device.type == "cpu"
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
                yield self._scorer.score(row, video, batch)

    def _clips_of(self, row: int, clips: int) -> int:
        """How many clips a damaged video would have given, as far as its record tells."""
        try:
            sample = self.subject.split.sample(row)
        except DamagedData:
            return clips
        return len(evaluation_starts(sample.frames, self.subject.clip.needed_frames(sample.times), clips))
