"""Checks one shard: its record, its failure list, and (by check_tar_part.py) each of its tar parts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from sharding.base.errors import UserError
from sharding.format.record import META, failure_list, failures_path, part_path, read_record
from sharding.inspect.check_tar_part import TarPartCheck
from sharding.inspect.shard_report import Decode, Expectations, ShardReport
from sharding.storage.store import Store

_ONE_IN = 50  # samples decoded, where not all are


def check_shard(store: Store, split: str, job: str, expected: Expectations) -> ShardReport:
    """Read all of a shard and report what is damaged; in memory are one record, one block and one sample at a time.

    Raises UserError if the store cannot be used.
    """
    report = ShardReport(split, job)
    try:
        table = read_record(store, split, job)
        meta = json.loads(table.schema.metadata[META])
        report.parts = [dict(part) for part in meta["parts"]]
        wanted, failures = sum(meta["failures"].values()), failure_list(split, job, meta)
    except UserError as error:
        require_usable(store)
        report.add(error.what)
        return report
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        report.add(f"a shard's record is damaged: its metadata cannot be read ({type(error).__name__}: {error})")
        return report
    keys = table["key"].to_pylist()
    report.unreadable = False
    report.samples = len(keys)
    report.key_prefixes = b"".join(key_prefix(key) for key in keys)
    for what in _record_faults(table, meta, report, expected):
        report.add(what)
    for what in _failure_faults(store, report, failures, wanted):
        report.add(what)
    chosen = _keys_to_decode(keys, expected.decode)
    numbers = np.array(table["part"].to_pylist(), np.int64)
    for number, part in enumerate(report.parts):
        rows_of_part = table.filter(pa.array(numbers == number))
        try:
            TarPartCheck(store, report, number, part, rows_of_part, expected, chosen).run()
        except FileNotFoundError:
            report.add(f"the part is missing, with its {rows_of_part.num_rows} samples", number)
        except UserError as error:
            require_usable(store)
            report.add(f"the part cannot be read: {error.what}", number)
    return report


def require_usable(store: Store) -> None:
    """Raise UserError if not one object but the whole store cannot be read."""
    store.list("index/")


def key_prefix(key: str) -> bytes:
    """The first 8 bytes of a sample's key, which is hex; of any other key, of its sha256."""
    try:
        return bytes.fromhex(key)[:8].ljust(8, b"\0")
    except ValueError:
        return hashlib.sha256(key.encode()).digest()[:8]


def _keys_to_decode(keys: list[str], decode: Decode) -> set[str]:
    """The keys of the samples to decode: all, none, or about one in fifty, the same each time and at least one."""
    if decode == "all":
        return set(keys)
    if decode == "none" or not keys:
        return set()
    return {min(keys)} | {key for key in keys if int.from_bytes(key_prefix(key)[:4], "big") % _ONE_IN == 0}


def _record_faults(table: pa.Table, meta: dict[str, Any], report: ShardReport, expected: Expectations) -> Iterator[str]:
    """What in the record contradicts itself, its path or the store."""
    if (meta.get("split"), meta.get("job")) != (report.split, report.job):
        yield f"the record is that of {meta.get('split')}/{meta.get('job')}"
    if expected.settings_digest is not None and meta.get("settings_digest") != expected.settings_digest:
        yield "the record was made with other settings than the store"
    numbers = Counter(table["part"].to_pylist())
    labels: dict[int, Counter[str]] = {}
    for number, of_sample in zip(table["part"].to_pylist(), table["labels"].to_pylist(), strict=True):
        labels.setdefault(number, Counter()).update(str(label) for label in of_sample)
    for number, part in enumerate(report.parts):
        own = part_path(report.split, report.job, number, str(part.get("sha256")))
        if part.get("path") not in (own, f"{report.split}/{report.job}-{number:02d}.tar"):
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


def _failure_faults(store: Store, report: ShardReport, path: str | None, wanted: int) -> Iterator[str]:
    """What is wrong with a shard's failure list at `path`, whose record counts `wanted` failures."""
    if path is None:
        return
    report.failure_list = path
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
    elif path not in (failures_path(report.split, report.job, data), f"{report.split}/{report.job}.failures.jsonl"):
        yield f"{path} is damaged: its content is not what its name says"
