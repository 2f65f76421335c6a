"""The planes of a batch's clips as they are decoded, and how they lie in one stretch of memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pretrain.data.views.views import Input, View

_ALIGNED = 64

Array = NDArray[np.uint8]
Memory = Callable[[int], memoryview]


@dataclass(frozen=True)
class BatchPlanes:
    """Clips of a batch as decoded, the part of their pictures that is seen, padded to the largest: uint8.

    RGB: y [N, T, H, W], uv [N, T, 2, ceil(H/2), ceil(W/2)]. Flow: steps [N, T, 2, H, W], dx and dy. None of what the
    input has not. `sizes`: H, W of the whole pictures, `origins`: the row and the column of them that come first here,
    both even; `matrices`: bt601 or bt709; `bounds`: of flow, the motion in pixels that 127 steps are.
    """

    y: Array | None
    uv: Array | None
    steps: Array | None
    sizes: list[tuple[int, int]]
    origins: list[tuple[int, int]]
    matrices: list[str]
    bounds: list[float]
    views: list[View]

    def __len__(self) -> int:
        return len(self.views)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """N, T, H and W."""
        planes = self.steps if self.y is None else self.y
        assert planes is not None
        clips, frames, *_, height, width = planes.shape
        return clips, frames, height, width

    def with_arrays(self, y: Array | None, uv: Array | None, steps: Array | None) -> BatchPlanes:
        """The same clips with other arrays."""
        return replace(self, y=y, uv=uv, steps=steps)

    def part(self, begin: int, end: int) -> BatchPlanes:
        """Some of the clips, not copied."""
        cut = slice(begin, end)
        y, uv, steps = (None if each is None else each[cut] for each in (self.y, self.uv, self.steps))
        return replace(
            self.with_arrays(y, uv, steps),
            sizes=self.sizes[cut],
            origins=self.origins[cut],
            matrices=self.matrices[cut],
            bounds=self.bounds[cut],
            views=self.views[cut],
        )

    def seen_as(self, views: Sequence[View]) -> BatchPlanes:
        """The same clips, not copied, by other views of them, which these planes have to hold."""
        return replace(self, views=list(views))


def plane_arrays(
    memory: Memory, shape: tuple[int, int, int, int], shown: Input
) -> tuple[Array | None, Array | None, Array | None]:
    """y, uv and steps of N clips of T frames of at most H x W (see `BatchPlanes`), one after the other in one stretch.

    None for those that the input `shown` has not.
    """
    count, frames, height, width = shape
    y: tuple[int, ...] = (count, frames, height, width)
    uv = (count, frames, 2, (height + 1) // 2, (width + 1) // 2)
    steps = (count, frames, 2, height, width)
    shapes = {"rgb": (y, uv, None), "flow": (None, None, steps), "rgb+flow": (y, uv, steps)}[shown]
    begins, size = list[int](), 0
    for each in shapes:
        begins.append(-(-size // _ALIGNED) * _ALIGNED)
        size = begins[-1] + math.prod(each) if each else size
    body = np.frombuffer(memory(max(size, 1)), np.uint8)  # no memory is empty, though a batch may be
    arrays = (
        body[begin : begin + math.prod(each)].reshape(each) if each else None
        for begin, each in zip(begins, shapes, strict=True)
    )
    return next(arrays), next(arrays), next(arrays)
