"""Transcoded clips of odd videos, and their pictures as a player shows them."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from sharding.corpora.manifest import Video
from sharding.media.clip import Clip
from sharding.media.encoder import EncodeSettings
from sharding.media.input.source import Source
from sharding.media.transcode import VideoSettings, transcode
from tests.sharding.conftest import frames_of

ENCODE = EncodeSettings(short_edge=64, preset="ultrafast", crf=6)


RED, GREEN, BLUE = (200, 30, 30), (30, 180, 40), (40, 40, 210)


def clip(path: Path, encode: EncodeSettings = ENCODE) -> Clip:
    """The Clip of a whole video."""
    (only,) = transcode(
        Source(str(path.parent), path.name), Video(path.name, (0,), "train"), VideoSettings(encode=encode)
    )
    assert isinstance(only, Clip)
    return only


def luma(stored: Clip) -> NDArray[np.uint8]:
    """Frames × H × W."""
    return np.stack([frame[: stored.height] for frame in frames_of(stored.data)])


def rgb(stored: Clip) -> NDArray[np.uint8]:
    """The first picture as a bt601 player shows it."""
    with av.open(io.BytesIO(stored.data)) as container:
        frame = next(container.decode(video=0))
        return frame.to_ndarray(format="rgb24", src_colorspace=5, src_color_range=1, interpolation=16)


def quarters(height: int, width: int) -> NDArray[np.uint8]:
    """Red, green, blue and grey, from the upper left to the lower right."""
    picture = np.full((height, width, 3), 128, np.uint8)
    picture[: height // 2, : width // 2] = RED
    picture[: height // 2, width // 2 :] = GREEN
    picture[height // 2 :, : width // 2] = BLUE
    return picture


def corners(picture: NDArray[np.uint8]) -> list[tuple[int, ...]]:
    """The colours in the middle of the four quarters."""
    height, width = picture.shape[:2]
    return [tuple(int(value) for value in picture[height * y // 4, width * x // 4]) for y in (1, 3) for x in (1, 3)]


def close(ours: list[tuple[int, ...]], theirs: list[tuple[int, ...]], by: int = 6) -> bool:
    """Whether colours differ by no more than `by`."""
    return bool(np.abs(np.array(ours) - np.array(theirs)).max() <= by)
