"""A shard's record: its schema, its names in the store, writing and reading it."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from sharding.errors import UserError
from sharding.plan import SPLITS
from sharding.store import Store

FORMAT = 1
META = b"reelscale"

RECORD = pa.schema(
    [
        ("key", pa.string()),
        ("part", pa.int32()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("sha256", pa.string()),
        ("labels", pa.list_(pa.int32())),
        ("uri", pa.string()),
        ("start", pa.float64()),
        ("end", pa.float64()),
        ("fps", pa.float64()),
        ("frames", pa.int32()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("matrix", pa.string()),
        ("range", pa.string()),
        ("extradata", pa.binary()),
        ("packet_offset", pa.list_(pa.int64())),
        ("packet_size", pa.list_(pa.int32())),
        ("packet_pts", pa.list_(pa.int64())),
        ("packet_key", pa.list_(pa.bool_())),
        ("group_crc32", pa.list_(pa.uint32())),
        ("time_base", pa.string()),
    ]
)


def part_path(split: str, job: str, part: int) -> str:
    """Path of a tar part in the store."""
    return f"{split}/{job}-{part:02d}.tar"


def record_path(split: str, job: str) -> str:
    """Path of a shard's record in the store."""
    return f"{split}/{job}.parquet"


def failures_path(split: str, job: str) -> str:
    """Path of a shard's failure list in the store."""
    return f"{split}/{job}.failures.jsonl"


def list_records(store: Store) -> list[tuple[str, str]]:
    """(split, job) of every finished shard, sorted: the ledger."""
    return [
        (split, path.removeprefix(f"{split}/").removesuffix(".parquet"))
        for split in SPLITS
        for path in store.list(f"{split}/")
        if path.endswith(".parquet")
    ]


def write_record(store: Store, split: str, job: str, rows: Sequence[dict[str, Any]], meta: dict[str, Any]) -> bool:
    """Put a shard's record, which makes the shard exist; False if it existed already."""
    schema = RECORD.with_metadata({META: json.dumps(meta, sort_keys=True).encode()})
    data = to_parquet(pa.Table.from_pylist(list(rows), schema=schema))
    try:
        store.put(record_path(split, job), data, create=True)
    except FileExistsError:
        return False
    return True


def read_record(store: Store, split: str, job: str) -> pa.Table:
    """A shard's record, a row per sample in tar order; its metadata: `record_meta`."""
    path = record_path(split, job)
    where = f"{store.url}/{path}"
    try:
        table = from_parquet(store.get(path))
        if not table.schema.equals(RECORD):
            raise ValueError("its columns are not a record's")
        return table
    except FileNotFoundError:
        raise UserError("a shard's record is missing", where, "shard the corpus again") from None
    except ValueError as error:
        raise UserError(f"a shard's record is damaged: {error}", where, "delete it and shard again") from error


def record_meta(table: pa.Table) -> dict[str, Any]:
    """The JSON metadata of a record or an index table."""
    return dict(json.loads((table.schema.metadata or {}).get(META, b"{}")))


def read_failures(store: Store) -> list[dict[str, str]]:
    """Every video that gave no sample: {"uri", "reason", "detail", "split"}, in the order of the shards."""
    found = []
    for split in SPLITS:
        for path in store.list(f"{split}/"):
            if path.endswith(".failures.jsonl"):
                lines = store.get(path).decode().splitlines()
                found += [json.loads(line) | {"split": split} for line in lines if line]
    return found


def to_parquet(table: pa.Table) -> bytes:
    """A table as the bytes of a Parquet file, the same every time."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd", write_page_checksum=True)
    return sink.getvalue()


def from_parquet(data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """The table in the bytes of a Parquet file, or some of its columns; ValueError if they are damaged.

    Reads in the calling thread: `pq.read_table` starts Arrow's threads, and an interpreter that ends
    while they live may abort.
    """
    try:
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        return file.read(columns=None if columns is None else list(columns), use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise ValueError(str(error)) from error
