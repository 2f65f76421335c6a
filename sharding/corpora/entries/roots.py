"""The roots of a corpus: files below one, whether a listed name lies below one; names and URLs made safe to show."""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import stat
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path

from sharding.base.errors import UserError
from sharding.base.redact import require_no_password
from sharding.base.scratch import scratch
from sharding.base.text import nfc
from sharding.media.input.source import is_absolute, local_root
from sharding.storage.store import Store, open_store

EXTENSIONS = frozenset(
    [
        *("3g2", "3gp", "asf", "avi", "f4v", "flv", "m2ts", "m4v", "mkv", "mov", "mp4"),
        *("mpeg", "mpg", "mts", "ogg", "ogm", "ogv", "ts", "vob", "webm", "wmv"),
    ]
)
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_WEB = ("http", "https", "ftp", "ftps")
_SHARED: ContextVar[dict[str, Store] | None] = ContextVar("_KEPT", default=None)
_SHOWN = 300  # characters of a name, at most, in a message


def is_video_name(uri: str) -> bool:
    """Whether a relative path is named like a video: a known extension, no hidden part.

    A key that goes on with "/" or a URL below its root is not: as a uri it would be read from another place.
    """
    if is_absolute(uri):
        return False
    stem, _, extension = uri.rpartition("/")[2].rpartition(".")
    return bool(stem) and extension.lower() in EXTENSIONS and not uri.startswith(".") and "/." not in uri


def printable(text: str) -> str:
    r"""A file's name as it is stored and shown: bytes that are not UTF-8 are written as \udcXX."""
    return text.encode("utf-8", "backslashreplace").decode()


def sanitised(text: str) -> str:
    """A text that may hold a URL, made safe to show: printable, short, without user, password, query and fragment.

    Everything after the first `scheme://` counts as that URL: rather too little is shown than a secret.
    """
    scheme = _SCHEME.search(text)
    if scheme is None:
        return printable(text[:_SHOWN])
    rest, mark, _ = re.split(r"([?#])", text[scheme.end() :] + "?", maxsplit=1)
    authority = rest.partition("/")[0]
    if "@" in authority or re.fullmatch(r"[^:]*(:\d{1,5})?", authority) is None:
        rest = rest.rpartition("@")[2] if "@" in rest else "…"
    cut = "?…" if mark in text[scheme.end() :] else ""
    return printable(text[: scheme.end()][:_SHOWN] + rest[:_SHOWN] + cut)


@contextlib.contextmanager
def shared_stores() -> Iterator[None]:
    """Open each store once inside the `with`: a data set may have a hundred lists in one."""
    token = _SHARED.set({})
    try:
        yield
    finally:
        _SHARED.reset(token)


def _store(url: str) -> Store:
    stores = _SHARED.get()
    if stores is None:
        return open_store(url)
    if url not in stores:
        stores[url] = open_store(url)
    return stores[url]


def normalised_root(place: str) -> str:
    """A folder or store prefix in the form in which roots are compared: an absolute path, or a URL without last slash.

    Raises UserError for an address on the web, as nothing is downloaded from there, and for one with a password.
    """
    scheme = place.partition("://")[0].lower() if _SCHEME.match(place) else ""
    if scheme in _WEB:
        remedy = "give the folder, or the prefix of a store like s3://bucket/prefix, that holds the files"
        raise UserError("videos are not downloaded from the web", sanitised(place), remedy)
    require_no_password(place)
    root = local_root(place)
    return (
        place.rstrip("/")
        if root is None
        else str(root.absolute() if ".." not in root.parts else Path(os.path.normpath(root.absolute())))
    )


