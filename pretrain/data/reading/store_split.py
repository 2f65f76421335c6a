"""Samples of a store's split: the rows of its shards' records, numbered through the shards in index order."""

import bisect
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pretrain.data.reading.damage import DamageKind
from sharding.base.errors import DamagedStore, UserError
from sharding.base.lru import LRU
from sharding.base.printable import visible
from sharding.format.index import Index, current_index, read_index
from sharding.format.record import read_record, record_meta
from sharding.storage.counters import Counters
from sharding.storage.store import Store

_FEWEST_RECORDS_KEPT = 16


class DamagedData(Exception):
    """A sample or a whole shard that is not what its record says; `name` says which, in the store's `tar`.

    `samples`: how many are lost with it.
    """

    def __init__(self, kind: DamageKind, name: str, tar: str, why: str, samples: int = 1) -> None:
        super().__init__(kind, name, tar, why, samples)
        self.kind, self.name, self.tar, self.why, self.samples = kind, name, tar, why, samples

    def __str__(self) -> str:
        return f"{self.name} in {self.tar}: {self.why}"


@dataclass(frozen=True, slots=True)
class TarPart:
    """A tar as the index knows it."""

    sha256: str
    bytes: int


class RangeReader(Protocol):
    """What ranges of tars are read from: a store, or copies of its parts."""

    def get_range(self, path: str, start: int, end: int) -> bytes:
        """See `sharding.storage.store.Store`."""


@runtime_checkable
class CopyReader(Protocol):
    """A reader of copies of tars, which can turn out to be damaged where the store is sound."""

    def discard(self, path: str) -> bool:
        """Forget the copy of a tar; whether there was one."""


@dataclass(frozen=True, slots=True)
class PacketTable:
    """Where the packets of one mp4 lie: byte `start` of the store's `tar`, then an array element a packet.

    offset: bytes from `start`; pts: in the record's time base; key: whether a key frame, which opens a group;
    group_crc32: one for each group, over the bytes of its packets.
    """

    tar: str
    start: int
    codec: str
    extradata: bytes
    offset: NDArray[np.int64]
    size: NDArray[np.int32]
    pts: NDArray[np.int64]
    key: NDArray[np.bool_]
    group_crc32: NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class FlowTable:
    """The optical flow stored beside a sample (`sharding.media.flow`): its mp4 and the motion that 127 steps are."""

    bound: float
    width: int
    height: int
    packets: PacketTable


@dataclass(frozen=True, slots=True)
class Sample:
    """One stored video: a row of its shard's record (`sharding.format.record`); labels as its split numbers classes."""

    key: str
    uri: str
    labels: tuple[int, ...]
    frames: int
    width: int
    height: int
    fps: float
    time_base: float
    matrix: str
    range: str
    packets: PacketTable
    flow: FlowTable | None

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"sample {self.key} ({visible(self.uri)})"

    @property
    def tar(self) -> str:
        """Path of the tar in the store."""
        return self.packets.tar

    @property
    def times(self) -> NDArray[np.float64]:
        """Seconds at which its frames are shown, in the order shown."""
        return np.sort(self.packets.pts).astype(np.float64) * self.time_base


