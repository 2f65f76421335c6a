"""A shard's record: its schema, the paths of its tar parts and failure list, writing and reading it.

Parts and failure lists are named by their content, so that of two workers on one shard neither can change what the
other's record names. Records of earlier versions name theirs by the shard alone; both are read.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from sharding.base.errors import DamagedStore
from sharding.base.text import require_format
from sharding.format.plan import SPLITS
from sharding.storage.store import Store

FORMAT = 2
META = b"reelscale"
_DIGEST = b"reelscale.sha256"
_TAIL = 2**16  # bytes: more than the footer of most records
_AT_ONCE = 16
_DIGITS = 16  # hex digits of a content's digest in a name
_NAME = re.compile(rf"(g\d+-\d+)(?:\.parquet|(?:-\d{{2,}})?(?:-[0-9a-f]{{{_DIGITS}}})?\.(?:tar|failures\.jsonl))")

A = TypeVar("A")
B = TypeVar("B")

PACKETS = [
    ("extradata", pa.binary()),
    ("packet_offset", pa.list_(pa.int64())),
    ("packet_size", pa.list_(pa.int32())),
    ("packet_pts", pa.list_(pa.int64())),
    ("packet_key", pa.list_(pa.bool_())),
    ("group_crc32", pa.list_(pa.uint32())),
]
FLOW = pa.struct(
    [
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("frames", pa.int32()),
        ("bound", pa.float64()),
        ("clipped", pa.float64()),
        ("quantisation_error", pa.float64()),
        ("stored_error", pa.float64()),
        *PACKETS,
    ]
)
RECORD = pa.schema(
    [
        ("key", pa.string()),
        ("part", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
        ("labels", pa.list_(pa.int32())),
        ("uri", pa.string()),
        ("segment", pa.int32()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("fps", pa.float64()),
        ("frames", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("matrix", pa.string()),
        ("range", pa.string()),
        ("codec", pa.string()),
        *PACKETS,
        ("time_base", pa.string()),
        ("flow", FLOW),
        ("concealed", pa.int32()),  # null in records made before it was counted
    ]
)


def part_path(split: str, job: str, part: int, sha256: str) -> str:
    """The path in the store of a tar part with this content."""
    return f"{split}/{job}-{part:02d}-{sha256[:_DIGITS]}.tar"


def is_part_path(path: str, split: str, job: str, part: int) -> bool:
    """Whether `path` is one of this part, with any content."""
    return re.fullmatch(rf"{split}/{re.escape(job)}-{part:02d}(?:-[0-9a-f]{{{_DIGITS}}})?\.tar", path) is not None


def failures_path(split: str, job: str, content: bytes) -> str:
    """The path in the store of a shard's failure list with this content."""
    return f"{split}/{job}-{hashlib.sha256(content).hexdigest()[:_DIGITS]}.failures.jsonl"


def failure_list(split: str, job: str, meta: dict[str, Any]) -> str | None:
    """The path of the failure list that a record names; None if nothing failed. Raises ValueError for a wrong path."""
    if not sum(meta["failures"].values()):
        return None
    path = meta.get("failure_list", f"{split}/{job}.failures.jsonl")
    if not str(path).endswith(".failures.jsonl") or shard_of(str(path)) != (split, job):
        raise ValueError(f"it names the failure list {path!r}")
    return str(path)


def shard_of(path: str) -> tuple[str, str] | None:
    """(split, job) of the shard that an object belongs to by its path; None if it belongs to none."""
    split, _, name = path.rpartition("/")
    match = _NAME.fullmatch(name)
    return (split, match[1]) if match and split in SPLITS else None


def record_path(split: str, job: str) -> str:
    """The path in the store of a shard's record."""
    return f"{split}/{job}.parquet"


def list_records(store: Store) -> list[tuple[str, str]]:
    """(split, job) of every finished shard, sorted: those that have a record."""
    return [
        (split, path.removeprefix(f"{split}/").removesuffix(".parquet"))
        for split in SPLITS
        for path in store.list(f"{split}/")
        if path.endswith(".parquet")
    ]


def write_record(store: Store, split: str, job: str, rows: Sequence[dict[str, Any]], meta: dict[str, Any]) -> bool:
    """Put a shard's record, which makes the shard exist; returns False if there is a record already."""
    table = pa.Table.from_pylist(list(rows), schema=RECORD)
    try:
        store.put(record_path(split, job), to_parquet(with_meta(table, meta)), create=True)
    except FileExistsError:
        return False
    return True


