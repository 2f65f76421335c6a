"""Finds the file that a listed name means: as it is written, else in another Unicode form, else without blanks."""

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
    """The uri of the file that a name means, and its size: bytes, ABSENT, UNKNOWN, or None where its root is a store.

    `loose`: in a store, the uri in Unicode's composed form and without blanks, to try if there is no object `uri`.
    """

    uri: str
    bytes: int | None
    loose: str | None = None


class FileResolver:
    """Finds files below the roots by the names of lists that are in `encoding` (None: UTF-8)."""

    def __init__(self, roots: Roots, encoding: str | None = None) -> None:
        self.roots = roots
        self._encoding = encoding
        self._decomposed_names = functools.lru_cache(1024)(_decomposed_names)

    def resolve(self, name: str) -> ResolvedFile | None:
        """The file that a listed name means; None where the name lies below none of the roots."""
        bare = name.strip()
        bare_place = self.roots.locate(bare)
        places = [bare_place]
        if name != bare:
            name = name.lstrip() if is_absolute(bare) else name
            places = [self.roots.locate(name), bare_place]
        if bare_place is not None and self.roots.is_remote(bare_place[0]):
            return self._object(name, bare_place)
        for place in places:
            if place is not None and not self.roots.is_remote(place[0]):
                file = self._file(self.roots.places[place[0]], place[1])
                if file is not None:
                    return ResolvedFile(self.roots.uri(place[0], file[0]), file[1])
        missing = None if bare_place is None else ResolvedFile(self.roots.uri(*bare_place), ABSENT)
        return self._in_list_encoding(bare) or missing

    def _object(self, name: str, bare_place: tuple[int, str]) -> ResolvedFile:
        """The object of a store that a name may mean; whether it exists is seen when the store is listed."""
        loose = self.roots.uri(*bare_place)
        exact = self.roots.locate(name)
        uri = loose if exact is None else self.roots.uri(*exact)
        return ResolvedFile(uri, None, None if uri == loose and uri.isascii() else nfc(loose))

    def _in_list_encoding(self, name: str) -> ResolvedFile | None:
        """The file whose name on disk is in the list's own encoding, as on a machine that used it for file names."""
        if self._encoding is None or name.isascii():
            return None
        with contextlib.suppress(UnicodeError):
            spelled = decode_name(name.encode(self._encoding))
            place = self.roots.locate(spelled)
            if place is not None and not self.roots.is_remote(place[0]):
                file = _sized(self.roots.places[place[0]], place[1])
                return None if file is None else ResolvedFile(self.roots.uri(place[0], file[0]), file[1])
        return None

    def _file(self, root: str, path: str) -> tuple[str, int] | None:
        """(path, bytes) of a local file, whose name may be in another Unicode form; None if there is none."""
        if path.isascii():
            return _sized(root, path)
        files = (_sized(root, spelled) for spelled in _forms(path))
        return next(filter(None, files), None) or self._by_folder(root, "", path.split("/"))

    def _by_folder(self, root: str, above: str, parts: list[str]) -> tuple[str, int] | None:
        """As `_file`, where folders and file may be in different Unicode forms."""
        decomposed = self._decomposed_names(f"{root}/{above}").get(nfc(parts[0]), ())
        for name in dict.fromkeys((*_forms(parts[0]), *decomposed)):
            last = len(parts) == 1
            file = _sized(root, above + name) if last else self._by_folder(root, f"{above}{name}/", parts[1:])
            if file is not None:
                return file
        return None


def _sized(root: str, path: str) -> tuple[str, int] | None:
    """(path, bytes) of a local file, bytes UNKNOWN where it may not be looked at; None if there is none."""
    try:
        size = local_file_size(root, path)
    except FileNotFoundError:
        return None
    return path, UNKNOWN if size is None else size


def _forms(path: str) -> tuple[str, str, str]:
    """A path as it is, in Unicode's composed form, and in its decomposed form."""
    return path, nfc(path), unicodedata.normalize("NFD", path)


def _decomposed_names(folder: str) -> dict[str, list[str]]:
    """Composed form → names in a folder that are not in that form."""
    names_by_form: dict[str, list[str]] = {}
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if nfc(entry.name) != entry.name:
                names_by_form.setdefault(nfc(entry.name), []).append(entry.name)
    return {composed: sorted(names) for composed, names in names_by_form.items()}
