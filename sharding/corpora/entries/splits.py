"""The split of a video: the words that corpora use for splits, and the validation share where they give none."""

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
    """A number in [0, 1) computed from a source video's name by sha256: the same on every machine."""
    return int.from_bytes(hashlib.sha256(source).digest()[:6], "big") / 2**48


class ValidationShare:
    """Assigns a share of the source videos to validation, by the hash of each one's name alone.

    Only where that would leave one split without a video of plausible size, the nearest by hash changes sides; if
    there is only one such video, it is for training.
    """

    def __init__(self, validation: float) -> None:
        self.validation = validation
        self._lowest: tuple[float, bytes] | None = None
        self._highest: tuple[float, bytes] | None = None

    def split_of(self, source: bytes) -> str:
        """The split, "train" or "val", of a source video, before `source_to_move`."""
        return "val" if uri_fraction(source) < self.validation else "train"

    def observe(self, source: bytes, size: int | None) -> None:
        """Note a video that is planned, with its bytes; None where they are not known, which counts as plausible."""
        if size is not None and size < SMALLEST_VIDEO:
            return
        candidate = uri_fraction(source), source
        self._lowest = min(self._lowest or candidate, candidate)
        self._highest = max(self._highest or candidate, candidate)

    def source_to_move(self) -> tuple[bytes, str] | None:
        """(source video, new split) of the one that must change sides; None where both splits have a video."""
        if self._lowest is None or self._highest is None or self.validation <= 0:
            return None
        if self._highest[0] < self.validation:
            return self._highest[1], "train"
        if self._lowest[0] >= self.validation and self._lowest != self._highest:
            return self._lowest[1], "val"
        return None
