"""The ids by which published lists name videos, from an address and from a file's path."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection

from sharding.corpora.entries.labels import class_name
from sharding.corpora.entries.roots import EXTENSIONS
from sharding.corpora.entries.rows import IdsOfPath

WATCH = "https://www.youtube.com/watch?v="

_IN_URL = re.compile(r"(?:[?&]v=|youtu\.be/|/(?:embed|shorts|v|live)/)([\w-]+)")
_IN_NAME = re.compile(r"\[([\w-]{11})\]$")
_AT_END = re.compile(r"-([A-Za-z0-9_-]{11})$")


def video_id(text: str) -> str:
    """The id of a video from its YouTube address, or from a file's path: its name without what follows the last dot."""
    if text.startswith(WATCH):
        rest = text[len(WATCH) :]
        return rest if rest.isalnum() else re.split("[&#]", rest, maxsplit=1)[0]
    match = _IN_URL.search(text) if "://" in text else None
    return match.group(1) if match else stem(text)


def stem(path: str) -> str:
    """A file's name without a video's extension."""
    name = path.rpartition("/")[2]
    before, _, extension = name.rpartition(".")
    return before if before and extension.lower() in EXTENSIONS else name


def ids_of_file(path: str) -> tuple[str, ...]:
    """The ids that a list may use for the file at a path: the id in [brackets] that ends its name, else the name.

    A name `Title-ID`, as youtube-dl wrote them, has a second: the eleven characters at its end.
    """
    name = stem(path)
    match = _IN_NAME.search(name) if name.endswith("]") else None
    if match is not None:
        return (match.group(1),)
    match = _AT_END.search(name)
    return (name, match.group(1)) if match is not None else (name,)


def id_in_class(classes: Collection[str], canonical: Callable[[str], str] = str) -> IdsOfPath:
    """A function from a file's path to its id: class folder and name where it lies in one of `classes`, else the name.

    `canonical`: turns a name into the form that lists use.
    """
    folded = {class_name(name).casefold() for name in classes}

    def ids(path: str) -> tuple[str]:
        folder = class_name(path.rpartition("/")[0].rpartition("/")[2]).casefold()
        name = canonical(stem(path))
        return (f"{folder}/{name}" if folder in folded else name,)

    return ids
