"""Summarises a store for people: totals, classes, lengths, failures, generations, settings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from itertools import islice
from typing import Any

from sharding.format.failures import current_failures
from sharding.format.generations import generations
from sharding.format.index import Index, current_index, has_index, length_ranges, require_head
from sharding.format.record import list_records
from sharding.storage.store import Store

_EXAMPLES = 1000  # failures listed one by one


def summary(store: Store) -> dict[str, Any]:
    """A JSON tree of the newest index' content and of the current failures, at most 1,000 of them one by one.

    `label_histogram` is split → class index, as JSON's keys are text → samples.

    Raises UserError if there are no shards. A store without one good sample has zeros.
    """
    head, plans = require_head(store), generations(store)
    index = current_index(store) if has_index(store) else None
    done = frozenset(list_records(store))
    failing = current_failures(store, plans, done)
    splits = {name: asdict(split) for name, split in index.splits.items()} if index else {}
    totals = {
        name: sum(split[name] for split in splits.values())
        for name in ("samples", "videos", "frames", "seconds", "bytes")
    }
    left_out: Counter[str] = Counter()
    for newest in {plan.root: plan for plan in plans if plan.kind == "corpus"}.values():  # it listed the old ones again
        left_out.update(newest.left_out)
    return {
        "store": store.url,
        "index": index.version if index else None,
        **totals,
        "splits": splits,
        "jobs": {"planned": sum(sum(plan.jobs.values()) for plan in plans), "done": len(done)},
        "classes": index.classes if index else head["classes"],
        "label_histogram": _histograms(index) if index else {},
        "lengths": length_ranges(index.lengths) if index else [],
        "concealed": index.concealed if index else {"frames": 0, "samples": 0, "unknown": 0},
        "failures": dict(sorted(Counter(line["kind"] for line in failing.values()).items())),
        "failure_examples": list(islice(failing.values(), _EXAMPLES)),
        "left_out": dict(sorted(left_out.items())),
        "settings": head["settings"],
        "versions": index.versions if index else {},
        "generations": [
            {"number": plan.number, "kind": plan.kind, "videos": sum(plan.videos.values())} for plan in plans
        ],
    }


def length_words(bucket: Mapping[str, Any]) -> str:
    """A bucket of a summary's `lengths` as text: "2 to 5 s"."""
    return f"{bucket['from']:g} s and more" if bucket["to"] is None else f"{bucket['from']:g} to {bucket['to']:g} s"


def concealed_words(concealed: Mapping[str, int], frames: int) -> str:
    """A summary's `concealed` as text, with its share of `frames`; "" where there is none and all was counted."""
    parts = []
    if concealed["frames"]:
        share = 100 * concealed["frames"] / max(frames, 1)
        parts.append(f"{concealed['frames']:,} frames ({share:.2g} %) of {concealed['samples']:,} samples")
    if concealed["unknown"]:
        parts.append(f"not counted in {concealed['unknown']:,} samples, made by an older version")
    return "; ".join(parts)


def _histograms(index: Index) -> dict[str, dict[str, int]]:
    by_split: dict[str, Counter[int]] = {}
    for part in index.parts:
        by_split.setdefault(part.split, Counter()).update(part.label_histogram)
    return {
        split: {str(label): samples for label, samples in sorted(counts.items())}
        for split, counts in sorted(by_split.items())
    }