class ShardRows:
    """A shard's record, for rows to be taken from quickly.

    numbers: of each of the store's classes, the number that labels get instead; None for a class that is left out.
    """

    def __init__(self, table: pa.Table, paths: Sequence[str], numbers: Sequence[int | None] | None = None) -> None:
        whole = table.combine_chunks()
        columns = {name: whole[name].chunk(0) for name in whole.column_names}
        self._paths, self._numbers = paths, numbers
        self._plain = {name: columns[name] for name in _PLAIN}
        self._video = _PacketColumns(columns.__getitem__)
        self._flow = columns["flow"]
        self._flow_packets = _PacketColumns(self._flow.field) if self._flow.null_count < len(self._flow) else None
        labels = columns["labels"]
        self._label_ends, self._labels = labels.offsets.to_numpy(), labels.values.to_numpy()

    def __len__(self) -> int:
        return len(self._flow)

    def labels(self, row: int) -> tuple[int, ...]:
        """The class numbers of a row, as the split numbers classes: none where it knows none of them."""
        stored = self._stored_labels(row)
        if self._numbers is None:
            return stored
        numbers = (self._numbers[label] for label in stored)
        return tuple(number for number in numbers if number is not None)

    def _stored_labels(self, row: int) -> tuple[int, ...]:
        return tuple(self._labels[self._label_ends[row] : self._label_ends[row + 1]].tolist())

    @cached_property
    def _rows_of_labels(self) -> dict[int, list[int]]:
        rows_of_labels: dict[int, list[int]] = {}
        for row in range(len(self)):
            for label in self._stored_labels(row):
                rows_of_labels.setdefault(label, []).append(row)
        return rows_of_labels

    def row_with(self, label: int, number: int) -> int:
        """The `number`-th of the rows that have the label, a number of the store's own, counted from 0."""
        return self._rows_of_labels[label][number]

    def sample(self, row: int) -> Sample:
        """One row."""
        one = {name: column[row].as_py() for name, column in self._plain.items()}
        numerator, denominator = one["time_base"].split("/")
        tar = self._paths[one["part"]]
        flow = None
        if self._flow_packets is not None and (stored := self._flow[row]).is_valid:
            packets = self._flow_packets.table(row, tar, stored["offset"].as_py(), "h264")
            flow = FlowTable(stored["bound"].as_py(), stored["width"].as_py(), stored["height"].as_py(), packets)
        return Sample(
            key=one["key"],
            uri=one["uri"],
            labels=self.labels(row),
            frames=one["frames"],
            width=one["width"],
            height=one["height"],
            fps=one["fps"],
            time_base=int(numerator) / int(denominator),
            matrix=one["matrix"],
            range=one["range"],
            packets=self._video.table(row, tar, one["offset"], one["codec"]),
            flow=flow,
        )


_PLAIN = (
    "key", "uri", "part", "offset", "frames", "width", "height", "fps", "time_base", "matrix", "range", "codec",
)  # fmt: skip


class _PacketColumns:
    """The packet columns of a record, or of the flow in it, as arrays that rows are cut from."""

    def __init__(self, column: Callable[[str], pa.Array]) -> None:
        self._extradata = column("extradata")
        lists = [column(name) for name in _LISTS]
        self._lists = [(each.offsets.to_numpy(), each.values.to_numpy(zero_copy_only=False)) for each in lists]

    def table(self, row: int, tar: str, start: int, codec: str) -> PacketTable:
        cut = [values[ends[row] : ends[row + 1]] for ends, values in self._lists]
        return PacketTable(tar, start, codec, self._extradata[row].as_py(), *cut)


_LISTS = ("packet_offset", "packet_size", "packet_pts", "packet_key", "group_crc32")


