"""Notes for the user on a corpus: what was left out, which classes and splits lack videos, what changed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sharding.corpora.corpus_db import CorpusDatabase
from sharding.corpora.entries.labels import LabelEncoder
from sharding.corpora.entries.roots import sanitised

EXAMPLES = 3
NOTE_OF_KIND = {  # kind of refusal → the note on so many of them
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
PLANNED = ("duplicate", "ambiguous", "changed")  # kinds of refusals whose video is planned all the same


def left_out_notes(database: CorpusDatabase) -> Iterator[str]:
    """One line for each kind of refusal, with its count and examples."""
    left_out = database.refusal_counts()
    for kind, words in NOTE_OF_KIND.items():
        count = left_out.get(kind, 0)
        if count:
            examples = list(database.examples(kind, EXAMPLES))
            if database.from_class_folders:
                words = {
                    "unlabelled": "left out {} videos that lie beside the class folders and so have no class",
                    "test": "left out {} videos in test/, because a validation folder exists",
                }.get(kind, words)
            yield f"{words.format(count)}: {', '.join(examples)}" + (", …" if count > EXAMPLES else "")


def coverage_notes(database: CorpusDatabase, classes: Sequence[str]) -> list[str]:
    """Notes on what the corpus lacks: a second class, videos for training, videos for validation."""
    notes, folders = [], database.from_class_folders
    if len(classes) == 1:
        advice = "to make classes, sort the videos into folders: CORPUS/class/video.mp4"
        only = f"there is one class, {classes[0]}, so there is nothing to tell apart"
        notes.append(f"{only}; {advice}" if folders else only)
    counts = database.video_counts()
    if not counts["train"] and counts["val"]:
        advice = "add CORPUS/train/class/video.mp4, or give that folder itself as CORPUS"
        why = "because every folder is one of validation" if folders else "as none of the training list remains"
        notes.append(
            f"there is no video to train on, {why}: the store will serve to evaluate"
            + (f"; to train, {advice}" if folders else "")
        )
    if not counts["val"] and (database.rows_by_split["val"] or database.rows_by_split["test"]):
        notes.append("there is no video to validate on, as none of the validation list remains")
    return notes


def label_notes(
    database: CorpusDatabase, encoder: LabelEncoder, classes: Sequence[str], separator: str | None
) -> Iterator[str]:
    """Notes on labels that were perhaps meant otherwise: classes without videos, numbers as names, several in one."""
    counts = database.label_counts()

    indices = encoder.listed_classes
    empty = [classes[index] for index in indices if not any(videos[index] for videos in counts.values())]
    if empty and encoder.counts_from_one:
        advice = "if yours count from 1, list them one lower, or list names"
        yield f"labels are indices that count from 0, and the lowest listed is 1: {advice}"
    if empty:
        yield f"{len(empty)} of {len(indices)} classes have no video: {_some(empty)}"
    untrained = [classes[index] for index in indices if counts["val"][index] and not counts["train"][index]]
    if untrained and counts["train"]:
        only = f"{len(untrained)} of {len(indices)} classes have videos in validation alone, none to train on"
        yield f"{only}: {_some(untrained)}"
    names = encoder.names_among_numbers()
    if names:
        yield f"labels are taken as names, not as indices, because not all are whole numbers: {_some(names)}"
    compounds = encoder.compound_labels() if separator is None and encoder.meaning == "either" else []
    if compounds:
        label, mark = compounds[0]
        one = f"labels such as {sanitised(label)!r} are a class each, though they look like several"
        yield f"{one}; to make them several, give labels_separator='{mark}'"


def _some(names: Sequence[str]) -> str:
    """The first few of the names, for a message."""
    return ", ".join(sanitised(name) for name in names[:EXAMPLES]) + (", …" if len(names) > EXAMPLES else "")


def difference(values: Sequence[Any], by_share: bool) -> str:
    """How a video is listed otherwise than it was planned, in words.

    `values`: its labels, split and bytes as listed, each followed by the planned one.
    """
    labels, old_labels, split, old_split, size, old_size = values
    words = []
    if labels != old_labels:
        words.append(f"labels {labels}, planned with {old_labels}")
    if split != old_split and not by_share:
        words.append(f"split {split}, planned for {old_split}")
    if size != old_size and size is not None and old_size is not None:
        words.append(f"{size} bytes, planned with {old_size}")
    return "; ".join(words)
