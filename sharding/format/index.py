"""Merges all records of a store into its index, and reads it: an immutable, versioned list of the tar parts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pydantic

from sharding.base.errors import UserError
from sharding.base.text import nfc, read_json, require_format
from sharding.format.generations import generations
from sharding.format.record import (
    FORMAT,
    from_parquet,
    list_records,
    map_prefetched,
    read_meta,
    record_meta,
    to_parquet,
    with_meta,
)
from sharding.storage.store import Store

HEAD = "reelscale.json"
NO_SHARDS = "check the address, or make the store: reelscale shard CORPUS STORE"  # a remedy
_VERSION = re.compile(r"index/(\d{6,}-[0-9a-f]{16})\.parquet")
LENGTHS = (0.0, *(digit * 10.0**power for power in range(-1, 5) for digit in (1, 2, 5)))  # bounds of buckets, seconds
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


class _Head(pydantic.BaseModel):
    """The content of a store's head, reelscale.json."""

    model_config = pydantic.ConfigDict(strict=True, extra="allow")

    format: int
    classes: list[str]
    settings: dict[str, Any]
    settings_digest: str


@dataclass(frozen=True, slots=True)
class Part:
    """One tar part of a shard; `histogram_json` is its label histogram as JSON text.

    It stays text, because an index may have tens of thousands of parts with hundreds of classes each.
    """

    split: str
    job: str
    part: int
    path: str
    samples: int
    bytes: int
    sha256: str
    histogram_json: str

    @property
    def label_histogram(self) -> dict[int, int]:
        """Class index → number of samples; parsed anew at each call."""
        return {int(label): samples for label, samples in json.loads(self.histogram_json).items()}


@dataclass(frozen=True, slots=True)
class SplitSummary:
    """Totals of a split: `videos` with at least one sample, `shards` (tar parts), `seconds` of stored video etc."""

    samples: int = 0
    videos: int = 0
    shards: int = 0
    bytes: int = 0
    frames: int = 0
    seconds: float = 0.0


@dataclass(frozen=True)
class Index:
    """One version of a store's index; `digest` is that of its content.

    `failures`: the number of videos and segments without a sample, by kind; `lengths`: the number of samples by
    `length_bucket`; `versions`: of the libraries that made them. `concealed`: "frames" that show concealed damage,
    "samples" that have such frames, and "unknown": samples of older versions, which did not count them.
    """

    version: str
    digest: str
    classes: list[str]
    parts: list[Part]
    splits: dict[str, SplitSummary]
    failures: dict[str, int]
    lengths: dict[str, int]
    versions: dict[str, list[str]]
    settings_digest: str
    concealed: dict[str, int]


def read_head(store: Store) -> dict[str, Any] | None:
    """The content of STORE/reelscale.json; None if there is none. Raises UserError if it is damaged or too new."""
    try:
        data = store.get(HEAD)
    except FileNotFoundError:
        return None
    remedy = f"restore {HEAD}, or use another STORE"
    return read_json(data, _Head, "the store's head", f"{store.url}/{HEAD}", remedy, FORMAT).model_dump()


def require_head(store: Store) -> dict[str, Any]:
    """The content of STORE/reelscale.json. Raises UserError if there is none; else as `read_head`."""
    head = read_head(store)
    if head is None:
        remedy = NO_SHARDS
        raise UserError("there are no shards here", store.url, remedy)
    return head


def merge(store: Store) -> Index | None:
    """Merge all records into the index, and return it; a new version is written only if the content changed.

    Returns None if the shards hold no sample. Reads only the end of each record, whatever its length.
    """
    while True:
        before = _versions(store)
        merged = _merged(store)
        if merged is None:
            return None
        meta, parts = merged
        digest = _content_digest(meta, parts)
        versions = _versions(store)
        if versions != before:
            continue  # another command merged meanwhile, maybe more than this one had seen
        if versions and versions[-1].endswith(digest[:16]):
            return current_index(store)
        number = int(versions[-1].partition("-")[0]) + 1 if versions else 1
        meta |= {"version": f"{number:06d}-{digest[:16]}", "digest": digest}
        table = with_meta(pa.Table.from_pylist(parts, schema=INDEX), meta)
        with contextlib.suppress(FileExistsError):  # another command has merged the same
            store.put(index_path(meta["version"]), to_parquet(table), create=True)
        if [version for version in _versions(store) if version not in versions] == [meta["version"]]:
            return current_index(store)


def _merged(store: Store) -> tuple[dict[str, Any], list[dict[str, Any]]] | None:
    """The metadata and rows of an index of the records in the store; None if they hold no sample."""
    head = require_head(store)
    plans = generations(store)
    parts: list[dict[str, Any]] = []
    total = _RecordTotals()
    with ThreadPoolExecutor(16) as pool:
        for (split, job), meta in map_prefetched(pool, lambda shard: read_meta(store, *shard), list_records(store)):
            total.add(meta)
            parts += [_row(split, job, number, part) for number, part in enumerate(meta["parts"])]
    if not parts:
        return None
    return {
        "format": FORMAT,
        "classes": list(plans[-1].classes) if plans else head["classes"],
        "settings_digest": head["settings_digest"],
        **total.as_meta(),
    }, parts


def current_index(store: Store) -> Index:
    """The newest index of the store. Raises UserError if there is none."""
    require_head(store)
    versions = _versions(store)
    if not versions:
        remedy = "run `reelscale shard CORPUS STORE` until it ends; it goes on where it stopped"
        what = "the store has no index yet: sharding did not finish, or not one video was good"
        raise UserError(what, store.url, remedy)
    return read_index(store, versions[-1])


