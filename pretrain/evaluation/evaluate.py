"""Evaluates a run's network on a store's videos: opens both, and scores each video."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field
from torch import Tensor

from pretrain.checkpoints.checkpoint import CheckpointChoice
from pretrain.checkpoints.checkpointer import Checkpointer
from pretrain.conversion.published import meta_network
from pretrain.data.loader import evaluation_clips
from pretrain.data.reading.computed_flow import is_flow_computed
from pretrain.data.reading.reading_mode import ReadingSettings
from pretrain.data.reading.store_split import DamagedData, Split
from pretrain.data.views.frames import evaluation_starts
from pretrain.data.views.views import LARGEST_CROP, ClipSettings
from pretrain.data.workers.pool import WorkerPool
from pretrain.data.workers.worker import WorkerSetup
from pretrain.evaluation.clip_scorer import ClipScorer
from pretrain.evaluation.fusion import FuseSettings
from pretrain.evaluation.trained_network import loaded_network, require_channels
from pretrain.evaluation.video_score import VideoScore
from pretrain.evaluation.videos import evaluated_videos
from pretrain.models.count import last_map
from pretrain.models.network import VideoNetwork
from pretrain.models.weights import check_weights
from pretrain.run_folder import Run, read_settings
from pretrain.scoring.protocol import Averaged, Pooling, Protocol
from pretrain.settings import TrainSettings
from sharding.base.errors import UserError
from sharding.base.settings import Seconds, Settings, unit
from sharding.storage.store import open_store


class EvaluateSettings(Settings):
    """Which network on which videos, and by which protocol: the clips and crops of each, and what is averaged."""

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
    crops: Annotated[
        Literal[1, 3],
        Field(
            json_schema_extra=unit("crops"),
            description="crops of each clip: 1, the centre, or 3: both ends of the picture's longer side, too",
        ),
    ] = 1
    crop: Annotated[
        int | None,
        Field(
            json_schema_extra=unit("pixels"),
            ge=8,
            le=LARGEST_CROP,
            description="side of each square crop, in pixels: the run's, or a larger one; null: the run's",
        ),
    ] = None
    pooling: Annotated[
        Pooling,
        Field(
            description="of crops larger than the run's. convolutional: each place that the run's own crop has on the "
            "last map is classified, and the places are averaged; average: the whole map is pooled"
        ),
    ] = "convolutional"
    average: Annotated[
        Averaged,
        Field(
            description="what is averaged over a video's clips, crops and places: scores, which are softmaxes, or "
            "logits (I3D)"
        ),
    ] = "scores"
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
    decoders: Annotated[
        int | None,
        Field(
            json_schema_extra=unit("processes"),
            ge=1,
            le=1024,
            description="decoding processes with launcher=none, each of which holds the clips of two videos; null: as "
            "many as there are cores, at most 16; a Ray task has one",
        ),
    ] = None
    stall_seconds: Annotated[
        Seconds, Field(description="seconds without a video from any decoding process that end the evaluation")
    ] = 600
    fuse: Annotated[
        FuseSettings | None, Field(description="another run whose scores are added (two streams); null: none")
    ] = None


@dataclass(frozen=True)
class Subject:
    """What is evaluated: a run's network of a step, and the rows of a split, by a protocol.

    The split's labels are the run's class numbers.

    `notes`: what to tell about the choice of videos; `left_out`: of how many videos no label is among the classes.
    """

    run: Path
    train: TrainSettings
    protocol: Protocol
    classes: list[str]
    weights: dict[str, Tensor]
    step: int
    split: Split
    rows: list[int]
    left_out: int
    notes: list[str]

    @property
    def clip(self) -> ClipSettings:
        """The run's clips, by the protocol's crop."""
        return self.train.data.clip.model_copy(update={"crop": self.protocol.crop})

    def network(self) -> VideoNetwork:
        """The network in evaluation mode, on the device of this process."""
        clip, path = self.train.data.clip, self.train.engine.compute_path
        return loaded_network(self.train.model, len(self.classes), clip, self.weights, str(self.run), self.run, path)

    def window(self) -> tuple[int, int] | None:
        """Height and width of the last map of the run's own crop, where a larger one is classified place by place."""
        if not self.protocol.has_places:
            return None
        clip = self.train.data.clip
        network = meta_network(self.train.model, len(self.classes), clip.frames, clip.crop)
        return last_map(network, clip.frames, clip.crop)


