"""A listed name → the file that it means: as it is written, else in another Unicode form, else without blanks."""

from __future__ import annotations

import contextlib
import functools
import os
import unicodedata
from typing import NamedTuple

from sharding.base.text import nfc
from sharding.corpora.entries.roots import Roots, local_file_size
from sharding.corpora.entries.rows import decode_name
from sharding.corpora.merge import ABSENT, UNKNOWN
from sharding.media.input.source import is_absolute


class ResolvedFile(NamedTuple):
    """The file that a name means: its uri; its bytes, or ABSENT, or UNKNOWN, or None where its root is a store.

    `loose`: there, the uri in the composed form and without blanks, to look for if no object is called `uri`.
    """

    uri: str
    bytes: int | None
    loose: str | None = None


class FileResolver:
    """Finds files below the roots by the names of lists that are in `encoding` (None: UTF-8)."""

    def __init__(self, roots: Roots, encoding: str | None = None) -> None:
        self.roots = roots
        self._encoding = encoding
        self._decomposed = functools.lru_cache(1024)(_decomposed)

    def find(self, name: str) -> ResolvedFile | None:
        """What a name means; None where it lies below none of the roots."""
        bare = name.strip()
        meant = self.roots.place(bare)
        places = [meant]
        if name != bare:
            name = name.lstrip() if is_absolute(bare) else name
            places = [self.roots.place(name), meant]
        if meant is not None and self.roots.is_remote(meant[0]):
            return self._object(name, meant)
        for place in places:
            if place is not None and not self.roots.is_remote(place[0]):
                found = self._file(self.roots.places[place[0]], place[1])
                if found is not None:
                    return ResolvedFile(self.roots.uri(place[0], found[0]), found[1])
        return self._as_bytes(bare) or (None if meant is None else ResolvedFile(self.roots.uri(*meant), ABSENT))

    def _object(self, name: str, meant: tuple[int, str]) -> ResolvedFile:
        loose = self.roots.uri(*meant)
        exact = self.roots.place(name)
        uri = loose if exact is None else self.roots.uri(*exact)
        return ResolvedFile(uri, None, None if uri == loose and uri.isascii() else nfc(loose))

    def _as_bytes(self, name: str) -> ResolvedFile | None:
        """The file whose name is in the list's own encoding, as on the disk of a machine of that time."""
        if self._encoding is None or name.isascii():
            return None
        with contextlib.suppress(UnicodeError):
            spelled = decode_name(name.encode(self._encoding))
            place = self.roots.place(spelled)
            if place is not None and not self.roots.is_remote(place[0]):
                found = _sized(self.roots.places[place[0]], place[1])
                return None if found is None else ResolvedFile(self.roots.uri(place[0], found[0]), found[1])
        return None

    def _file(self, root: str, path: str) -> tuple[str, int] | None:
        """(path, bytes) of a file of this machine, whose name's letters may be composed otherwise."""
        if path.isascii():
            return _sized(root, path)
        found = (_sized(root, spelled) for spelled in _forms(path))
        return next(filter(None, found), None) or self._by_folder(root, "", path.split("/"))

    def _by_folder(self, root: str, above: str, parts: list[str]) -> tuple[str, int] | None:
        """As `_file`, where folders and file are composed differently."""
        for name in dict.fromkeys((*_forms(parts[0]), *self._decomposed(f"{root}/{above}").get(nfc(parts[0]), ()))):
            last = len(parts) == 1
            found = _sized(root, above + name) if last else self._by_folder(root, f"{above}{name}/", parts[1:])
            if found is not None:
                return found
        return None


def _sized(root: str, path: str) -> tuple[str, int] | None:
    """(path, bytes) of a file of this machine; None if there is none."""
    try:
        size = local_file_size(root, path)
    except FileNotFoundError:
        return None
    return path, UNKNOWN if size is None else size


def _forms(path: str) -> tuple[str, str, str]:
    """A path as it is, wholly composed, and wholly decomposed."""
    return path, nfc(path), unicodedata.normalize("NFD", path)


def _decomposed(folder: str) -> dict[str, list[str]]:
    """The names in a folder that are not wholly composed, by their composed form."""
    found: dict[str, list[str]] = {}
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if nfc(entry.name) != entry.name:
                found.setdefault(nfc(entry.name), []).append(entry.name)
    return {composed: sorted(names) for composed, names in found.items()}
