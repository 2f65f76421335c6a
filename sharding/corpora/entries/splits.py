"""Which side a video is on: corpora's words for their splits, and the share that validates where they give none."""

from __future__ import annotations

import hashlib

SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validate": "val",
    "validation": "val",
    "test": "test",
}
SMALLEST_VIDEO = 1024  # bytes: a smaller file holds no video, so a split must not consist of such files


def uri_fraction(source: bytes) -> float:
    """A number in [0, 1) from the sha256 of a source video's name: the same on every machine."""
    return int.from_bytes(hashlib.sha256(source).digest()[:6], "big") / 2**48


class ValidationShare:
    """A share of the source videos for validation, by the hash of each alone, seen one after the other.

    Only where that would leave one side without a video of plausible size, the nearest by hash crosses
    over; of one such video alone, training gets it.
    """

    def __init__(self, validation: float) -> None:
        self.validation = validation
        self._lowest: tuple[float, bytes] | None = None
        self._highest: tuple[float, bytes] | None = None

    def side(self, source: bytes) -> str:
        """ "train" or "val"."""
        return "val" if uri_fraction(source) < self.validation else "train"

    def saw(self, source: bytes, size: int | None) -> None:
        """Take note of a video that is planned; None: its size in bytes is not known, and taken to be plausible."""
        if size is not None and size < SMALLEST_VIDEO:
            return
        mine = uri_fraction(source), source
        self._lowest = min(self._lowest or mine, mine)
        self._highest = max(self._highest or mine, mine)

    def crossing(self) -> tuple[bytes, str] | None:
        """The source video that must change sides, and where it goes; None where both sides have what they need."""
        if self._lowest is None or self._highest is None or self.validation <= 0:
            return None
        if self._highest[0] < self.validation:
            return self._highest[1], "train"
        if self._lowest[0] >= self.validation and self._lowest != self._highest:
            return self._lowest[1], "val"
        return None
