"""Clips for the trainer: lanes' samples read, decoded and batched ahead of the step by a pool of threads."""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

import torch
from pydantic import Field

from pretrain import metrics
from pretrain.data.clips import clip_frames, evaluation_starts, train_start
from pretrain.data.decode import decode_frames
from pretrain.data.order import Order, sample_randoms
from pretrain.data.stream import Split
from pretrain.data.transforms import ClipSettings, centre_view, rgb_clip, train_view
from sharding.settings import Settings


class LoaderSettings(Settings):
    """How far ahead and with how many threads clips are made."""

    threads: Annotated[int, Field(ge=1, description="decoding threads a rank")] = 2
    ahead: Annotated[int, Field(ge=1, description="steps made ahead of the one being trained")] = 2


@dataclass(frozen=True)
class Clips:
    """A batch: video uint8 [N, 3, T, H, W]; targets float32 [N, classes], each row's labels share weight 1."""

    video: torch.Tensor
    targets: torch.Tensor


def target(labels: Sequence[int], classes: int) -> torch.Tensor:
    """Labels of a sample as a distribution, float32 [classes]: k labels weigh 1/k each (IG-65M's multi-label loss)."""
    row = torch.zeros(classes)
    row[list(labels)] = 1.0 / len(labels)
    return row


def train_clip(split: Split, clip: ClipSettings, seed: int, pass_number: int, number: int) -> torch.Tensor:
    """The training clip of one sample in one pass: uint8 [3, T, crop, crop]; start, crop and flip from the seed."""
    sample = split.sample(number)
    start, top, left, flip = sample_randoms(seed, pass_number, number, 4)
    first = train_start(sample.frames, clip.needed, start)
    planes = decode_frames(split.store, sample, clip_frames(sample.frames, first, clip.frames, clip.stride))
    return rgb_clip(planes, clip, train_view(clip, (top, left, flip)))


def evaluation_clips(split: Split, clip: ClipSettings, number: int, clips: int) -> torch.Tensor:
    """Centre crops of a sample's `clips` uniform clips: uint8 [M, 3, T, crop, crop], M = 1 for a short video."""
    sample = split.sample(number)
    made = []
    for first in evaluation_starts(sample.frames, clip.needed, clips):
        planes = decode_frames(split.store, sample, clip_frames(sample.frames, first, clip.frames, clip.stride))
        made.append(rgb_clip(planes, clip, centre_view(clip)))
    return torch.stack(made)


class Loader:
    """Iterates over steps; each step is a list of `Clips`, one for each of this rank's lanes.

    The position is the step alone: `steps(first)` begins anywhere. `wait_seconds` sums the time the trainer waited.
    """

    def __init__(
        self,
        split: Split,
        order: Order,
        clip: ClipSettings,
        settings: LoaderSettings,
        lanes: range,
        classes: int,
    ) -> None:
        self._split, self._order, self._clip, self._settings = split, order, clip, settings
        self._lanes, self._classes = lanes, classes
        self.wait_seconds = 0.0

    def steps(self, first: int, last: int) -> Iterator[list[Clips]]:
        """Steps first..last-1. A sample that cannot be read raises on the caller's side."""
        with ThreadPoolExecutor(self._settings.threads, thread_name_prefix="decode") as pool:
            queue: deque[list[list[Future[tuple[torch.Tensor, torch.Tensor]]]]] = deque()
            try:
                for step in range(first, last):
                    while len(queue) <= self._settings.ahead and step + len(queue) < last:
                        queue.append(self._submit(pool, step + len(queue)))
                    begin = time.perf_counter()
                    lanes = [_batch([future.result() for future in lane]) for lane in queue.popleft()]
                    self.wait_seconds += time.perf_counter() - begin
                    yield lanes
            finally:
                pool.shutdown(wait=False, cancel_futures=True)

    def _submit(self, pool: ThreadPoolExecutor, step: int) -> list[list[Future[tuple[torch.Tensor, torch.Tensor]]]]:
        return [
            [pool.submit(self._clip_of, pass_number, number) for pass_number, number in self._order.lane(step, lane)]
            for lane in self._lanes
        ]

    def _clip_of(self, pass_number: int, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        video = train_clip(self._split, self._clip, self._order.seed, pass_number, number)
        metrics.CLIPS_DECODED.inc()
        return video, target(self._split.labels(number), self._classes)


def _batch(samples: list[tuple[torch.Tensor, torch.Tensor]]) -> Clips:
    return Clips(torch.stack([video for video, _ in samples]), torch.stack([row for _, row in samples]))
