"""Samples of a store's split: rows of the shard records, and the bytes of just the packets a clip needs."""

import bisect
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa

from pretrain.data.clips import key_groups
from sharding.errors import UserError
from sharding.index import Index, current_index
from sharding.record import read_record
from sharding.store import Store

_FEWEST_RECORDS_KEPT = 64


class DamagedSample(Exception):
    """A sample's bytes are not those its record names: key, shard and what differs."""


@dataclass(frozen=True)
class Sample:
    """One stored video: a row of its shard's record (see `sharding.record`). `tar` is the store's path."""

    key: str
    uri: str
    tar: str
    offset: int
    labels: tuple[int, ...]
    frames: int
    width: int
    height: int
    matrix: str
    range: str
    codec: str
    extradata: bytes
    packet_offset: list[int]
    packet_size: list[int]
    packet_pts: list[int]
    packet_key: list[bool]
    group_crc32: list[int]


class Split:
    """The samples of one split of a store, numbered through its shards in index order.

    Records are read when a sample of theirs is first asked for, and the last `records_kept` are kept. Safe for
    threads.
    """

    def __init__(self, store: Store, index: Index, name: str) -> None:
        self.store, self.index, self.name = store, index, name
        sizes: dict[str, int] = {}
        for part in index.parts:
            if part.split == name:
                sizes[part.job] = sizes.get(part.job, 0) + part.samples
        self._jobs = sorted(job for job, size in sizes.items() if size)
        self.shard_sizes = tuple(sizes[job] for job in self._jobs)
        self._ends = list(accumulate(self.shard_sizes))
        self._paths = {(part.job, part.part): part.path for part in index.parts if part.split == name}
        self._records: OrderedDict[str, pa.Table] = OrderedDict()
        self._lock = threading.Lock()
        self.records_kept = _FEWEST_RECORDS_KEPT

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def sample(self, number: int) -> Sample:
        """The sample with this number, 0 <= number < len(self)."""
        job, place = self._place(number)
        row = self._record(job).slice(place, 1).to_pylist()[0]
        return _sample(row, self._paths[job, row["part"]])

    def labels(self, number: int) -> tuple[int, ...]:
        """The class numbers of a sample, without its packet table."""
        job, place = self._place(number)
        return tuple(self._record(job)["labels"][place].as_py())

    def keep_for(self, samples: int) -> None:
        """Keep the records of two stretches of so many samples, the one in use and the next."""
        most = -(-samples // min(self.shard_sizes, default=1)) + 1
        self.records_kept = max(_FEWEST_RECORDS_KEPT, min(2 * most, len(self.shard_sizes)))

    def _place(self, number: int) -> tuple[str, int]:
        shard = bisect.bisect_right(self._ends, number)
        return self._jobs[shard], number - (self._ends[shard] - self.shard_sizes[shard])

    def _record(self, job: str) -> pa.Table:
        with self._lock:
            if job in self._records:
                self._records.move_to_end(job)
                return self._records[job]
        record = read_record(self.store, self.name, job)
        with self._lock:
            self._records[job] = record
            if len(self._records) > self.records_kept:
                self._records.popitem(last=False)
        return record


def _sample(row: dict[str, Any], tar: str) -> Sample:
    return Sample(
        key=row["key"],
        uri=row["uri"],
        tar=tar,
        offset=row["offset"],
        labels=tuple(row["labels"]),
        frames=row["frames"],
        width=row["width"],
        height=row["height"],
        matrix=row["matrix"],
        range=row["range"],
        codec=row["codec"],
        extradata=row["extradata"],
        packet_offset=row["packet_offset"],
        packet_size=row["packet_size"],
        packet_pts=row["packet_pts"],
        packet_key=row["packet_key"],
        group_crc32=row["group_crc32"],
    )


def open_split(store: Store, name: str) -> Split:
    """The split `name` of a store's newest index. Raises UserError if the store has no sample in it."""
    index = current_index(store)
    split = Split(store, index, name)
    if not len(split):
        raise UserError(
            f"the store has no '{name}' sample (it has: {', '.join(sorted(index.splits)) or 'none'})",
            store.url,
            "shard a corpus that has training videos: class folders, alone or in CORPUS/train"
            if name == "train"
            else f"give the corpus a folder {name}/, or raise `validation=`, when sharding into a new store",
        )
    return split


def read_packets(store: Store, sample: Sample, first: int, last: int) -> tuple[int, list[bytes]]:
    """Packets that decode frames first..last (both included): (number of the first packet, the packets).

    Reads one range: from the key frame at or before `first` (the one before that, where `first` is shown before its
    group's own) to the end of the group that holds `last`, each group checked against its crc32. Raises DamagedSample
    when bytes differ.
    """
    groups = key_groups(sample.packet_key)
    group_first = bisect.bisect_right(groups, first) - 1
    group_last = bisect.bisect_right(groups, last) - 1
    ends = [*groups[1:], len(sample.packet_key)]
    if group_first and first - groups[group_first] < _led(sample, groups[group_first], ends[group_first]):
        group_first -= 1
    begin, end = groups[group_first], ends[group_last]
    low = min(sample.packet_offset[begin:end])
    high = max(o + s for o, s in zip(sample.packet_offset[begin:end], sample.packet_size[begin:end], strict=True))
    body = store.get_range(sample.tar, sample.offset + low, sample.offset + high)
    packets = [
        body[sample.packet_offset[i] - low : sample.packet_offset[i] - low + sample.packet_size[i]]
        for i in range(begin, end)
    ]
    for group in range(group_first, group_last + 1):
        crc = 0
        for i in range(groups[group], ends[group]):
            crc = zlib.crc32(packets[i - begin], crc)
        if crc != sample.group_crc32[group]:
            raise DamagedSample(
                f"sample {sample.key} ({sample.uri}) in {sample.tar}: key-frame group {group} is damaged"
            )
    return begin, packets


def _led(sample: Sample, begin: int, end: int) -> int:
    """How many pictures of a group are shown before its key frame, as in a copied source's open group.

    They are made from the group before, too.
    """
    times = sample.packet_pts[begin:end]
    return sum(time < times[0] for time in times)
