"""Merges listed rows with their files into videos: each once, in one split only, with all its labels."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from sharding.corpora.entries.labels import LabelEncoder
from sharding.corpora.entries.roots import printable
from sharding.corpora.entries.rows import Refusal, decode_name
from sharding.corpora.entries.splits import ValidationShare

ABSENT, UNKNOWN = -1, -2  # in place of a file's bytes: it does not exist; it exists, its size is not known
_SHOWN = 300  # characters of the labels that a reason shows


def merged_videos(
    rows: Iterable[tuple[Any, ...]],
    encoder: LabelEncoder,
    shares: ValidationShare | None,
    absent: str,
    add_refusal: Callable[[int, Refusal], None],
    place: Callable[[int, int], str],
) -> Iterator[tuple[Any, ...]]:
    """The rows of the table `videos`, from joined rows sorted by source video, with its training rows first.

    `shares` observes the source videos, where a share of them is for validation; `absent`: the reason given for a
    missing video; `add_refusal` takes (list, refusal); `place` gives the text for (list, line).
    """

    def refuse(row: tuple[Any, ...], kind: str, reason: str, name: bytes | None = None) -> None:
        add_refusal(row[8], Refusal(decode_name(name or row[2]), kind, reason, row[9]))

    indices_of = encoder.class_reader()
    source, trained = b"", False
    key: tuple[Any, ...] | None = None  # of the video that the next rows may add labels to
    labels: set[int] = set()
    size: int | None = None
    at = (0, 0)
    for row in rows:
        split = row[1]
        if split == "test":
            refuse(row, "test", "it is of the test split, and there is a validation split")
            continue
        indices, bad = indices_of(row[6])
        if bad:
            shown = ", ".join(bad[:3])[:_SHOWN] + (", …" if len(bad) > 3 else "")
            remain = "; its other labels remain" if indices else ""
            refuse(row, "label_out_of_range", f"there is no class {shown}{remain}")
            if not indices:
                continue
        file = _file_of(row)
        if file is None:
            refuse(row, "missing", absent)
            continue
        uri, start, end, bytes_, copies = file
        if row[0] != source:
            trained = False
        elif split == "val" and trained:
            refuse(row, "leak", "the same video is listed for training: it stays there", uri)
            continue
        if key == (split, uri, start, end):
            added = "with the same labels" if labels.issuperset(indices) else "its labels were added to those"
            refuse(row, "duplicate", f"it is listed before, in {place(*at)}; {added}", uri)
            labels.update(indices)
            continue
        if key is not None:
            yield _video(key, labels, size, at, source if shares is not None else None)
        source, key, labels, size, at = row[0], (split, uri, start, end), set(indices), bytes_, (row[8], row[9])
        trained = trained or split == "train"
        if shares is not None:
            shares.observe(source, size)
        if copies > 1:
            refuse(row, "ambiguous", f"{copies} files have this id; {printable(decode_name(uri))} is taken")
    if key is not None:
        yield _video(key, labels, size, at, source if shares is not None else None)


def identity_digest(uri: bytes, start: float | None, end: float | None) -> bytes:
    """The sort key of a video in its split: half a sha256 of its uri and listed stretch, and of nothing else."""
    # Salted: unsalted, the validation share would lie in one corner of the order.
    stretch = b"" if start is None and end is None else f"\0{start}\0{end}".encode()
    return hashlib.sha256(b"order:" + uri + stretch).digest()[:16]


def _file_of(row: tuple[Any, ...]) -> tuple[bytes, float | None, float | None, int | None, int] | None:
    """(uri, start, end, bytes, number of files with this id) of a row's file; None if it is missing."""
    _, _, key, whole, start, end, _, listed_size, _, _, uri, size, copies, whole_uri, whole_size, whole_copies = row
    if uri is not None:
        # A file of the stretch's own id holds that stretch alone.
        return (uri, start, end, size, copies) if whole is None else (uri, None, None, size, copies)
    if whole_uri is not None:
        return whole_uri, start, end, whole_size, whole_copies
    if listed_size is None or listed_size == ABSENT:
        return None
    return key, start, end, None if listed_size == UNKNOWN else listed_size, 1


def _video(
    key: tuple[Any, ...], labels: set[int], size: int | None, at: tuple[int, int], source: bytes | None
) -> tuple[Any, ...]:
    split, uri, start, end = key
    code = str(*labels) if len(labels) == 1 else ",".join(map(str, sorted(labels)))
    return split, identity_digest(uri, start, end), uri, start, end, code, size, *at, source
