"""Batches of planes as tensors, and their copy to the device while it computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Generic, Protocol, Self, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pretrain.data.reading.decode import Planes
from pretrain.data.views.views import View
from pretrain.data.workers.planes import BatchPlanes


@dataclass(frozen=True)
class PlaneBatch:
    """N clips as decoded, uint8, limited range; smaller ones than the largest lie at the top left.

    y [N, T, H, W]; uv [N, T, 2, ceil(H/2), ceil(W/2)]; of each clip the (H, W) of its whole pictures, the row and the
    column of them that are the first here, both even, bt601 or bt709, and its view.
    """

    y: Tensor
    uv: Tensor
    sizes: list[tuple[int, int]]
    origins: list[tuple[int, int]]
    matrices: list[str]
    views: list[View]

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> PlaneBatch:
        """The same clips with other tensors."""
        return replace(self, y=change(self.y), uv=change(self.uv))


@dataclass(frozen=True)
class FlowBatch:
    """N clips of optical flow as decoded (`sharding.media.flow`); smaller ones than the largest lie at the top left.

    steps uint8 [N, T, 2, H, W]: dx, dy; of each clip the (H, W) of its whole pictures, the row and the column of them
    that are the first here, the motion that the largest step stands for, in pixels of the stored picture, and its view.
    """

    steps: Tensor
    sizes: list[tuple[int, int]]
    origins: list[tuple[int, int]]
    bounds: list[float]
    views: list[View]

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> FlowBatch:
        """The same clips with other tensors."""
        return replace(self, steps=change(self.steps))


@dataclass(frozen=True)
class PairBatch:
    """N clips as pictures and as the optical flow between them, by the same views."""

    pictures: PlaneBatch
    flow: FlowBatch

    @property
    def views(self) -> list[View]:
        """Of each clip."""
        return self.pictures.views

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> PairBatch:
        """The same clips with other tensors."""
        return PairBatch(self.pictures.map_tensors(change), self.flow.map_tensors(change))


DecodedBatch = PlaneBatch | FlowBatch | PairBatch


def plane_batch(clips: Sequence[Planes], views: Sequence[View]) -> PlaneBatch:
    """Decoded clips of as many frames, of any sizes and matrices, as a batch in host memory."""
    sizes = [(clip.y.shape[1], clip.y.shape[2]) for clip in clips]
    y, uv = _together([clip.y for clip in clips]), _together([clip.uv for clip in clips])
    return PlaneBatch(y, uv, sizes, [(0, 0)] * len(sizes), [clip.matrix for clip in clips], list(views))


def flow_batch(lumas: Sequence[NDArray[np.uint8]], bounds: Sequence[float], views: Sequence[View]) -> FlowBatch:
    """Decoded lumas of flow, [T, 2H, W] of as many frames and any sizes, as a batch in host memory."""
    steps = [luma.reshape(len(luma), 2, -1, luma.shape[-1]) for luma in lumas]
    sizes = [(step.shape[2], step.shape[3]) for step in steps]
    return FlowBatch(_together(steps), sizes, [(0, 0)] * len(sizes), list(bounds), list(views))


def _together(clips: list[NDArray[np.uint8]]) -> Tensor:
    height, width = (max(clip.shape[axis] for clip in clips) for axis in (-2, -1))
    batch = np.empty((len(clips), *clips[0].shape[:-2], height, width), np.uint8)
    for place, clip in zip(batch, clips, strict=True):
        place[..., : clip.shape[-2], : clip.shape[-1]] = clip
    return torch.from_numpy(batch)


def made_batch(planes: BatchPlanes) -> DecodedBatch:
    """What a worker made, not copied."""
    flow, pictures = None, None
    if planes.steps is not None:
        steps = torch.from_numpy(planes.steps)
        flow = FlowBatch(steps, planes.sizes, planes.origins, planes.bounds, planes.views)
    if planes.y is not None and planes.uv is not None:
        y, uv = torch.from_numpy(planes.y), torch.from_numpy(planes.uv)
        pictures = PlaneBatch(y, uv, planes.sizes, planes.origins, planes.matrices, planes.views)
    if flow and pictures:
        return PairBatch(pictures, flow)
    made = flow or pictures
    assert made is not None, "a clip shows something"
    return made


def joined(batches: Sequence[DecodedBatch]) -> DecodedBatch:
    """Several batches of one kind as one."""
    if pairs := [batch for batch in batches if isinstance(batch, PairBatch)]:
        return PairBatch(
            _joined_pictures([pair.pictures for pair in pairs]), _joined_flow([pair.flow for pair in pairs])
        )
    if flows := [batch for batch in batches if isinstance(batch, FlowBatch)]:
        return _joined_flow(flows)
    return _joined_pictures([batch for batch in batches if isinstance(batch, PlaneBatch)])


def _joined_pictures(batches: Sequence[PlaneBatch]) -> PlaneBatch:
    y, uv = _padded([batch.y for batch in batches]), _padded([batch.uv for batch in batches])
    matrices = [matrix for batch in batches for matrix in batch.matrices]
    return PlaneBatch(y, uv, *_places(batches), matrices, [view for batch in batches for view in batch.views])


def _joined_flow(batches: Sequence[FlowBatch]) -> FlowBatch:
    bounds = [bound for batch in batches for bound in batch.bounds]
    steps = _padded([batch.steps for batch in batches])
    return FlowBatch(steps, *_places(batches), bounds, [view for batch in batches for view in batch.views])


def _places(batches: Sequence[PlaneBatch | FlowBatch]) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The sizes and origins of all their clips."""
    return [size for batch in batches for size in batch.sizes], [each for batch in batches for each in batch.origins]


def _padded(planes: list[Tensor]) -> Tensor:
    height, width = (max(each.shape[axis] for each in planes) for axis in (-2, -1))
    return torch.cat([F.pad(each, (0, width - each.shape[-1], 0, height - each.shape[-2])) for each in planes])


class TensorTree(Protocol):
    """Something made of tensors, such as a batch."""

    def map_tensors(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with `change` applied to each tensor."""


M = TypeVar("M", bound=TensorTree)


class DeviceCopy(Generic[M]):
    """A copy to a device that is under way."""

    def __init__(self, future: Future[M], stream: torch.cuda.Stream | None) -> None:
        self._sending, self._stream = future, stream

    def result(self) -> M:
        """The copy on the device; what is computed of it next waits for it there."""
        future = self._sending.result()
        if self._stream is not None:
            now = torch.cuda.current_stream(self._stream.device)
            now.wait_stream(self._stream)
            future.map_tensors(lambda tensor: _in_use(tensor, now))
        return future


class DeviceCopier:
    """Copies batches to a device while it computes: through pinned memory, by a thread, on a stream of its own.

    Where the device is the CPU nothing is moved.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mover") if self._stream else None

    def start(self, batch: M) -> DeviceCopy[M]:
        """Begin to copy a batch. Its own memory may be used again after the copy's `result`."""
        if self._thread is None:
            done: Future[M] = Future()
            done.set_result(batch.map_tensors(lambda tensor: tensor.to(self.device)))
            return DeviceCopy(done, None)
        return DeviceCopy(self._thread.submit(self._moved, batch), self._stream)

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown(cancel_futures=True)

    def _moved(self, batch: M) -> M:
        with torch.cuda.stream(self._stream):
            return batch.map_tensors(lambda tensor: tensor.pin_memory().to(self.device, non_blocking=True))


def _in_use(tensor: Tensor, stream: Any) -> Tensor:
    tensor.record_stream(stream)  # else its memory, the other stream's, might be used again too early
    return tensor
