"""A video in memory, stored as `reelscale shard` stores it, and read as a store's samples are."""

from __future__ import annotations

from typing import Any

import numpy as np

from pretrain.data.reading.store_split import FlowTable, PacketTable, Sample
from sharding.media.clip import Clip
from sharding.media.flow import FlowClip
from sharding.media.h264 import TIME_BASE
from sharding.storage.counters import Counters

_VIDEO, _FLOW = "its pictures", "its optical flow"


class VideoInMemory:
    """One sample, number 0, without a label: `clip` as a reader of stores sees it; `name` is its key and its uri."""

    def __init__(self, name: str, clip: Clip) -> None:
        self.counters = Counters()
        self._bytes = {_VIDEO: clip.data}
        flow = clip.flow
        if flow is not None:
            self._bytes[_FLOW] = flow.data
        self._sample = Sample(
            key=name,
            uri=name,
            labels=(),
            frames=clip.frames,
            width=clip.width,
            height=clip.height,
            fps=clip.fps,
            time_base=TIME_BASE.numerator / TIME_BASE.denominator,
            matrix=clip.matrix,
            range=clip.range,
            packets=_table(_VIDEO, clip.codec, clip),
            flow=None if flow is None else FlowTable(flow.bound, flow.width, flow.height, _table(_FLOW, "h264", flow)),
        )

    @property
    def source(self) -> VideoInMemory:
        """Itself."""
        return self

    def sample(self, number: int) -> Sample:
        """The sample."""
        assert number == 0
        return self._sample

    def get_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes `start` to `end` of an mp4 of the sample's."""
        return self._bytes[path][start:end]


def _table(path: str, codec: str, packets: Clip | FlowClip) -> PacketTable:
    def column(values: Any, kind: type) -> Any:
        return np.asarray(values, kind)

    return PacketTable(
        path,
        0,
        codec,
        packets.extradata,
        column(packets.packet_offset, np.int64),
        column(packets.packet_size, np.int32),
        column(packets.packet_pts, np.int64),
        column(packets.packet_key, np.bool_),
        column(packets.group_crc32, np.uint32),
    )
