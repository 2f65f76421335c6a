"""Reads just the packets that a clip needs: ranges of a tar, whole key-frame groups, each compared with its crc32."""

import bisect
import itertools
import operator
import zlib
from collections.abc import Collection, Iterator, Sequence

import numpy as np

from pretrain.data.reading.prefetch import ByteRange
from pretrain.data.reading.store_split import CopyReader, DamagedData, PacketTable, RangeReader
from sharding.base.errors import DamagedStore

_GAP = 2**16  # bytes that are read sooner than asked for apart


def group_range(table: PacketTable, first: int, last: int) -> tuple[int, int]:
    """(first packet, end) of the key-frame groups that decode frames first..last, both included, as shown.

    From the key frame at or before `first`, or the one before that, where `first` is shown before its group's own.
    """
    bounds = [*np.flatnonzero(table.key).tolist(), len(table.key)]
    low = bisect.bisect_right(bounds, first) - 1
    high = bisect.bisect_right(bounds, last)
    if low and first - bounds[low] < _led(table, bounds[low], bounds[low + 1]):
        low -= 1
    return bounds[low], bounds[high]


def needed_spans(table: PacketTable, wanted: Collection[int]) -> list[tuple[int, int]]:
    """(first, last) of stretches that cover the frames wanted, of which no more are decoded than must be.

    Between two of them lie frames to leave out, and the key frame by which the second is decoded.
    """
    groups = np.flatnonzero(table.key).tolist()
    numbers = sorted(wanted)
    spans, first, last = [], numbers[0], numbers[0]
    for number in numbers:
        later = bisect.bisect_right(groups, number) - bisect.bisect_right(groups, last) if number > last + 1 else 0
        if later > 1 or (later and group_range(table, number, number)[0] > last):
            spans.append((first, last))
            first = number
        last = number
    return [*spans, (first, last)]


def byte_ranges(table: PacketTable, wanted: Collection[int]) -> list[ByteRange]:
    """The byte ranges that `read_spans` reads for these frames."""
    runs = _runs(table, needed_spans(table, wanted))
    return [ByteRange(table.tar, table.start + run[0].low, table.start + _end(run)) for run in runs]


def read_spans(
    source: RangeReader, name: str, table: PacketTable, spans: Sequence[tuple[int, int]]
) -> Iterator[tuple[int, list[bytes]]]:
    """For each of `needed_spans`, the packets of its `group_range`: (number of the first, the packets as stored).

    Spans that lie close are read as one range. `name` is the sample's, for errors. Raises DamagedData when bytes are
    missing or differ from their group's crc32.
    """
    for run in _runs(table, spans):
        low, high = run[0].low, _end(run)
        try:
            body = _read(source, name, table, low, high)
            payloads = [each.packets(body, low, name, table) for each in run]
        except DamagedData:
            if not isinstance(source, CopyReader) or not source.discard(table.tar):
                raise
            body = _read(source, name, table, low, high)
            payloads = [each.packets(body, low, name, table) for each in run]
        for each, packets in zip(run, payloads, strict=True):
            yield each.begin, packets


class _Range:
    """Packets begin…end-1 of a table, whole groups, and the bytes of the mp4 that they lie in."""

    def __init__(self, table: PacketTable, begin: int, end: int) -> None:
        self.begin, self.end = begin, end
        self.starts = table.offset[begin:end].tolist()
        self.sizes = table.size[begin:end].tolist()
        self.low = min(self.starts)
        self.high = max(map(operator.add, self.starts, self.sizes))

    def packets(self, body: bytes, low: int, name: str, table: PacketTable) -> list[bytes]:
        """Cut them from `body`, which begins at `low`, and compare them with their groups' sums."""
        packets = [body[start - low : start - low + size] for start, size in zip(self.starts, self.sizes, strict=True)]
        number = int(np.count_nonzero(table.key[: self.begin]))
        bounds = [*np.flatnonzero(table.key[self.begin : self.end]).tolist(), len(packets)]
        for group, (first, end) in enumerate(itertools.pairwise(bounds), number):
            crc = 0
            for packet in packets[first:end]:
                crc = zlib.crc32(packet, crc)
            if crc != table.group_crc32[group]:
                raise DamagedData("checksum", name, table.tar, f"key-frame group {group} is damaged")
        return packets


def _runs(table: PacketTable, spans: Sequence[tuple[int, int]]) -> Iterator[list[_Range]]:
    """The ranges of spans, those together between which lies less than another request costs."""
    ranges = [_Range(table, *group_range(table, *span)) for span in spans]
    run = ranges[:1]
    for each in ranges[1:]:
        if each.low - run[-1].high > _GAP:
            yield run
            run = []
        run.append(each)
    yield run


def _end(run: list[_Range]) -> int:
    return int(max(each.high for each in run))


def _read(source: RangeReader, name: str, table: PacketTable, low: int, high: int) -> bytes:
    try:
        return source.get_range(table.tar, table.start + low, table.start + high)
    except FileNotFoundError as error:
        raise DamagedData("missing", name, table.tar, "the tar is missing") from error
    except DamagedStore as error:
        raise DamagedData("size", name, table.tar, error.what) from error


def _led(table: PacketTable, begin: int, end: int) -> int:
    """How many pictures of a group are shown before its key frame, as in a copied source's open group.

    They are made from the group before, too.
    """
    times = table.pts[begin:end]
    return int(np.count_nonzero(times < times[0]))
