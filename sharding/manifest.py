"""A corpus folder → `Video` records: classes from folder names, the split given or taken by a hash."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from sharding.errors import UserError
from sharding.source import local_root
from sharding.store import open_store

EXTENSIONS = frozenset(
    [
        "3g2",
        "3gp",
        "asf",
        "avi",
        "f4v",
        "flv",
        "m2ts",
        "m4v",
        "mkv",
        "mov",
        "mp4",
        "mpeg",
        "mpg",
        "mts",
        "ogg",
        "ogm",
        "ogv",
        "ts",
        "vob",
        "webm",
        "wmv",
    ]
)
SPLITS = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
}
SMALLEST_VIDEO = 1024  # bytes: a smaller file holds no video, so a split must not consist of such files

Layout = list[tuple[str, str, str]]  # (uri, class name, split or "")


@dataclass(frozen=True, slots=True)
class Video:
    """One source video: its posix path relative to the corpus, its class indices, its split."""

    uri: str
    labels: tuple[int, ...]
    split: str


@dataclass(frozen=True)
class Manifest:
    """A corpus as read: `notes` says in words what was left out, and what will be missed."""

    corpus: str
    classes: tuple[str, ...]
    videos: tuple[Video, ...]
    notes: tuple[str, ...]


def read_manifest(corpus: str, validation: float) -> Manifest:
    """The videos of a folder (or fsspec URL) in one of three layouts.

    `CORPUS/{train,val}/class/**/file`, `CORPUS/class/**/file`, or files flat in CORPUS (one class, named
    after the folder). Without a given split, a share `validation` of the videos, by a hash of the uri,
    is for validation. Videos beside class folders are left out. Raises UserError if the corpus is missing or
    holds no video.
    """
    sizes = _files(corpus)
    videos = sorted(uri for uri in sizes if is_video_name(uri))
    if not videos:
        found = f"it holds {len(sizes)} other files" if sizes else "it holds no file"
        remedy = "put videos (mp4, avi, mkv, webm, mov, …) into class folders: CORPUS/class/video.mp4"
        raise UserError(f"no video in the corpus; {found}", corpus, remedy)
    layout, notes = read_layout(videos, PurePosixPath(Path(corpus).absolute().as_posix()).name or "all")
    notes += _remarks(layout)
    ignored = [uri for uri in sizes if not is_video_name(uri)]
    if ignored:
        notes.append(f"ignored {len(ignored)} files that are not videos by their name: {_examples(sorted(ignored))}")
    classes = tuple(sorted({name for _, name, _ in layout}))
    labels = {name: index for index, name in enumerate(classes)}
    splits = assign_splits({uri: split for uri, _, split in layout}, validation, sizes)
    records = tuple(Video(uri, (labels[name],), splits[uri]) for uri, name, _ in layout)
    return Manifest(corpus, classes, records, tuple(notes))


def is_video_name(uri: str) -> bool:
    """Whether a path's name says video: a known extension, no hidden part."""
    path = PurePosixPath(uri)
    return path.suffix[1:].lower() in EXTENSIONS and not any(part.startswith(".") for part in path.parts)


def printable(text: str) -> str:
    """A name with the bytes that are not UTF-8 written as \\udcXX: what is stored and shown of a file's name."""
    return text.encode("utf-8", "backslashreplace").decode()


def read_layout(videos: Sequence[str], folder: str) -> tuple[Layout, list[str]]:
    """(uri, class, split or "") of each video, and notes on what was left out."""
    paths = {uri: PurePosixPath(uri).parts for uri in videos}
    tops = {parts[0] for parts in paths.values() if len(parts) > 1}
    # A class may be called "train" (the locomotive) among others: splits only if every folder is one.
    if tops and all(top.lower() in SPLITS for top in tops):
        rows = [(uri, parts[1:], SPLITS[parts[0].lower()]) for uri, parts in paths.items() if len(parts) > 1]
    else:
        rows = [(uri, parts, "") for uri, parts in paths.items()]
    classed = _classes_of(rows, printable(folder))
    layout, notes = _settle_splits(classed)
    loose = sorted({*videos} - {uri for uri, _, _ in classed})
    if loose:
        told = f"left out {len(loose)} videos that lie beside the class folders and so have no class"
        notes.append(f"{told}: {_examples(loose)}")
    return layout, notes