def open_subject(settings: EvaluateSettings) -> Subject:
    """Load the run's network and open the videos.

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
    if clip.input != "rgb" and is_flow_computed(videos.split):
        videos.notes.append("the store holds no optical flow: it is computed of the pictures as they are decoded")
    checkpoint = Checkpointer(run).load_weights_only(settings.checkpoint)
    network = meta_network(train.model, len(classes), clip.frames, clip.crop)
    check_weights(network, checkpoint.weights, "keep", str(run))
    return Subject(
        run, train, protocol_of(settings, clip, network), classes, checkpoint.weights, checkpoint.step, videos.split,
        videos.rows, videos.left_out, videos.notes,
    )  # fmt: skip


def protocol_of(settings: EvaluateSettings, clip: ClipSettings, network: VideoNetwork) -> Protocol:
    """The settings' protocol for a network and the clips that it was trained on.

    Raises UserError for a crop that the network does not take, or that its pictures do not have.
    """
    crop = settings.crop or clip.crop
    largest = clip.short_edge[0] if clip.short_edge else min(clip.resize or ())
    if crop < clip.crop:
        what = f"crop={crop} is smaller than the {clip.crop} pixels that the network was trained on"
        raise UserError(what, settings.run, "leave crop out, or give a larger one")
    if crop > largest:
        what = f"crop={crop} is larger than the pictures that it is cut from: their shorter side has {largest} pixels"
        raise UserError(what, settings.run, f"give a crop of {largest} at most, or leave it out")
    if crop > clip.crop and not network.is_fully_convolutional:
        what = f"crop={crop}: this network takes crops of {clip.crop} pixels alone"
        raise UserError(what, settings.run, "leave crop out")
    return Protocol(settings.clips, settings.crops, crop, clip.crop, settings.pooling, settings.average)


class Scorer:
    """Scores a subject's videos, by a network and processes that decode for it; these end with it. A context manager.

    `workers`: how many decode. They change no score. A process that makes nothing for `stall_seconds` ends it.
    """

    def __init__(self, subject: Subject, workers: int, stall_seconds: float) -> None:
        self.subject = subject
        protocol, name = subject.protocol, f"the network of step {subject.step}"
        self._scorer = ClipScorer(
            subject.network(), subject.clip, name, protocol.crops, protocol.average, subject.window()
        )
        yields_cpu = self._scorer.device.type == "cpu"
        work = WorkerSetup(subject.clip, ReadingSettings(), unseen=subject.split, yields_cpu=yields_cpu)
        self._pool = WorkerPool(workers, work, stall_seconds, ("decoders", "stall_seconds"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the processes."""
        self._pool.close()

    def scores(self, rows: list[int], batch: int) -> Iterator[VideoScore]:
        """Each video's mean over its clips and crops, by the subject's protocol; `batch` of these go through at once.

        Raises CommandFailed for a network whose outputs are not finite.
        """
        protocol = self.subject.protocol
        videos = evaluation_clips(self._pool, rows, protocol.clips, 1, protocol.crops)
        for row, video in zip(rows, videos, strict=True):
            if video.damaged:
                yield VideoScore(row, None, None, self._clips_of(row), 0, str(video.damaged[0]))
            else:
                yield self._scorer.score(row, video, batch)

    def _clips_of(self, row: int) -> int:
        """How many clips a damaged video would have given, as far as its record tells."""
        clips = self.subject.protocol.clips
        try:
            sample = self.subject.split.sample(row)
        except DamagedData:
            return clips
        return len(evaluation_starts(sample.frames, self.subject.clip.needed_frames(sample.times), clips))
