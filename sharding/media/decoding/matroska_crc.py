"""Checks Matroska's own checksums: whether a packet lies in a damaged cluster."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sharding.media.input.source import SourceFile

_CLUSTER = b"\x1f\x43\xb6\x75"  # the element's id; and below that of its first child, where the muxer writes checksums
_CRC32 = b"\xbf\x84"
_NEAR = 64  # bytes from a cluster's begin to its first block, where that is the video's
_BETWEEN = 8  # elements that may lie between two clusters, as cues do
_LARGEST = 2**26  # bytes of a cluster that is checked
_BLOCK = 2**20


class MatroskaClusters:
    """The clusters of a Matroska or WebM file, each read and checked when a packet of it comes.

    FFmpeg reads the same file meanwhile, and checks none of them. A muxer may write wrong checksums: a cluster counts
    as damaged only if another of the file is intact. Raises what reading the file raises.
    """

    def __init__(self, file: SourceFile) -> None:
        self.file = file
        self._start = self._end = 0  # of the cluster that packets come from, in bytes
        self._sound: bool | None = None  # None: it has no checksum
        self._believed: bool | None = None  # whether checksums are; None: that is not known yet

    def is_damaged(self, position: int | None) -> bool:
        """Whether the block at this byte lies in a damaged cluster; False if that is not known."""
        if position is None:
            return False
        if not self._start <= position < self._end:
            self._find(position)
        if self._sound is not False:
            return False
        if self._believed is None:
            self._believed = self._another_is_sound()
        return self._believed

    def _find(self, position: int) -> None:
        """Find and check the cluster of the block at this byte: the next one, or one that begins just before it."""
        for start in (self._following(self._end), self._begun_before(position)):
            end = self._ends(start)
            if start < position < end:
                self._start, self._end, self._sound = start, end, self._checked(start, end)
                self._believed = True if self._sound else self._believed
                return
        self._start = self._end = position
        self._sound = None

    def _another_is_sound(self) -> bool:
        start = self._end
        while (start := self._following(start)) and (end := self._ends(start)):
            if self._checked(start, end):
                return True
            start = end
        return False

    def _following(self, position: int) -> int:
        """Where the first cluster at or after `position`, the end of an element, begins; 0 if there is none."""
        for _ in range(_BETWEEN):
            if not position or self._read(position, 4) == _CLUSTER:
                return position
            position = self._ends(position)
        return 0

    def _begun_before(self, position: int) -> int:
        first = max(0, position - _NEAR)
        at = self._read(first, position - first).rfind(_CLUSTER)
        return first + at if at >= 0 else 0

    def _ends(self, position: int) -> int:
        """Where the element that begins at `position` ends; 0 if there is none, or it says no length."""
        head = self._read(position, 12) if position else b""
        if len(head) < 12 or not head[0]:
            return 0
        size_at = 9 - head[0].bit_length()
        if not head[size_at]:
            return 0
        length = 9 - head[size_at].bit_length()
        size = int.from_bytes(head[size_at : size_at + length]) & ((1 << 7 * length) - 1)
        end = position + size_at + length + size
        return end if size != (1 << 7 * length) - 1 and end <= self.file.size else 0

    def _checked(self, start: int, end: int) -> bool | None:
        """Whether a cluster's bytes match its checksum; None if it has none."""
        head = self._read(start, 18)
        body = 4 + 9 - head[4].bit_length()
        if head[body : body + 2] != _CRC32 or end - start > _LARGEST:
            return None
        crc, position = 0, start + body + 6
        while position < end:
            data = self._read(position, min(_BLOCK, end - position))
            if not data:
                return None
            crc = zlib.crc32(data, crc)
            position += len(data)
        return crc == int.from_bytes(head[body + 2 : body + 6], "little")

    def _read(self, position: int, size: int) -> bytes:
        """Up to `size` bytes from `position` on; FFmpeg's own position in the file is restored."""
        raw = self.file.raw
        before = raw.tell()
        try:
            raw.seek(position)
            data = b""
            while len(data) < size and (more := raw.read(size - len(data))):
                data += more
            return data
        finally:
            raw.seek(before)
