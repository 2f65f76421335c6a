"""Selects the videos that a run is evaluated on: of a version of the store's index, by the run's class names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pretrain.data.reading.store_split import DamagedData, Split, open_split
from pretrain.models.weights import first_names
from sharding.base.errors import UserError
from sharding.format.index import current_index, has_version, read_index
from sharding.storage.store import Store

NEWEST = "newest"


@dataclass(frozen=True)
class EvaluatedVideos:
    """A split whose labels are a run's class numbers, the rows that are evaluated, and what to tell about them.

    `left_out`: how many other videos the split has, those of classes that the run does not know.
    """

    split: Split
    rows: list[int]
    left_out: int
    notes: list[str]


def evaluated_videos(
    store: Store, name: str, index: str | None, run_versions: Sequence[str], classes: Sequence[str]
) -> EvaluatedVideos:
    """The videos of the split `name` that have one of a run's `classes`, by the classes' names.

    index: a version of the store's index, or "newest"; where none is given, the one of `run_versions`, which the run
    began with, that the store has, so that a store that has grown is evaluated as the run knew it; else the newest.
    Raises UserError for a store that has no such split or version, or no video of these classes.
    """
    split, notes = _opened(store, name, index, run_versions)
    learned = set(classes)
    strange = {number for number, each in enumerate(split.index.classes) if each not in learned}
    held: Counter[int] = Counter()
    for histogram in split.label_histograms():
        held.update(histogram)
    if not any(count for number, count in held.items() if number not in strange):
        ours = first_names([split.index.classes[number] for number in sorted(held)])
        raise UserError(
            f"no class of the store's '{name}' videos is among the {len(classes)} that the run learned: "
            f"the store has {ours}; the run {first_names(classes)}",
            store.url,
            "evaluate on a store with the run's classes, or fine-tune the run on this one first",
        )
    split.renumber_labels(classes)
    met = sorted(number for number in strange if held[number])
    if not met:
        return EvaluatedVideos(split, list(range(len(split))), 0, notes)
    rows = [row for row in range(len(split)) if _is_known(split, row)]
    left_out = len(split) - len(rows)
    names = first_names([split.index.classes[number] for number in met])
    counted = f"{left_out:,} of {len(split):,} videos are left out" if left_out else "no video is left out for it"
    told = f"the run does not know {len(met)} of the store's classes, {counted}: {names}"
    return EvaluatedVideos(split, rows, left_out, [*notes, told])


def _opened(store: Store, name: str, index: str | None, run_versions: Sequence[str]) -> tuple[Split, list[str]]:
    if index is not None:
        return open_split(store, name, None if index == NEWEST else index), []
    newest = current_index(store).version
    for version in run_versions if newest not in run_versions else ():
        if has_version(store, version) and len(split := Split(store, read_index(store, version), name)):
            told = f"the store has grown since the run began: evaluated is its index {version}, as the run knew it"
            return split, [f"{told} (index={NEWEST} takes {newest})"]
    return open_split(store, name, newest), []


def _is_known(split: Split, row: int) -> bool:
    """Whether a video has a label among the classes; one whose record is damaged counts as one that has."""
    shard, place = split.place(row)
    try:
        return bool(split.rows(shard).labels(place))
    except DamagedData:
        return True