class Roots:
    """The folders and prefixes below which listed files may lie: `base`, for relative names, and `others`."""

    def __init__(self, base: str, others: Sequence[str] = ()) -> None:
        self.places = [normalised_root(place) for place in (base, *others)]
        self._remote = [_SCHEME.match(place) is not None for place in self.places]

    def locate(self, name: str) -> tuple[int, str] | None:
        """(number of the root, path below it) of a listed name; None where it lies below none of the roots."""
        scheme = _SCHEME.match(name)
        if scheme is not None and scheme.group().lower() in ("file://", "local://"):
            name = name[scheme.end() :]
            return self._below("/" + posixpath.normpath(name).lstrip("/"), False) if name.startswith("/") else None
        if scheme is not None:
            return None if ".." in name.split("/") else self._below(name, True)
        if name.startswith("/"):
            return self._below("/" + posixpath.normpath(name).lstrip("/"), False)
        if self._remote[0]:
            while name.startswith("./"):
                name = name[2:].lstrip("/")
            return None if not name or ".." in name.split("/") else (0, name)
        name = posixpath.normpath(name)
        return None if name in (".", "..") or name.startswith("../") else (0, name)

    def uri(self, number: int, path: str) -> str:
        """The uri of a file below a root: relative for the base, absolute for the others."""
        return path if number == 0 else f"{self.places[number].rstrip('/')}/{path}"

    def is_remote(self, number: int) -> bool:
        """Whether a root is in a remote store."""
        return self._remote[number]

    def _below(self, name: str, remote: bool) -> tuple[int, str] | None:
        for number, (place, place_is_remote) in enumerate(zip(self.places, self._remote, strict=True)):
            prefix = place.rstrip("/") + "/"
            spelled = name
            if not name.startswith(prefix):
                spelled, prefix = nfc(name), nfc(prefix)
            if place_is_remote == remote and spelled.startswith(prefix) and len(spelled) > len(prefix):
                below = spelled[len(prefix) :]
                return None if number == 0 and is_absolute(below) else (number, below)  # see is_video_name
        return None


def files_below(root: str) -> Iterator[tuple[str, int | None]]:
    """(relative posix path, bytes where the listing tells them) of every file below a folder or prefix, unsorted.

    Raises UserError where the folder is missing, is a file, or cannot be read.
    """
    folder = local_root(root)
    if folder is None:
        yield from _store(root).walk()
        return
    if not folder.exists():
        raise UserError("there is no such folder", sanitised(root), "check the path; it must be a folder of videos")
    if not folder.is_dir():
        raise UserError("this is a file, not a folder", sanitised(root), "give the folder that holds the videos")
    try:
        yield from _walk(folder, "", (folder.resolve(),))
    except OSError as error:
        where = printable(str(error.filename or root))
        remedy = "give this account the right to read the corpus"
        raise UserError(f"the corpus cannot be read: {error.strerror}", where, remedy) from error


def local_file_size(root: str, path: str) -> int | None:
    """Bytes of a file below a local root; None where it may not be looked at. Raises FileNotFoundError if absent."""
    try:
        status = os.stat(f"{root}/{path}")  # noqa: PTH116 - a Path for each of a million files takes half the time
    except PermissionError:
        return None
    except (OSError, ValueError) as error:  # also a name that is too long, or holds a NUL
        raise FileNotFoundError(path) from error
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(path)
    return status.st_size


def file_or_folder(place: str, what: str = "corpus") -> str:
    """What a place is: "file" or "folder" (also a prefix in a store). Raises UserError if a local path is absent."""
    path = local_root(place)
    if path is not None:
        try:
            if path.is_dir():
                return "folder"
            if path.exists():
                return "file"
        except OSError as error:
            problem = f"the {what} cannot be read: {error.strerror}"
            raise UserError(problem, sanitised(place), "give this account the right to read it") from error
        remedy = "check the path; it must be a folder of videos, or a list of them"
        raise UserError(f"there is no such {what}", sanitised(place), remedy)
    parent, _, name = place.rpartition("/")
    if not name or parent.endswith("/"):
        return "folder"
    try:
        _store(parent).size(name)
    except FileNotFoundError:
        return "folder"
    return "file"


@contextlib.contextmanager
def local_copy(place: str) -> Iterator[Path]:
    """A local path of a file: itself, or, of one in a store, a copy that is deleted when the `with` ends.

    Raises FileNotFoundError if it is not there, UserError if no copy can be made.
    """
    path = local_root(place)
    if path is not None:
        if not path.exists():
            raise FileNotFoundError(place)
        yield path
        return
    parent, _, name = place.rpartition("/")
    with scratch("list") as folder:
        copy = folder / "list"
        _store(parent).get_file(name, copy)
        yield copy


def _walk(folder: Path, prefix: str, above: tuple[Path, ...]) -> Iterator[tuple[str, int]]:
    """(path, bytes) of the files below a folder. Follows links, but never into a folder that it is inside of."""
    with os.scandir(folder) as entries:
        for entry in entries:
            uri = prefix + entry.name
            if entry.is_dir():
                below = Path(entry.path).resolve()
                if below not in above:
                    yield from _walk(Path(entry.path), uri + "/", (*above, below))
            elif entry.is_file():
                yield uri, entry.stat().st_size
            elif entry.is_symlink():
                yield uri, 0  # a dangling link: it will be listed as a video that cannot be read
