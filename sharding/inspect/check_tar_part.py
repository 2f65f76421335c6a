"""Checks one tar part of a shard: every member where the record says, nothing else, the whole undamaged (sha256)."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from sharding.inspect.check_sample import json_faults, row_faults, video_faults
from sharding.inspect.sequential_reader import BLOCK, SequentialReader
from sharding.inspect.shard_report import Expectations, ShardReport
from sharding.storage.store import Store

_HEADER = tarfile.BLOCKSIZE
_LARGEST_JSON = 2**20


class TarPartCheck:
    """Reads a tar part once, from beginning to end, and adds what is damaged to the shard's report.

    `part`: the record's metadata of it; `table`: the record's rows of it; `decode`: keys of the samples to decode.
    """

    def __init__(
        self,
        store: Store,
        report: ShardReport,
        number: int,
        part: dict[str, Any],
        table: pa.Table,
        expected: Expectations,
        decode: set[str],
    ) -> None:
        self.report, self.number, self.part, self.table, self.expected = report, number, part, table, expected
        self.decode = decode
        self.last_row: tuple[int, dict[str, Any]] = (-1, {})
        self.sound_headers = 0  # of its samples' members
        self.reader = SequentialReader(store, report.path(number))
        self.names: dict[str, tuple[int, str]] = {}  # member → row, kind
        self.recorded_members: list[tuple[int, str, int]] = []  # offset of the header, name, size
        flows = table["flow"].to_pylist() if table["flow"].null_count < table.num_rows else [None] * table.num_rows
        for row, (key, flow) in enumerate(zip(table["key"].to_pylist(), flows, strict=True)):
            self.names |= {f"{key}.json": (row, "json"), f"{key}.mp4": (row, "mp4")}
            header = table["offset"][row].as_py() - _HEADER
            self.recorded_members.append((header, f"{key}.mp4", table["size"][row].as_py()))
            if flow is not None:
                self.names[f"{key}.flow.mp4"] = (row, "flow")
                self.recorded_members.append((flow["offset"] - _HEADER, f"{key}.flow.mp4", flow["size"]))
        self.recorded_members.sort()

    def run(self) -> None:
        """Read and check the whole part. Raises FileNotFoundError if it is missing."""
        before = len(self.report.damages)
        seen: dict[str, int] = {}
        strangers: list[str] = []
        for name, offset, size in self._members():
            row, kind = self.names.get(name, (-1, ""))
            if row < 0:
                strangers.append(f"a member that no sample of it has: {name!r} at byte {offset}")
            elif name in seen:
                self._add(f"{name} is there twice", row)
            else:
                if seen and row < max(seen.values()):
                    self._add("it is not in its place among the samples", row)
                seen[name] = row
                self._member(name, row, kind, offset, size)
        if self.names and not self.sound_headers:
            del self.report.damages[before:]  # as many as samples, and all say the same
            self._add(f"not one of its {self.table.num_rows} samples is in it, but {len(strangers)} other members")
        else:
            for what in strangers:
                self._add(what)
            for name, (row, kind) in self.names.items():
                if name not in seen:
                    self._add(f"{name} is missing", row)
                    self._row(row, kind)
        self.report.bytes += self.reader.size
        self._whole()

    def _members(self) -> Iterator[tuple[str, int, int]]:
        """(name, offset, size) of each member; after a damaged header it goes on at the next member of the record."""
        position, size = 0, self.reader.size
        while position < size:
            block = self.reader.read(position, position + _HEADER)
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                following = (member for member in self.recorded_members if member[0] >= position)
                header, name, length = next(following, (size, "", 0))
                if header >= size:
                    self._end(position)
                    return
                if header > position:
                    self._add(f"no tar member from byte {position} on")
                    position = header
                    continue
                self._add(f"the header of {name} is damaged", self.names[name][0])
            else:
                name, length = info.name, info.size
                self.sound_headers += name in self.names
                if not info.isreg():
                    self._add(f"a member that is no file: {name!r} at byte {position}")
                    length = 0
            yield name, position + _HEADER, length
            position += _HEADER * (1 + -(-length // _HEADER))

    def _end(self, position: int) -> None:
        """Check the end of the tar: two blocks of zeros or more, and nothing else."""
        first, zeros = position, self.reader.size - position >= 2 * _HEADER
        while position < self.reader.size and zeros:
            zeros = not any(self.reader.read(position, position + BLOCK))
            position += BLOCK
        if not zeros:
            self._add(f"no tar member from byte {first} on, and not the end of a tar")

    def _whole(self) -> None:
        """Check the part's length and sha256."""
        digest = self.reader.digest()
        if self.reader.size != self.part.get("bytes"):
            self._add(f"the part is {self.reader.size} bytes long; {self.part.get('bytes')} were written")
        if digest != self.part.get("sha256"):
            self._add("the part's sha256 is not the recorded one")

    def _member(self, name: str, row: int, kind: str, offset: int, size: int) -> None:
        """Check a member, its JSON or its mp4, against the record's row."""
        whole = self._as_dict(row)
        if kind == "json":
            if size <= _LARGEST_JSON:
                faults = json_faults(self.reader.read(offset, offset + size), whole)
            else:
                faults = iter([f"is {size} bytes long"])
        else:
            record = whole["flow"] if kind == "flow" else whole
            if (offset, size) != (record["offset"], record["size"]):
                place = f"{record['size']} bytes at byte {record['offset']}"
                faults = iter([f"lies otherwise than recorded: {size} bytes at byte {offset}, not {place}"])
            else:
                decode = whole["key"] in self.decode
                faults = video_faults(self.reader.read(offset, offset + size), record, decode)
                self.report.decoded += decode and kind == "mp4"
        for what in faults:
            self._add(f"{name} {what}", row)
        self._row(row, kind)

    def _row(self, row: int, kind: str) -> None:
        """Check the record's row itself, with the sample's mp4, so once a sample."""
        if kind == "mp4":
            for what in row_faults(self._as_dict(row), self.expected.classes):
                self._add(what, row)

    def _as_dict(self, row: int) -> dict[str, Any]:
        if self.last_row[0] != row:
            self.last_row = row, self.table.slice(row, 1).to_pylist()[0]
        return self.last_row[1]

    def _add(self, what: str, row: int | None = None) -> None:
        self.report.add(what, self.number, None if row is None else self.table["key"][row].as_py())
