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
    """A corpus as read: `notes` says in words what was left out."""

    corpus: str
    classes: tuple[str, ...]
    videos: tuple[Video, ...]
    notes: tuple[str, ...]


def read_manifest(corpus: str, validation: float) -> Manifest:
    """The videos of a folder (or fsspec URL) in one of three layouts.

    `CORPUS/{train,val}/class/**/file`, `CORPUS/class/**/file`, or files flat in CORPUS (one class, named
    after the folder). Without a given split, a share `validation` of the videos, by a hash of the uri,
    is for validation. Raises UserError if the corpus is missing, holds no video, or mixes layouts.
    """
    sizes = _files(corpus)
    videos = sorted(uri for uri in sizes if is_video_name(uri))
    if not videos:
        found = f"it holds {len(sizes)} other files" if sizes else "it holds no file"
        remedy = "put videos (mp4, avi, mkv, webm, mov, …) into class folders: CORPUS/class/video.mp4"
        raise UserError(f"no video in the corpus; {found}", corpus, remedy)
    layout, notes = read_layout(videos, PurePosixPath(Path(corpus).absolute().as_posix()).name or "all", corpus)
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


def read_layout(videos: Sequence[str], folder: str, corpus: str) -> tuple[Layout, list[str]]:
    """(uri, class, split or "") of each video, and notes on what was left out."""
    paths = [PurePosixPath(uri).parts for uri in videos]
    tops = {parts[0] for parts in paths if len(parts) > 1}
    split_folders = {top for top in tops if top.lower() in SPLITS}
    # A class may be called "train" (the locomotive) among others: splits only if every folder is one.
    if not split_folders or split_folders != tops:
        return _classes_of([(uri, parts, "") for uri, parts in zip(videos, paths, strict=True)], folder, corpus), []
    loose = [uri for uri, parts in zip(videos, paths, strict=True) if len(parts) == 1]
    if loose:
        raise _stray(loose, "the split folders", corpus)
    given = {SPLITS[top.lower()] for top in split_folders}
    notes, rows = [], []
    for uri, parts in zip(videos, paths, strict=True):
        split = SPLITS[parts[0].lower()]
        if split == "test":
            split = "" if "val" in given else "val"
        if split:
            rows.append((uri, parts[1:], split if given != {"train"} else ""))
    if len(rows) < len(videos):
        notes.append(f"left out {len(videos) - len(rows)} videos in test/, because a validation folder exists")
    return _classes_of(rows, folder, corpus), notes


def assign_splits(given: dict[str, str], validation: float, sizes: dict[str, int]) -> dict[str, str]:
    """uri → "train" or "val". A uri without a given split ("") goes by its hash alone.

    Only where that would leave one side without a video of plausible size, and two such exist, the
    nearest by hash crosses over.
    """
    splits = {uri: split or ("val" if uri_fraction(uri) < validation else "train") for uri, split in given.items()}
    if any(given.values()) or validation <= 0:
        return splits
    plausible = sorted((uri for uri in given if sizes.get(uri, SMALLEST_VIDEO) >= SMALLEST_VIDEO), key=uri_fraction)
    if len(plausible) >= 2:
        count = Counter(splits[uri] for uri in plausible)
        if not count["val"]:
            splits[plausible[0]] = "val"
        elif not count["train"]:
            splits[plausible[-1]] = "train"
    return splits


def uri_fraction(uri: str) -> float:
    """A number in [0, 1) from the uri's sha256: the same on every machine."""
    return int.from_bytes(hashlib.sha256(uri.encode("utf-8", "surrogateescape")).digest()[:6], "big") / 2**48


def _classes_of(rows: Sequence[tuple[str, tuple[str, ...], str]], folder: str, corpus: str) -> Layout:
    flat = [uri for uri, parts, _ in rows if len(parts) == 1]
    if len(flat) == len(rows):
        return [(uri, printable(folder), split) for uri, _, split in rows]
    if flat:
        raise _stray(flat, "the class folders", corpus)
    return [(uri, printable(parts[0]), split) for uri, parts, split in rows]


def _stray(loose: list[str], beside: str, corpus: str) -> UserError:
    remedy = "move them into a class folder, or out of the corpus"
    what = f"{len(loose)} videos lie beside {beside} and so have no class: {_examples(loose)}"
    return UserError(what, corpus, remedy)


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