def assign_splits(given: dict[str, str], validation: float, sizes: dict[str, int]) -> dict[str, str]:
    """uri → "train" or "val". A uri without a given split ("") goes by its hash alone.

    Only where that would leave one side without a video of plausible size, the nearest by hash crosses
    over; of one such video alone, training gets it.
    """
    splits = {uri: split or ("val" if uri_fraction(uri) < validation else "train") for uri, split in given.items()}
    if any(given.values()) or validation <= 0:
        return splits
    plausible = sorted((uri for uri in given if sizes.get(uri, SMALLEST_VIDEO) >= SMALLEST_VIDEO), key=uri_fraction)
    count = Counter(splits[uri] for uri in plausible)
    if len(plausible) >= 2 and not count["val"]:
        splits[plausible[0]] = "val"
    elif plausible and not count["train"]:
        splits[plausible[-1]] = "train"
    return splits


def uri_fraction(uri: str) -> float:
    """A number in [0, 1) from the uri's sha256: the same on every machine."""
    return int.from_bytes(hashlib.sha256(uri.encode("utf-8", "surrogateescape")).digest()[:6], "big") / 2**48


def _classes_of(rows: Sequence[tuple[str, tuple[str, ...], str]], folder: str) -> Layout:
    """Rows with the class that their first folder names; if not one lies in a folder, all are of one class."""
    layout = [(uri, printable(parts[0]), split) for uri, parts, split in rows if len(parts) > 1]
    return layout or [(uri, folder, split) for uri, _, split in rows]


def _settle_splits(layout: Layout) -> tuple[Layout, list[str]]:
    """The layout with test videos as validation, or left out where there is another; "" where a share is taken."""
    given = {split for _, _, split in layout}
    if given <= {"", "train"}:
        return [(uri, name, "") for uri, name, _ in layout], []
    if {"val", "test"} <= given:
        kept = [row for row in layout if row[2] != "test"]
        return kept, [f"left out {len(layout) - len(kept)} videos in test/, because a validation folder exists"]
    return [(uri, name, "val" if split == "test" else split) for uri, name, split in layout], []


def _remarks(layout: Layout) -> list[str]:
    """What of a corpus that can be sharded will be missed later."""
    remarks = []
    classes = {name for _, name, _ in layout}
    if len(classes) == 1:
        remarks.append(
            f"there is one class, {classes.pop()}, so there is nothing to tell apart; "
            "to make classes, sort the videos into folders: CORPUS/class/video.mp4"
        )
    if all(split == "val" for _, _, split in layout):
        remarks.append(
            "there is no video to train on, because every folder is one of validation: the store will serve to "
            "evaluate; to train, add CORPUS/train/class/video.mp4, or give that folder itself as CORPUS"
        )
    return remarks


def _examples(uris: Sequence[str]) -> str:
    return ", ".join(map(printable, uris[:3])) + (", …" if len(uris) > 3 else "")


def _files(corpus: str) -> dict[str, int]:
    """Relative posix path → bytes of every file below `corpus` (no sizes for a remote one)."""
    root = local_root(corpus)
    if root is None:
        return dict.fromkeys(open_store(corpus).list(""), SMALLEST_VIDEO)
    if not root.exists():
        raise UserError("there is no such corpus", corpus, "check the path; it must be a folder of videos")
    if not root.is_dir():
        raise UserError("the corpus is a file, not a folder", corpus, "give the folder that holds the videos")
    try:
        return dict(_walk(root, "", (root.resolve(),)))
    except OSError as error:
        remedy = "give this account the right to read the corpus"
        raise UserError(
            f"the corpus cannot be read: {error.strerror}", str(error.filename or corpus), remedy
        ) from error


def _walk(folder: Path, prefix: str, above: tuple[Path, ...]) -> Iterator[tuple[str, int]]:
    """Follows links, as corpora are often linked together, but never into a folder it is inside of."""
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            uri = prefix + entry.name
            if entry.is_dir():
                below = Path(entry.path).resolve()
                if below not in above:
                    yield from _walk(Path(entry.path), uri + "/", (*above, below))
            elif entry.is_file():
                yield uri, entry.stat().st_size
            elif entry.is_symlink():
                yield uri, 0  # a dangling link: it will be told as a video that cannot be read
