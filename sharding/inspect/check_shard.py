"""One shard, re-read: its record, its tar parts and every sample in them, against what the record says."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from sharding.base.errors import UserError
from sharding.format.record import META, failure_list, failures_path, is_part_path, part_path, read_record, record_path
from sharding.inspect.check_sample import json_faults, row_faults, video_faults
from sharding.inspect.sequential_reader import BLOCK, SequentialReader
from sharding.storage.store import Store

_HEADER = tarfile.BLOCKSIZE
_LARGEST_JSON = 2**20
_ONE_IN = 50  # samples decoded, where not all are

Decode = Literal["none", "sample", "all"]


@dataclass(frozen=True, order=True)
class Damage:
    """What is not as it was written; the more fields are set, the nearer it is named.

    `split` and `job` are "" where it concerns the store; `part` is None where it concerns the record; `path` is that
    of the part.
    """

    split: str
    job: str
    part: int | None
    key: str | None
    what: str
    path: str = ""

    @property
    def where(self) -> str:
        """The object's path in the store, and the sample."""
        if not self.job:
            return "the store"
        path = self.path or record_path(self.split, self.job)
        return path if self.key is None else f"{path}, sample {self.key}"


@dataclass(frozen=True)
class Expectations:
    """What all shards of a store must agree with; None: not known, not checked."""

    classes: int | None
    settings_digest: str | None
    decode: Decode


@dataclass
class ShardReport:
    """What was found in a shard. `parts` as its record describes them; `keys`: the first 8 bytes of each.

    `failure_list`: path of the one that belongs to it.

    `unread`: its record cannot be read, so that nothing else of it is known.
    """

    split: str
    job: str
    damages: list[Damage] = field(default_factory=list)
    parts: list[dict[str, Any]] = field(default_factory=list)
    samples: int = 0
    decoded: int = 0
    unreadable: bool = True
    key_prefixes: bytes = b""
    bytes: int = 0
    failure_list: str | None = None

    def add(self, what: str, part: int | None = None, key: str | None = None) -> None:
        """Note a damage."""
        path = "" if part is None else self.path(part)
        self.damages.append(Damage(self.split, self.job, part, key, what, path))

    def path(self, number: int) -> str:
        """Where a part lies: where its record says if that is a name of its own, as it could name any object."""
        part = self.parts[number]
        told = str(part.get("path"))
        if is_part_path(told, self.split, self.job, number):
            return told
        return part_path(self.split, self.job, number, str(part.get("sha256")))

    @property
    def names_only_its_parts(self) -> bool:
        """Whether its record can be read and names parts of this shard alone."""
        return not self.unreadable and all(part.get("path") == self.path(n) for n, part in enumerate(self.parts))


def check_shard(store: Store, split: str, job: str, rules: Expectations) -> ShardReport:
    """All of a shard; holds a record, a block and a sample at a time. Raises UserError if the store cannot be used."""
    found = ShardReport(split, job)
    try:
        table = read_record(store, split, job)
        meta = json.loads(table.schema.metadata[META])
        found.parts = [dict(part) for part in meta["parts"]]
        wanted, failures = sum(meta["failures"].values()), failure_list(split, job, meta)
    except UserError as error:
        require_usable(store)
        found.add(error.what)
        return found
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        found.add(f"a shard's record is damaged: its metadata cannot be read ({type(error).__name__}: {error})")
        return found
    keys = table["key"].to_pylist()
    found.unreadable = False
    found.samples = len(keys)
    found.key_prefixes = b"".join(key_prefix(key) for key in keys)
    for what in _record_faults(table, meta, found, rules):
        found.add(what)
    for what in _failure_faults(store, found, failures, wanted):
        found.add(what)
    chosen = _decoded(keys, rules.decode)
    numbers = np.array(table["part"].to_pylist(), np.int64)
    for number, part in enumerate(found.parts):
        mine = table.filter(pa.array(numbers == number))
        try:
            _Examination(store, found, number, part, mine, rules, chosen).run()
        except FileNotFoundError:
            found.add(f"the part is missing, with its {mine.num_rows} samples", number)
        except UserError as error:
            require_usable(store)
            found.add(f"the part cannot be read: {error.what}", number)
    return found


def require_usable(store: Store) -> None:
    """Raises UserError if not one object but the whole store cannot be read."""
    store.list("index/")


def key_prefix(key: str) -> bytes:
    """The first 8 bytes of a sample's key."""
    try:
        return bytes.fromhex(key)[:8].ljust(8, b"\0")
    except ValueError:
        return hashlib.sha256(key.encode()).digest()[:8]


def _decoded(keys: list[str], decode: Decode) -> set[str]:
    """The keys to decode: about one in fifty, the same each time, and at least one of a shard."""
    if decode == "all":
        return set(keys)
    if decode == "none" or not keys:
        return set()
    return {min(keys)} | {key for key in keys if int.from_bytes(key_prefix(key)[:4], "big") % _ONE_IN == 0}


