"""What is said of a corpus: what was left out of it, what will be missed, how a planned video is listed otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sharding.corpora.corpus_db import CorpusDatabase
from sharding.corpora.entries.labels import LabelEncoder
from sharding.corpora.entries.roots import sanitised

EXAMPLES = 3
REMARKS = {  # kind → what a note says of so many rows
    "missing": "left out {} listed videos that are not there",
    "unlabelled": "left out {} videos that have no label",
    "label_out_of_range": "met {} videos with a label that is no class",
    "malformed": "left out {} lines that cannot be read",
    "outside_roots": "left out {} videos that do not lie below the media's folder or one of the roots",
    "leak": "left out {} validation videos that are listed for training as well",
    "duplicate": "joined {} lines that list a video once more",
    "ambiguous": "met {} videos of which there are several files; the first by name is taken",
    "test": "left out {} videos of the test split, because there is a validation split",
    "unused": "left out {} videos that this fold does not use",
    "changed": "kept {} videos as they were planned, though they are listed otherwise now",
}
PLANNED = ("duplicate", "ambiguous", "changed")  # kinds that do not take a video away


def left_out_notes(gather: CorpusDatabase) -> Iterator[str]:
    """A line for each kind of what was left out, with examples."""
    left_out = gather.refused()
    for kind, words in REMARKS.items():
        count = left_out.get(kind, 0)
        if count:
            examples = list(gather.examples(kind, EXAMPLES))
            if gather.of_folders:
                words = {
                    "unlabelled": "left out {} videos that lie beside the class folders and so have no class",
                    "test": "left out {} videos in test/, because a validation folder exists",
                }.get(kind, words)
            yield f"{words.format(count)}: {', '.join(examples)}" + (", …" if count > EXAMPLES else "")


def coverage_notes(gather: CorpusDatabase, classes: Sequence[str]) -> list[str]:
    """What of a corpus that can be sharded will be missed later."""
    remarks, folders = [], gather.of_folders
    if len(classes) == 1:
        advice = "to make classes, sort the videos into folders: CORPUS/class/video.mp4"
        only = f"there is one class, {classes[0]}, so there is nothing to tell apart"
        remarks.append(f"{only}; {advice}" if folders else only)
    counts = gather.counts()
    if not counts["train"] and counts["val"]:
        advice = "add CORPUS/train/class/video.mp4, or give that folder itself as CORPUS"
        told_why = "because every folder is one of validation" if folders else "as none of the training list remains"
        remarks.append(
            f"there is no video to train on, {told_why}: the store will serve to evaluate"
            + (f"; to train, {advice}" if folders else "")
        )
    if not counts["val"] and (gather.given["val"] or gather.given["test"]):
        remarks.append("there is no video to validate on, as none of the validation list remains")
    return remarks


def label_notes(
    gather: CorpusDatabase, book: LabelEncoder, classes: Sequence[str], separator: str | None
) -> Iterator[str]:
    """What labels make of the classes and nobody may have meant: empty ones, ones without training, several in one."""
    counts = gather.label_counts()
    listed = len(book.listed)
    empty = [classes[index] for index in book.listed if not any(videos[index] for videos in counts.values())]
    if empty and book.from_one:
        advice = "if yours count from 1, list them one lower, or list names"
        yield f"labels are indices that count from 0, and the lowest listed is 1: {advice}"
    if empty:
        yield f"{len(empty)} of {listed} classes have no video: {_some(empty)}"
    untrained = [classes[index] for index in book.listed if counts["val"][index] and not counts["train"][index]]
    if untrained and counts["train"]:
        only = f"{len(untrained)} of {listed} classes have videos in validation alone, none to train on"
        yield f"{only}: {_some(untrained)}"
    odd = book.odd()
    if odd:
        yield f"labels are taken as names, not as indices, because not all are whole numbers: {_some(odd)}"
    compounds = book.compounds() if separator is None and book.meaning == "either" else []
    if compounds:
        label, mark = compounds[0]
        one = f"labels such as {sanitised(label)!r} are a class each, though they look like several"
        yield f"{one}; to make them several, give labels_separator='{mark}'"


def _some(names: Sequence[str]) -> str:
    """The first of several names."""
    return ", ".join(sanitised(name) for name in names[:EXAMPLES]) + (", …" if len(names) > EXAMPLES else "")


def difference(values: Sequence[Any], by_share: bool) -> str:
    """`values`: labels, split and bytes as a video is listed, each followed by what was planned."""
    labels, old_labels, split, old_split, size, old_size = values
    words = []
    if labels != old_labels:
        words.append(f"labels {labels}, planned with {old_labels}")
    if split != old_split and not by_share:
        words.append(f"split {split}, planned for {old_split}")
    if size != old_size and size is not None and old_size is not None:
        words.append(f"{size} bytes, planned with {old_size}")
    return "; ".join(words)