def has_index(store: Store) -> bool:
    """Whether the store has an index."""
    return bool(_versions(store))


def has_version(store: Store, version: str) -> bool:
    """Whether the store holds this version of the index."""
    return version in _versions(store)


def read_index(store: Store, version: str) -> Index:
    """One version of the index. Raises UserError if it is damaged."""
    meta, rows = _read_index(store, index_path(version))
    parts = [Part(*(row[name] for name in INDEX.names)) for row in rows]
    return Index(
        version=meta["version"],
        digest=meta["digest"],
        classes=[nfc(name) for name in meta["classes"]],
        parts=parts,
        splits={name: SplitSummary(**summary) for name, summary in meta["splits"].items()},
        failures=meta["failures"],
        lengths=meta["lengths"],
        versions=meta["versions"],
        settings_digest=meta["settings_digest"],
        concealed=meta.get("concealed") or _concealed_unknown(meta["splits"]),
    )


def length_bucket(seconds: float) -> str:
    """The bucket that a sample's length belongs to: its lower bound in seconds, one of `LENGTHS`, as text."""
    return f"{max(bound for bound in LENGTHS if bound <= seconds + 1e-6):g}"


def length_ranges(lengths: Mapping[str, int]) -> list[dict[str, Any]]:
    """The buckets as {"from", "to", "samples"}, in seconds, the shortest first; "to" is None for the last, open one."""
    ends = dict(zip(LENGTHS, (*LENGTHS[1:], None), strict=True))
    counts = sorted((float(bucket), samples) for bucket, samples in lengths.items())
    return [{"from": begin, "to": ends[begin], "samples": samples} for begin, samples in counts]


class _RecordTotals:
    """Sums of the records' metadata."""

    def __init__(self) -> None:
        self.splits: dict[str, Counter[str]] = {}
        self.failures: Counter[str] = Counter()
        self.lengths: Counter[str] = Counter()
        self.versions: dict[str, set[str]] = {}
        self.concealed = Counter(frames=0, samples=0, unknown=0)
        self.counted = False  # whether any record says what is concealed

    def add(self, meta: dict[str, Any]) -> None:
        counts = {name: meta[name] for name in ("samples", "videos", "frames", "seconds")}
        counts |= {"shards": len(meta["parts"]), "bytes": sum(part["bytes"] for part in meta["parts"])}
        self.splits.setdefault(meta["split"], Counter()).update(counts)
        self.failures.update(meta["failures"])
        self.failures.subtract(meta["retried"])
        self.lengths.update(meta["lengths"])
        self.counted = self.counted or "concealed" in meta
        self.concealed.update(meta.get("concealed") or {"unknown": meta["samples"]})
        for library, version in meta["versions"].items():
            self.versions.setdefault(library, set()).add(version)

    def as_meta(self) -> dict[str, Any]:
        return {
            "splits": {name: asdict(SplitSummary(**counts)) for name, counts in sorted(self.splits.items())},
            "failures": {kind: count for kind, count in sorted(self.failures.items()) if count > 0},
            "lengths": dict(sorted(self.lengths.items(), key=lambda item: float(item[0]))),
            "versions": {library: sorted(versions) for library, versions in sorted(self.versions.items())},
        } | ({"concealed": dict(self.concealed)} if self.counted else {})


def _concealed_unknown(splits: Mapping[str, Mapping[str, Any]]) -> dict[str, int]:
    """`Index.concealed` for an index of an older version, which does not count it."""
    return {"frames": 0, "samples": 0, "unknown": sum(split["samples"] for split in splits.values())}


def _row(split: str, job: str, number: int, part: dict[str, Any]) -> dict[str, Any]:
    histogram = json.dumps(part["label_histogram"], sort_keys=True)
    return {"split": split, "job": job, "part": number} | part | {"label_histogram": histogram}


def _read_index(store: Store, path: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The metadata and rows of an index. Raises UserError if it is missing, damaged or of another format."""
    try:
        table = from_parquet(store.get(path))
        meta, rows = record_meta(table.schema), table.to_pylist()
        require_format(meta.get("format"), FORMAT, "the store's index", f"{store.url}/{path}")
        content = {name: value for name, value in meta.items() if name not in ("version", "digest")}
        if _content_digest(content, rows) != meta["digest"] or path != index_path(meta["version"]):
            raise ValueError("its content is not what its digest says")
    except (ValueError, KeyError, TypeError) as error:
        remedy = "delete it, then run `reelscale shard CORPUS STORE` again, which makes it anew from the shards"
        raise UserError(f"the store's index is damaged: {error}", f"{store.url}/{path}", remedy) from error
    except FileNotFoundError:
        remedy = "check the version; `reelscale shards inspect STORE` names the newest"
        raise UserError("there is no such version of the index", f"{store.url}/{path}", remedy) from None
    return meta, rows


def _content_digest(meta: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """sha256 of `json.dumps([meta, rows], sort_keys=True)`, computed a row at a time."""
    sha256 = hashlib.sha256(f"[{json.dumps(meta, sort_keys=True)}, [".encode())
    for number, row in enumerate(rows):
        sha256.update((", " if number else "").encode() + json.dumps(row, sort_keys=True).encode())
    sha256.update(b"]]")
    return sha256.hexdigest()


def index_path(version: str) -> str:
    """The path in the store of a version of its index."""
    return f"index/{version}.parquet"


def _versions(store: Store) -> list[str]:
    matches = (_VERSION.fullmatch(path) for path in store.list("index/"))
    return sorted(match[1] for match in matches if match)