def _record_faults(table: pa.Table, meta: dict[str, Any], found: ShardReport, rules: Expectations) -> Iterator[str]:
    """What of the record does not agree with itself, its name or the store."""
    if (meta.get("split"), meta.get("job")) != (found.split, found.job):
        yield f"the record is that of {meta.get('split')}/{meta.get('job')}"
    if rules.settings_digest is not None and meta.get("settings_digest") != rules.settings_digest:
        yield "the record was made with other settings than the store"
    numbers = Counter(table["part"].to_pylist())
    labels: dict[int, Counter[str]] = {}
    for number, of_sample in zip(table["part"].to_pylist(), table["labels"].to_pylist(), strict=True):
        labels.setdefault(number, Counter()).update(str(label) for label in of_sample)
    for number, part in enumerate(found.parts):
        own = part_path(found.split, found.job, number, str(part.get("sha256")))
        if part.get("path") not in (own, f"{found.split}/{found.job}-{number:02d}.tar"):
            yield f"part {number} has the path {part.get('path')!r}"
        if numbers.pop(number, 0) != part.get("samples"):
            yield f"part {number} has not the {part.get('samples')} samples that the record's metadata says"
        if "label_histogram" in part and part["label_histogram"] != dict(labels.get(number, {})):
            yield f"the label histogram of part {number} is not that of its samples"
    if numbers:
        yield f"samples lie in parts that the record does not name: {sorted(numbers)}"
    if meta.get("samples", table.num_rows) != table.num_rows:
        yield f"the record has {table.num_rows} samples, its metadata says {meta['samples']}"
    if "concealed" in meta and meta["concealed"]["frames"] != sum(table["concealed"].to_pylist()):
        yield "the record's metadata has not the concealed frames of its samples"
    if "frames" in meta and meta["frames"] != sum(table["frames"].to_pylist()):
        yield "the record's metadata has not the frames of its samples"


def _failure_faults(store: Store, found: ShardReport, path: str | None, wanted: int) -> Iterator[str]:
    """What of a shard's failure list at `path` does not agree with its record, which has `wanted` failures."""
    if path is None:
        return
    found.failure_list = path
    try:
        data = store.get(path)
        lines = [json.loads(line) for line in data.splitlines()]
    except FileNotFoundError:
        yield f"{path}, its failure list, is missing"
        return
    except ValueError:
        yield f"{path} is damaged: it is not JSON lines"
        return
    if len(lines) != wanted:
        yield f"{path} has {len(lines)} failures, the record says {wanted}"
    elif path not in (failures_path(found.split, found.job, data), f"{found.split}/{found.job}.failures.jsonl"):
        yield f"{path} is damaged: its content is not what its name says"


class _Examination:
    """One tar part, read once from its beginning to its end."""

    def __init__(
        self,
        store: Store,
        found: ShardReport,
        number: int,
        part: dict[str, Any],
        table: pa.Table,
        rules: Expectations,
        decode: set[str],
    ) -> None:
        self.found, self.number, self.part, self.table, self.rules = found, number, part, table, rules
        self.decode = decode
        self.last_row: tuple[int, dict[str, Any]] = (-1, {})
        self.sound_headers = 0  # of its samples' members
        self.reader = SequentialReader(store, found.path(number))
        self.names: dict[str, tuple[int, str]] = {}  # member → row, kind
        self.known: list[tuple[int, str, int]] = []  # header, member, size: those that the record places
        flows = table["flow"].to_pylist() if table["flow"].null_count < table.num_rows else [None] * table.num_rows
        for row, (key, flow) in enumerate(zip(table["key"].to_pylist(), flows, strict=True)):
            self.names |= {f"{key}.json": (row, "json"), f"{key}.mp4": (row, "mp4")}
            self.known.append((table["offset"][row].as_py() - _HEADER, f"{key}.mp4", table["size"][row].as_py()))
            if flow is not None:
                self.names[f"{key}.flow.mp4"] = (row, "flow")
                self.known.append((flow["offset"] - _HEADER, f"{key}.flow.mp4", flow["size"]))
        self.known.sort()

    def run(self) -> None:
        before = len(self.found.damages)
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
            del self.found.damages[before:]  # as many as samples, and all say the same
            self._add(f"not one of its {self.table.num_rows} samples is in it, but {len(strangers)} other members")
        else:
            for what in strangers:
                self._add(what)
            for name, (row, kind) in self.names.items():
                if name not in seen:
                    self._add(f"{name} is missing", row)
                    self._row(row, kind)
        self.found.bytes += self.reader.size
        self._whole()

    def _members(self) -> Iterator[tuple[str, int, int]]:
        """(name, offset, size) of each member; behind a damaged header, goes on where the record knows one."""
        position, size = 0, self.reader.size
        while position < size:
            block = self.reader.read(position, position + _HEADER)
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                header, name, length = next((k for k in self.known if k[0] >= position), (size, "", 0))
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
        """A tar ends with two blocks of zeros or more, and nothing else."""
        first, zeros = position, self.reader.size - position >= 2 * _HEADER
        while position < self.reader.size and zeros:
            zeros = not any(self.reader.read(position, position + BLOCK))
            position += BLOCK
        if not zeros:
            self._add(f"no tar member from byte {first} on, and not the end of a tar")

    def _whole(self) -> None:
        digest = self.reader.digest()
        if self.reader.size != self.part.get("bytes"):
            self._add(f"the part is {self.reader.size} bytes long; {self.part.get('bytes')} were written")
        if digest != self.part.get("sha256"):
            self._add("the part's sha256 is not the recorded one")

    def _member(self, name: str, row: int, kind: str, offset: int, size: int) -> None:
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
                self.found.decoded += decode and kind == "mp4"
        for what in faults:
            self._add(f"{name} {what}", row)
        self._row(row, kind)

    def _row(self, row: int, kind: str) -> None:
        if kind == "mp4":  # once a sample
            for what in row_faults(self._as_dict(row), self.rules.classes):
                self._add(what, row)

    def _as_dict(self, row: int) -> dict[str, Any]:
        if self.last_row[0] != row:
            self.last_row = row, self.table.slice(row, 1).to_pylist()[0]
        return self.last_row[1]

    def _add(self, what: str, row: int | None = None) -> None:
        self.found.add(what, self.number, None if row is None else self.table["key"][row].as_py())
