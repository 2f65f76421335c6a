"""Clip: a stored segment, its mp4's bytes and the packet table by which it is read."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sharding.media.flow import FlowClip


@dataclass(frozen=True)
class Clip:
    """A stored segment: the bytes of its mp4, and the packet table by which a reader fetches and decodes its packets.

    The table is in decode order; where nothing was copied, packet i is frame i. `packet_offset` and `packet_size` are
    in `data`, `packet_pts` in TIME_BASE; `group_crc32`: one a key-frame group, over its packets' bytes in order.
    `start`, `end`: in seconds of the source; `segment`: its number among the video's segments. `codec`: FFmpeg's name
    of the decoder. `concealed`: how many of the source's frames in it show damage that the decoder concealed
    (media/decoding/concealment.py).
    """

    data: bytes
    segment: int
    start: float
    end: float
    fps: float
    frames: int
    width: int
    height: int
    matrix: str
    range: str
    codec: str
    extradata: bytes
    packet_offset: np.ndarray
    packet_size: np.ndarray
    packet_pts: np.ndarray
    packet_key: np.ndarray
    group_crc32: np.ndarray
    flow: FlowClip | None = None
    concealed: int = 0
