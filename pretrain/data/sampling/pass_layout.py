"""Where the shards and blocks of a pass begin: arithmetic in places and bytes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Pass:
    """One pass laid out: its `shards` in order, and the showings (`places`) and `bytes` before each and in all."""

    number: int
    shards: NDArray[np.int64]
    places: NDArray[np.int64]
    bytes: NDArray[np.int64]

    def block(self, place: int, block_bytes: int) -> tuple[int, int]:
        """First and last (excluded) place of the block that a place lies in.

        Blocks end where the bytes laid out cross multiples of `block_bytes`, so that the lanes' ends do not coincide.
        """
        shard = int(np.searchsorted(self.places, place, side="right")) - 1
        size, weight = self._size(shard)
        number = (int(self.bytes[shard]) + (place - int(self.places[shard])) * weight // size) // block_bytes
        return self._place_at(number * block_bytes), self._place_at((number + 1) * block_bytes)

    def _place_at(self, byte: int) -> int:
        """The first place with at least so many bytes before it."""
        shard = int(np.searchsorted(self.bytes, byte, side="right")) - 1
        if shard == len(self.shards):
            return int(self.places[-1])
        size, weight = self._size(shard)
        return int(self.places[shard]) - (int(self.bytes[shard]) - byte) * size // weight

    def _size(self, shard: int) -> tuple[int, int]:
        """Showings and bytes of the shard at this place of the order."""
        return int(self.places[shard + 1] - self.places[shard]), int(self.bytes[shard + 1] - self.bytes[shard])