class Split:
    """The samples of one split of a store, numbered through its shards in index order.

    Records are read when a sample of theirs is first asked for, and those used last are kept (`keep_records`).
    `source` is what its tars are read from. Safe for threads.
    """

    def __init__(self, store: Store, index: Index, name: str) -> None:
        self.store, self.index, self.name = store, index, name
        samples: dict[str, int] = {}
        size: dict[str, int] = {}
        self._paths: dict[str, list[str]] = {}
        self.parts: dict[str, TarPart] = {}
        self.source: RangeReader = store
        for part in sorted((part for part in index.parts if part.split == name), key=lambda part: part.part):
            samples[part.job] = samples.get(part.job, 0) + part.samples
            size[part.job] = size.get(part.job, 0) + part.bytes
            self._paths.setdefault(part.job, []).append(part.path)
            self.parts[part.path] = TarPart(part.sha256, part.bytes)
        self.jobs = sorted(job for job, count in samples.items() if count)
        self.shard_sizes = tuple(samples[job] for job in self.jobs)
        self.shard_bytes = tuple(size[job] for job in self.jobs)
        self._ends = list(accumulate(self.shard_sizes))
        self._numbers: list[int | None] | None = None
        self._rows: LRU[int, ShardRows] = LRU(_FEWEST_RECORDS_KEPT)

    def __getstate__(self) -> dict[str, Any]:
        """For another process: what it reads samples by, without the index' rows and the records at hand."""
        return {**self.__dict__, "index": replace(self.index, parts=[])}

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    @property
    def counters(self) -> Counters:
        """Those of its store."""
        return self.store.counters

    def keep_records(self, shards: int) -> None:
        """Keep the records of so many shards at hand, at least."""
        self._rows.size = max(_FEWEST_RECORDS_KEPT, shards)

    def renumber_labels(self, classes: Sequence[str]) -> None:
        """Number the labels of samples as in this list, by the classes' names; those that it lacks are left out.

        Until then they have the store's own numbers.
        """
        places = {name: number for number, name in enumerate(classes)}
        self._numbers = [places.get(name) for name in self.index.classes]
        self._rows.clear()

    def label_histograms(self) -> Iterator[dict[int, int]]:
        """Samples of each of the store's class numbers in each shard."""
        histograms: dict[str, Counter[int]] = {job: Counter() for job in self.jobs}
        for part in self.index.parts:
            if part.split == self.name and part.samples:
                histograms[part.job].update(part.label_histogram)
        yield from histograms.values()

    def first(self, shard: int) -> int:
        """The number of a shard's first sample."""
        return self._ends[shard] - self.shard_sizes[shard]

    def tar_size_damage(self, tar: str) -> DamagedData | None:
        """What is wrong with a whole tar, as far as its length tells; its samples are judged one by one."""
        try:
            size = self.store.size(tar)
        except FileNotFoundError:
            return DamagedData("missing", "the tar", tar, "it is missing", samples=0)
        if size == self.parts[tar].bytes:
            return None
        why = f"it has {size} bytes, the index says {self.parts[tar].bytes}"
        return DamagedData("size", "the tar", tar, why, samples=0)

    def paths(self, shard: int) -> list[str]:
        """The tars of a shard."""
        return self._paths[self.jobs[shard]]

    def place(self, number: int) -> tuple[int, int]:
        """(shard, row) of a sample."""
        shard = bisect.bisect_right(self._ends, number)
        return shard, number - self.first(shard)

    def sample(self, number: int) -> Sample:
        """The sample with this number, 0 <= number < len(self)."""
        shard, row = self.place(number)
        return self.rows(shard).sample(row)

    def rows(self, shard: int) -> ShardRows:
        """A shard's record. Raises DamagedData if it is missing, damaged, or not the one the index counted."""
        return self._rows.get_or_make(shard, lambda: self._read_rows(shard))

    def _read_rows(self, shard: int) -> ShardRows:
        job, paths = self.jobs[shard], self._paths[self.jobs[shard]]
        try:
            table = read_record(self.store, self.name, job)
        except DamagedStore as error:
            raise DamagedData("record", f"shard {job}", paths[0], error.what, self.shard_sizes[shard]) from error
        if len(table) != self.shard_sizes[shard]:
            why = f"its record has {len(table)} samples, the index {self.shard_sizes[shard]}"
            raise DamagedData("record", f"shard {job}", paths[0], why, self.shard_sizes[shard])
        if [part["path"] for part in record_meta(table.schema)["parts"]] != paths:
            why = "its record names other parts than the index"
            raise DamagedData("record", f"shard {job}", paths[0], why, self.shard_sizes[shard])
        return ShardRows(table, paths, self._numbers)


def open_split(store: Store, name: str, version: str | None = None) -> Split:
    """The split `name` of a version of a store's index, the newest unless given.

    Raises UserError if the store has no sample in it.
    """
    index = current_index(store) if version is None else read_index(store, version)
    split = Split(store, index, name)
    if not len(split):
        remedies = {
            "train": "shard a corpus that has training videos: class folders, alone or in CORPUS/train",
            "val": "give the corpus a folder val/, or raise `validation=`, when sharding into a new store",
        }
        has = sorted(each for each, summed in index.splits.items() if summed.samples)
        raise UserError(
            f"the store has no '{name}' sample (it has: {', '.join(has) or 'none'})",
            store.url,
            remedies.get(name, f"name a split that it has, {' or '.join(f'split={each}' for each in has)}"),
        )
    return split