def read_record(store: Store, split: str, job: str) -> pa.Table:
    """A shard's record, a row per sample in tar order (metadata: `record_meta`). Raises DamagedStore."""
    path = record_path(split, job)
    with raised_as_damage(store, path):
        table = from_parquet(store.get(path))
        _require_format(store, path, record_meta(table.schema))
        if "concealed" not in table.column_names:
            table = table.append_column(RECORD.field("concealed"), pa.nulls(len(table), pa.int32()))
        if not table.schema.equals(RECORD):
            raise ValueError("its columns are not a record's")
        return table


def read_meta(store: Store, split: str, job: str) -> dict[str, Any]:
    """The metadata of a shard's record, for which only the end of the file is read. Raises DamagedStore."""
    path = record_path(split, job)
    with raised_as_damage(store, path):
        tail, size = store.get_tail(path, _TAIL)
        footer = int.from_bytes(tail[-8:-4], "little") + 8
        if size > len(tail) < footer <= size:
            tail = store.get_range(path, size - footer, size)
        return _require_format(store, path, record_meta(_schema(tail, size)))


def _require_format(store: Store, path: str, meta: dict[str, Any]) -> dict[str, Any]:
    require_format(meta.get("format"), FORMAT, "a shard's record", f"{store.url}/{path}")
    return meta


def with_meta(table: pa.Table, meta: dict[str, Any]) -> pa.Table:
    """The table with metadata as JSON, and a digest by which `record_meta` notices damage."""
    text = json.dumps(meta, sort_keys=True)
    kept = {META: text.encode(), _DIGEST: hashlib.sha256(text.encode()).hexdigest().encode()}
    return table.replace_schema_metadata(kept)


def record_meta(schema: pa.Schema) -> dict[str, Any]:
    """The metadata in the schema of a record or an index. Raises ValueError if it is damaged."""
    kept = schema.metadata or {}
    text = kept.get(META, b"")
    if hashlib.sha256(text).hexdigest().encode() != kept.get(_DIGEST):
        raise ValueError("its metadata is not what its digest says")
    return dict(json.loads(text))


def map_prefetched(pool: Executor, function: Callable[[A], B], items: Iterable[A]) -> Iterator[tuple[A, B]]:
    """(item, function(item)) of all items in order; only a few are computed ahead, so that memory stays flat."""
    waiting: deque[tuple[A, Future[B]]] = deque()
    for item in items:
        waiting.append((item, pool.submit(function, item)))
        if len(waiting) > 4 * _AT_ONCE:
            done, future = waiting.popleft()
            yield done, future.result()
    for done, future in waiting:
        yield done, future.result()


def to_parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file; the same bytes every time."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def from_parquet(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table in the bytes of a Parquet file, or some of its columns. Raises ValueError if they are damaged.

    Reads in the calling thread, as a workaround: `pq.read_table` starts Arrow's threads, and an interpreter that ends
    while they live may abort.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        return file.read(columns=None if columns is None else list(columns), use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(str(error)) from error


def _schema(tail: bytes, size: int) -> pa.Schema:
    """The schema of a Parquet file of `size` bytes, from its last bytes. Raises ValueError if they are damaged."""
    try:
        with pq.ParquetFile(pa.PythonFile(_FileEnd(tail, size), mode="r")) as file:
            return file.schema_arrow
    except (OSError, pa.ArrowException) as error:
        raise ValueError(str(error)) from error


class _FileEnd(io.RawIOBase):
    """A file of which only the last bytes are in memory: reading those before them raises OSError."""

    def __init__(self, tail: bytes, size: int) -> None:
        self.tail, self.whole, self.position = tail, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self.position, io.SEEK_END: self.whole}[whence]
        self.position = base + offset
        return self.position

    def tell(self) -> int:
        return self.position

    def size(self) -> int:
        return self.whole

    def read(self, size: int | None = -1) -> bytes:
        start = self.position - (self.whole - len(self.tail))
        if start < 0:
            raise OSError("the footer is longer than it says")
        stop = len(self.tail) if size is None or size < 0 else start + size
        data = self.tail[start:stop]
        self.position += len(data)
        return data


@contextlib.contextmanager
def raised_as_damage(store: Store, path: str) -> Iterator[None]:
    """Raise DamagedStore for a missing record (FileNotFoundError) or a damaged one (ValueError), inside the `with`."""
    where = f"{store.url}/{path}"
    try:
        yield
    except FileNotFoundError:
        raise DamagedStore("a shard's record is missing", where, "shard the corpus again") from None
    except ValueError as error:
        raise DamagedStore(f"a shard's record is damaged: {error}", where, "delete it and shard again") from error
