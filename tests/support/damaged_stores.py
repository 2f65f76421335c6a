"""Changes to a store that verification must notice, and what it reported of them."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sharding.format import index, record
from sharding.inspect.verify import Verification
from sharding.make.prepare import prepare
from sharding.make.shard import make_shard
from sharding.media.encoder import KEY_FRAME_EVERY
from sharding.media.flow import FlowEncoder, FlowSettings
from sharding.storage.store import Store
from tests.benchmarks.encoding import decoded
from tests.support.stores import READING, SETTINGS, part_of


def sharded(corpus: Path, store: Store) -> None:
    """Shard a corpus into a store, without an index."""
    for job, root in prepare(str(corpus), store, SETTINGS, READING).remaining_jobs():
        make_shard(job, root, store, SETTINGS)


def rewrite(
    store: Store,
    change: Callable[[list[dict[str, Any]], dict[str, Any]], object],
    shard: tuple[str, str] | None = None,
    to: str | None = None,
    merge: bool = True,
) -> None:
    """A shard's record with changed rows and metadata (under another job's name); the index made anew with `merge`."""
    split, job = shard or chosen(store)
    table = record.read_record(store, split, job)
    rows, meta = table.to_pylist(), record.record_meta(table.schema)
    change(rows, meta)
    store.delete(record.record_path(split, to or job))
    assert record.write_record(store, split, to or job, rows, meta)
    if merge:
        indexed(store)


def indexed(store: Store) -> None:
    """Make the index of a store anew."""
    for path in store.list("index/"):
        store.delete(path)
    index.merge(store)


def repack(store: Store, shard: tuple[str, str], members: Callable[[str, bytes], list[tuple[str, bytes]]]) -> None:
    """A shard's only part with its members replaced, and a record that knows it."""
    path = part_of(store, shard)
    sink = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(store.get(path))) as old, tarfile.open(fileobj=sink, mode="w") as new:
        for member in old:
            file = old.extractfile(member)
            assert file is not None
            for name, data in members(member.name, file.read()):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                new.addfile(info, io.BytesIO(data))
    data = sink.getvalue()
    store.delete(path)
    sha256 = hashlib.sha256(data).hexdigest()
    path = record.part_path(*shard, 0, sha256)
    store.put(path, data)
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        places = {member.name: member for member in tar}

    def change(rows: list[dict[str, Any]], meta: dict[str, Any]) -> None:
        meta["parts"][0] |= {"path": path, "bytes": len(data), "sha256": sha256}
        for row in rows:
            for name, entry in (("mp4", row), ("flow.mp4", row["flow"])):
                member = places.get(f"{row['key']}.{name}")
                if member is not None and entry is not None:
                    payload = data[member.offset_data :][: member.size]
                    place = {"offset": member.offset_data, "size": member.size}
                    entry |= place | {"sha256": hashlib.sha256(payload).hexdigest()}

    rewrite(store, change, shard)


def flow_of(data: bytes) -> dict[str, Any]:
    """The columns of a segment's flow, with its mp4 as data."""
    encoder = FlowEncoder(FlowSettings(), KEY_FRAME_EVERY)
    for number, luma in enumerate(decoded(data)):
        encoder.add(luma, 3600 * number)
    clip = encoder.finish()
    assert clip is not None
    return dict(vars(clip))


def add_flow(store: Store, shard: tuple[str, str]) -> None:
    """Give every sample of a shard its flow."""
    part = store.get(part_of(store, shard))
    flows: dict[str, dict[str, Any]] = {}

    def change(rows: list[dict[str, Any]], meta: dict[str, Any]) -> None:
        for row in rows:
            result = flow_of(part[row["offset"] :][: row["size"]])
            flows[f"{row['key']}.mp4"] = {"data": result.pop("data"), "key": row["key"]}
            row["flow"] = result | {"offset": 0, "size": 0, "sha256": ""}

    rewrite(store, change, shard)

    def members(name: str, data: bytes) -> list[tuple[str, bytes]]:
        if name not in flows:
            return [(name, data)]
        return [(name, data), (f"{flows[name]['key']}.flow.mp4", flows[name]["data"])]

    repack(store, shard, members)


def chosen(store: Store) -> tuple[str, str]:
    """The shard to damage: one of four samples in one part."""
    return next(s for s in record.list_records(store) if record.read_record(store, *s).num_rows == 4)


def rows_of(store: Store) -> list[dict[str, Any]]:
    """The rows of the chosen shard."""
    return list(record.read_record(store, *chosen(store)).to_pylist())


def named(result: Verification, shard: tuple[str, str]) -> set[str]:
    """The keys that are named; nothing else of the store may be."""
    assert {(damage.split, damage.job) for damage in result.damages} <= {shard, ("", "")}, result.damages
    return {damage.key for damage in result.damages if damage.key}


def said(result: Verification) -> str:
    """The damages, one a line."""
    return "\n".join(f"{damage.where}: {damage.what}" for damage in result.damages)


def cut(path: Path, length: int) -> None:
    """Cut a file off after `length` bytes."""
    path.write_bytes(path.read_bytes()[:length])


def flip(path: Path, at: int) -> None:
    """Change the byte of a file at this offset."""
    data = bytearray(path.read_bytes())
    data[at] ^= 0x55
    path.write_bytes(data)
