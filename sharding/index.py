"""The merged index: an immutable version of what a store holds."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from sharding.errors import UserError
from sharding.record import (
    FORMAT,
    META,
    from_parquet,
    list_records,
    read_failures,
    read_record,
    record_meta,
    to_parquet,
)
from sharding.store import Store

__all__ = [
    "Index",
    "Part",
    "SplitSummary",
    "current_index",
    "inspect",
    "merge",
    "read_failures",
    "read_record",
]

HEAD = "reelscale.json"
INDEX = pa.schema(
    [
        ("split", pa.string()),
        ("job", pa.string()),
        ("part", pa.int32()),
        ("path", pa.string()),
        ("samples", pa.int64()),
        ("bytes", pa.int64()),
        ("sha256", pa.string()),
        ("label_histogram", pa.string()),
    ]
)


@dataclass(frozen=True, slots=True)
class Part:
    """One tar of a shard; `label_histogram` is class index → samples."""

    split: str
    job: str
    part: int
    path: str
    samples: int
    bytes: int
    sha256: str
    label_histogram: dict[int, int]


@dataclass(frozen=True, slots=True)
class SplitSummary:
    """Totals of a split; `shards` counts tar parts."""

    samples: int
    videos: int
    shards: int
    bytes: int


@dataclass(frozen=True)
class Index:
    """An immutable version of what a store holds; `digest` is of its content."""

    version: str
    digest: str
    classes: list[str]
    parts: list[Part]
    splits: dict[str, SplitSummary]
    failures: int
    settings_digest: str


def read_head(store: Store) -> dict[str, Any] | None:
    """STORE/reelscale.json, None if there is none yet."""
    try:
        head = json.loads(store.get(HEAD))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise UserError(f"not JSON: {error}", f"{store.url}/{HEAD}", "use another STORE") from error
    if head.get("format") != FORMAT:
        what = f"the store has format {head.get('format')}; this version reads format {FORMAT}"
        raise UserError(what, f"{store.url}/{HEAD}", "use the version of Reelscale that wrote it, or another STORE")
    return dict(head)


def merge(store: Store) -> Index:
    """All records merged into the current index; a new version is written only if the content changed.

    Raises UserError, with the first reasons, if not one video was good.
    """
    head = require_head(store)
    with ThreadPoolExecutor(8) as pool:
        metas = list(pool.map(lambda shard: _meta_and_parts(store, *shard), list_records(store)))
    parts = [part for _, found in metas for part in found]
    if not parts:
        raise _no_good_video(store)
    splits = {
        split: SplitSummary(
            samples=sum(part.samples for part in parts if part.split == split),
            videos=sum(meta["videos"] for meta, _ in metas if meta["split"] == split),
            shards=sum(1 for part in parts if part.split == split),
            bytes=sum(part.bytes for part in parts if part.split == split),
        )
        for split in sorted({meta["split"] for meta, _ in metas})
    }
    meta = {
        "format": FORMAT,
        "classes": head["classes"],
        "settings_digest": head["settings_digest"],
        "splits": {name: asdict(summary) for name, summary in splits.items()},
        "failures": sum(meta["failures"] for meta, _ in metas),
    }
    rows = [asdict(part) | {"label_histogram": json.dumps(part.label_histogram)} for part in parts]
    digest = _content_digest(meta, rows)
    versions = _versions(store)
    if versions and versions[-1].endswith(digest[:16]):
        return current_index(store)
    number = int(versions[-1].partition("-")[0]) + 1 if versions else 1
    meta |= {"version": f"{number:06d}-{digest[:16]}", "digest": digest}
    schema = INDEX.with_metadata({META: json.dumps(meta, sort_keys=True).encode()})
    store.put(_index_path(meta["version"]), to_parquet(pa.Table.from_pylist(rows, schema=schema)))
    return current_index(store)


def nothing_good(store: Store) -> bool:
    """Whether sharding into the store ended, and not one video was good."""
    head = read_head(store)
    if head is None or _versions(store):
        return False
    failures = 0
    for shard in list_records(store):
        meta = record_meta(read_record(store, *shard))
        if meta["videos"]:
            return False
        failures += meta["failures"]
    return bool(failures == head["videos"])


def current_index(store: Store) -> Index:
    """The newest index of the store; UserError if there is none."""
    require_head(store)
    versions = _versions(store)
    if not versions:
        if nothing_good(store):
            raise _no_good_video(store)
        remedy = "run `reelscale shard CORPUS STORE` until it ends; it goes on where it stopped"
        raise UserError("the store has no index yet: sharding did not finish", store.url, remedy)
    meta, rows = _read_index(store, _index_path(versions[-1]))
    parts = [Part(**{**row, "label_histogram": _histogram(json.loads(row["label_histogram"]))}) for row in rows]
    splits = {name: SplitSummary(**summary) for name, summary in meta["splits"].items()}
    return Index(
        meta["version"],
        meta["digest"],
        meta["classes"],
        parts,
        splits,
        meta["failures"],
        meta["settings_digest"],
    )


def inspect(store: Store) -> dict[str, Any]:
    """What the store holds, JSON-able: totals, a summary a split, classes, failures, settings."""
    index = current_index(store)
    return {
        "store": store.url,
        "index": index.version,
        "samples": sum(summary.samples for summary in index.splits.values()),
        "videos": sum(summary.videos for summary in index.splits.values()),
        "bytes": sum(summary.bytes for summary in index.splits.values()),
        "splits": {name: asdict(summary) for name, summary in index.splits.items()},
        "classes": index.classes,
        "failures": read_failures(store),
        "settings": require_head(store)["settings"],
    }


def require_head(store: Store) -> dict[str, Any]:
    """STORE/reelscale.json; UserError if the store has none."""
    head = read_head(store)
    if head is None:
        remedy = "check the address, or make the store: reelscale shard CORPUS STORE"
        raise UserError("there are no shards here", store.url, remedy)
    return head


def _meta_and_parts(store: Store, split: str, job: str) -> tuple[dict[str, Any], list[Part]]:
    table = read_record(store, split, job)
    meta = record_meta(table)
    labels: dict[int, Counter[int]] = {}
    for part, sample_labels in zip(table["part"].to_pylist(), table["labels"].to_pylist(), strict=True):
        labels.setdefault(part, Counter()).update(sample_labels)
    parts = [
        Part(split, job, number, **part, label_histogram=dict(sorted(labels.get(number, Counter()).items())))
        for number, part in enumerate(meta["parts"])
    ]
    return meta, parts


def _read_index(store: Store, path: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Metadata and rows of an index; UserError if they are not those that were written."""
    try:
        table = from_parquet(store.get(path))
        meta, rows = record_meta(table), table.to_pylist()
        content = {name: value for name, value in meta.items() if name not in ("version", "digest")}
        if _content_digest(content, rows) != meta["digest"] or path != _index_path(meta["version"]):
            raise ValueError("its content is not what its digest says")
    except (ValueError, KeyError, TypeError) as error:
        remedy = "delete it, then run `reelscale shard CORPUS STORE` again, which makes it anew from the shards"
        raise UserError(f"the store's index is damaged: {error}", f"{store.url}/{path}", remedy) from error
    return meta, rows


def _content_digest(meta: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    return hashlib.sha256(json.dumps([meta, rows], sort_keys=True).encode()).hexdigest()


def _index_path(version: str) -> str:
    return f"index/{version}.parquet"


def _versions(store: Store) -> list[str]:
    names = [path.removeprefix("index/").removesuffix(".parquet") for path in store.list("index/")]
    return sorted(name for name in names if name[:6].isdigit())


def _histogram(tree: dict[str, int]) -> dict[int, int]:
    return {int(label): samples for label, samples in tree.items()}


def _no_good_video(store: Store) -> UserError:
    failures = read_failures(store)
    shown = "".join(f"\n  {failure['uri']}: {failure['reason']}" for failure in failures[:5])
    more = f"\n  … and {len(failures) - 5} more" if len(failures) > 5 else ""
    remedy = "shard the corpus first"
    if failures:
        remedy = "mend or replace these videos, then run the same command again: it tries them all anew"
    return UserError(f"no good video in the corpus:{shown}{more}", store.url, remedy)
