"""Prepares a store for sharding: compares the corpus with its plan, plans new videos, lists the jobs that remain."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from sharding.base.errors import UserError
from sharding.base.settings import differences, digest, validate
from sharding.base.text import WRITER
from sharding.corpora.entries.roots import normalised_root
from sharding.corpora.manifest import CorpusSettings, Manifest, Video, printable, read_manifest
from sharding.format import index
from sharding.format.failures import FailedUnit, Failure, current_failures, retried_units
from sharding.format.generations import (
    Generation,
    add_generation,
    generations,
    planned_jobs,
    planned_videos,
    remaining_videos,
)
from sharding.format.plan import SPLITS, ShardJob, plan
from sharding.format.record import FORMAT, list_records
from sharding.make.shard import ShardSettings
from sharding.storage.store import Store


@dataclass(frozen=True)
class Prepared:
    """A store with its plan: the generations `plans`, the (split, id) of the jobs `done`, `notes` for the user.

    `remaining_videos`: how many videos the remaining jobs have.
    """

    store: Store
    plans: list[Generation]
    done: frozenset[tuple[str, str]]
    remaining_videos: int
    notes: tuple[str, ...]

    @property
    def planned_count(self) -> int:
        """How many jobs are planned, done ones included."""
        return sum(sum(plan.jobs.values()) for plan in self.plans)

    @property
    def remaining_count(self) -> int:
        """How many jobs remain to be done."""
        return sum(shard not in self.done for plan in self.plans for shard in plan.shards)

    def remaining_jobs(self) -> Generator[tuple[ShardJob, str]]:
        """(job, root of its videos) of each job that remains to be done; streamed."""
        for generation in self.plans:
            for job in planned_jobs(self.store, generation, self.done):
                yield job, generation.root


def prepare(corpus: str, store: Store, settings: ShardSettings, reading: CorpusSettings) -> Prepared:
    """Read the corpus, plan those of its videos that no plan of the store has, and list the jobs without a record.

    Videos that are planned stay as they are; new ones become a new generation. Raises UserError if the store was made
    with other settings, or the corpus cannot be read or holds no video.
    """
    head = index.read_head(store)
    if head is not None:
        _require_same(store, head, settings)
    while True:
        plans = generations(store)
        with read_manifest(corpus, reading, plans[-1].classes if plans else None) as manifest:
            if head is None:
                _claim(store, settings, manifest.classes)
            notes: list[str] = []
            compared = _planned(store, manifest, plans, settings, notes)
            if compared is not None:
                _settle_classes(store)
                return _prepared(store, compared, [*manifest.notes, *notes])


def prepare_retry(store: Store, settings: ShardSettings, root: str | None = None) -> Prepared:
    """Plan the videos and segments that failed as jobs of a new generation; existing shards stay as they are.

    `root`: where the files are now, if not where they were. Raises UserError if the store was made with other settings,
    or `root` cannot be used.
    """
    root = normalised_root(root) if root else None
    head = index.require_head(store)
    _require_same(store, head, settings)
    while True:
        plans = generations(store)
        done = frozenset(list_records(store))
        failing = current_failures(store, plans, done)
        tried = 0
        for unit in _pending(store, plans, done):
            failing.pop(unit, None)
            tried += 1
        # A generation has one root: each root with failed videos gets one of its own.
        roots = [plan.root for plan in plans if plan.kind == "corpus"]
        for old_root in dict.fromkeys(roots):
            of_root = [plan for plan in plans if plan.kind == "corpus" and plan.root == old_root]
            failed = list(_failed_videos(store, of_root, failing))
            if not failed:
                continue
            jobs = _retry_jobs(failed, settings, len(plans))
            made = add_generation(store, len(plans), "retry", root or old_root, plans[-1].classes, jobs)
            if made is None:
                break  # another command was faster: begin again with what is left
            plans.append(made)
            tried += len(failed)
        else:
            note = f"{tried} failed videos or segments are tried again"
            if not tried:
                note = "no video failed, so there is none to try again"
            return _prepared(store, _moved(plans, root), [note])


def stored_settings(store: Store) -> ShardSettings:
    """The settings that a store was made with. Raises UserError if there is no store, or another version made it."""
    head, where = index.require_head(store), f"{store.url}/{index.HEAD}"
    try:
        return validate(ShardSettings, head["settings"], where)
    except UserError as error:
        raise UserError(error.what, where, f"{WRITER}, or another STORE") from error


def _planned(
    store: Store, manifest: Manifest, plans: list[Generation], settings: ShardSettings, notes: list[str]
) -> list[Generation] | None:
    """The store's generations, with a new one if the manifest holds new videos.

    None if another command meanwhile numbered classes in another way than the manifest: it must be read again.
    """
    compared: list[Generation] = []
    while True:
        compared += _compared(store, manifest, plans[len(compared) :], notes)
        if not sum(manifest.counts.values()):
            return compared
        jobs = plan(manifest.videos(), manifest.counts, settings.videos_per_shard, len(plans))
        left_out, refusals = dict(manifest.left_out), manifest.refusals()
        made = add_generation(store, len(plans), "corpus", manifest.root, manifest.classes, jobs, left_out, refusals)
        if made is not None:
            if plans:
                notes.append(f"{sum(made.videos.values())} new videos: generation {made.number}")
            return [*compared, made]
        plans = generations(store)
        if plans[-1].classes != manifest.classes:
            return None


def _prepared(store: Store, plans: list[Generation], notes: Iterable[str]) -> Prepared:
    done = frozenset(list_records(store))
    return Prepared(store, plans, done, sum(remaining_videos(store, plan, done) for plan in plans), tuple(notes))


def _compared(store: Store, manifest: Manifest, plans: list[Generation], notes: list[str]) -> list[Generation]:
    """The generations, with the root where their files are now; removes their videos from the manifest."""
    current: list[Generation] = []
    for generation in plans:
        if generation.kind == "retry":  # of videos of a generation before it
            moved = {old.root: new.root for old, new in zip(plans, current, strict=False)}
            current.append(replace(generation, root=moved.get(generation.root, generation.root)))
            continue
        comparison = manifest.remove_planned(planned_videos(store, generation))
        if comparison.gone:
            notes.append(f"{comparison.gone} planned videos are not in this corpus: what was made of them stays")
        # A few videos of another corpus may only have the same names.
        is_same_corpus = comparison.same + comparison.changed > comparison.gone
        current.append(replace(generation, root=manifest.root) if is_same_corpus else generation)
    return current


def _moved(plans: list[Generation], root: str | None) -> list[Generation]:
    return [replace(plan, root=root) for plan in plans] if root else plans


def _claim(store: Store, settings: ShardSettings, classes: tuple[str, ...]) -> None:
    try:
        store.put(index.HEAD, _head(settings, classes), create=True)
    except FileExistsError:
        head = index.read_head(store)
        assert head is not None
        _require_same(store, head, settings)


def _settle_classes(store: Store) -> None:
    """Write the newest plan's classes into the store's head; classes without a planned video get no number."""
    head, classes = index.require_head(store), list(generations(store)[-1].classes)
    if head["classes"] != classes:
        store.put(index.HEAD, _text(head | {"classes": classes}))


def _head(settings: ShardSettings, classes: tuple[str, ...]) -> bytes:
    tree = settings.model_dump(mode="json")
    return _text({"format": FORMAT, "classes": list(classes), "settings": tree, "settings_digest": digest(settings)})


def _text(head: dict[str, Any]) -> bytes:
    return (json.dumps(head, indent=1, ensure_ascii=True) + "\n").encode()


def _require_same(store: Store, head: dict[str, Any], settings: ShardSettings) -> None:
    """Raise UserError with the settings that differ, if the store was made with other ones."""
    differing = differences(head["settings"], settings.model_dump(mode="json"))
    if not differing:
        return
    lines = [f"  {field}: there {json.dumps(old)}, here {json.dumps(new)}" for field, old, new in differing]
    what = "\n".join(["the store was made with other settings:", *lines])
    raise UserError(
        what, f"{store.url}/{index.HEAD}", "give another STORE, or the settings that this one was made with"
    )


def _pending(store: Store, plans: list[Generation], done: frozenset[tuple[str, str]]) -> Iterator[FailedUnit]:
    """The videos and segments that unfinished retries are to try already."""
    for generation in plans:
        if generation.kind == "retry":
            for job in planned_jobs(store, generation, done):
                yield from retried_units(job)


def _failed_videos(
    store: Store, plans: list[Generation], failing: dict[FailedUnit, Failure]
) -> Iterator[tuple[Video, str]]:
    """(video, kind of its failure) in the plans' order; a failed segment is a video with that segment alone."""
    by_video: dict[tuple[str, float | None, float | None], list[tuple[int | None, str]]] = {}
    for (uri, start, end, segment), line in failing.items():
        by_video.setdefault((uri, start, end), []).append((segment, line["kind"]))
    for generation in plans if by_video else ():
        for video in planned_videos(store, generation):
            for segment, kind in by_video.pop((printable(video.uri), video.start, video.end), []):
                yield replace(video, segments=() if segment is None else (segment,)), kind


def _retry_jobs(failed: list[tuple[Video, str]], settings: ShardSettings, generation: int) -> Iterator[ShardJob]:
    """The jobs that try the failed videos again, train before val, divided as `plan` divides videos."""
    kinds = dict(failed)
    ordered = sorted((video for video, _ in failed), key=lambda video: SPLITS.index(video.split))
    counts = Counter(video.split for video in ordered)
    for job in plan(ordered, counts, settings.videos_per_shard, generation):
        yield replace(job, failed=tuple(kinds[video] for video in job.videos))
