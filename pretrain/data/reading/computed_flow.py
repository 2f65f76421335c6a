"""Optical flow of a sample whose store holds none: computed of its pictures as they are decoded."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pretrain.data.reading.decode import Window, decode_lumas, places_of
from pretrain.data.reading.store_split import DamagedData, RangeReader, Sample, Split
from sharding.media.flow import FlowSettings, optical_flow, quantised, require_opencv

BOUND = FlowSettings().bound  # pixels to which larger motion is cut: where flow is stored, it is so by default


def is_flow_computed(split: Split) -> bool:
    """Whether flow of the split's clips has to be computed; its store holds that of all samples or of none.

    Raises UserError where it has to, and OpenCV is not installed.
    """
    try:
        if split.sample(0).flow is not None:
            return False
    except DamagedData:  # told where the sample is read
        return False
    require_opencv(split.store.url, "shard the corpus into a new store with the setting flow={}")
    return True


def frames_compared(sample: Sample, wanted: Sequence[int]) -> list[int]:
    """The frames that these pictures of flow are computed of: each and the one after it; of the last, those before."""
    first = [_first(sample, number) for number in wanted]
    return [frame for number in first for frame in (number, number + 1)]


def compute_flow_into(
    source: RangeReader, sample: Sample, wanted: Sequence[int], window: Window, steps: NDArray[np.uint8]
) -> None:
    """A window of a sample's flow into the top left of steps [T, 2, H, W], as `decode_flow_into` has it, of `BOUND`.

    It is what `shard` would have stored, but for what the encoding changes. Whole pictures are compared, each with the
    next: a window alone has other motion at its edges. Raises DamagedData.
    """
    rows, columns = window
    steps = steps[..., : rows.stop - rows.start, : columns.stop - columns.start]
    places = places_of([_first(sample, number) for number in wanted])
    before: tuple[int, NDArray[np.uint8]] | None = None

    def take(number: int, luma: NDArray[np.uint8]) -> None:
        nonlocal before
        if before is not None and before[0] == number - 1 and before[0] in places:
            flow = quantised(optical_flow(before[1], luma), BOUND).reshape(2, sample.height, -1)
            steps[places[before[0]]] = flow[:, rows, columns]
        before = number, luma.copy()

    decode_lumas(source, sample, set(frames_compared(sample, wanted)), take)


def _first(sample: Sample, number: int) -> int:
    """The frame whose motion to the next is a picture of flow: the last picture repeats the one before."""
    return min(number, sample.frames - 2)  # `shard` stores no video of a single frame
