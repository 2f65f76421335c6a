"""Predicts the classes of any videos by a trained network: prepared as for training, scored as in an evaluation."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pretrain.data.reading.store_split import DamagedData
from pretrain.data.reading.video_in_memory import VideoInMemory
from pretrain.data.views.frames import evaluation_starts
from pretrain.data.views.views import ClipSettings
from pretrain.data.workers.batches import BatchMaker
from pretrain.evaluation.clip_scorer import ClipScorer
from pretrain.evaluation.frames_shown import frames_shown
from pretrain.evaluation.predict_settings import PredictSettings
from pretrain.evaluation.stored_form import stored_forms
from pretrain.evaluation.trained_network import TrainedNetwork, open_network
from pretrain.evaluation.video_files import Stretch, VideoFile, VideoReader, videos_at
from pretrain.evaluation.video_score import Scores
from sharding.media.input.bad_video import BadVideo

_SHEET_CLIPS = 10  # of which a picture shows frames, at most
_SHEET_FRAMES = 8  # of each of these clips, at most


@dataclass(frozen=True)
class Prediction:
    """What a network takes a video for, or why it was not looked at (`failure`; then all else is empty).

    scores, logits: mean softmax and mean logits over its `clips`, a number for each of `classes`. `looped`: whether it
    is shorter than a clip, so that some of its frames came twice. sheet: frames of some of the clips, uint8 [R F H W 3]
    in RGB, where they were asked for, and in `sheet_seconds` when each of these clips begins.
    """

    video: str
    classes: Sequence[str]
    scores: Scores | None = None
    logits: Scores | None = None
    clips: int = 0
    looped: bool = False
    sheet: NDArray[np.uint8] | None = None
    sheet_seconds: Sequence[float] = ()
    failure: str | None = None

    def top(self, count: int = 5) -> list[tuple[str, float]]:
        """The `count` likeliest classes and their probabilities, the likeliest first; of equal ones the first class."""
        if self.scores is None:
            return []
        order = np.argsort(-self.scores, kind="stable")[:count]
        return [(self.classes[number], float(self.scores[number])) for number in order]


class Predictions:
    """A network that is ready to predict. `notes`: what its user must know. A context manager; processes end with it.

    Raises UserError for weights that do not fit, and for a `settings.store` that cannot be read.
    """

    def __init__(self, trained: TrainedNetwork, settings: PredictSettings, with_sheets: bool = False) -> None:
        self.trained, self._settings, self._with_sheets = trained, settings, with_sheets
        self._scorer = ClipScorer(trained.network(), trained.clip, trained.name)
        self._forms, self.notes = stored_forms(trained, settings.store)
        if trained.is_numbered:
            self.notes.append(
                "the weights hold no class names, so class-000 is the first output; names are given by "
                "reelscale import FILE RUN --classes NAMES.txt"
            )

    def of(self, videos: Sequence[VideoFile]) -> Generator[Prediction]:
        """A prediction for each video, in order. Raises UserError for a store or a disk that cannot be used.

        Raises CommandFailed for a network whose scores are not finite.
        """
        settings = self._settings
        processes = max(1, min(len(videos), os.cpu_count() or 1))
        stretch = Stretch(settings.start, settings.end)
        with VideoReader(self._forms, stretch, processes) as reader, closing(reader.read(videos)) as read:
            for file, video in read:
                yield self._failed(file, str(video)) if isinstance(video, BadVideo) else self._one(file, video)

    def _one(self, file: VideoFile, video: VideoInMemory) -> Prediction:
        clip, trained = self.trained.clip, self.trained
        maker = BatchMaker([], video, clip, lambda size: memoryview(bytearray(size)))
        batch = maker.evaluation([0], self._settings.clips)
        if batch.damaged:
            return self._failed(file, batch.damaged[0].why)
        score = self._scorer.score(0, batch, self._settings.batch)
        sheet, seconds = None, list[float]()
        if self._with_sheets:
            try:
                sheet, seconds = _sheet(video, clip, self._settings.clips)
            except DamagedData as error:
                return self._failed(file, error.why)
        looped = batch.looped > 0
        return Prediction(file.name, trained.classes, score.scores, score.logits, score.clips, looped, sheet, seconds)

    def _failed(self, file: VideoFile, why: str) -> Prediction:
        return Prediction(file.name, self.trained.classes, failure=why)


def predict(
    weights: str, videos: Sequence[str] | str, settings: PredictSettings = PredictSettings(), with_sheets: bool = False
) -> Iterator[Prediction]:
    """Predictions for the videos of files, folders and URLs by a run, a checkpoint or an export, one by one.

    `with_sheets`: with frames of each, for `pretrain.report.prediction_picture`. Raises UserError for weights and
    videos that are none; a bad video among others is a prediction with a `failure`.
    """
    files = videos_at([videos] if isinstance(videos, str) else videos)
    return Predictions(open_network(weights), settings, with_sheets).of(files)


def _sheet(video: VideoInMemory, clip: ClipSettings, clips: int) -> tuple[NDArray[np.uint8], list[float]]:
    """Frames of up to `_SHEET_CLIPS` of the clips, spread over them, and when these begin."""
    sample = video.sample(0)
    starts = evaluation_starts(sample.frames, clip.needed_frames(sample.times), clips)
    count = min(len(starts), _SHEET_CLIPS)
    chosen = [starts[round(place)] for place in np.linspace(0, len(starts) - 1, count)]
    rows = [frames_shown(video, sample, clip, first, min(_SHEET_FRAMES, clip.frames)) for first in chosen]
    return np.stack(rows), [float(sample.times[first] - sample.times[0]) for first in chosen]
