"""The part cache: a bounded folder of whole tar parts on this host's disk, shared by all jobs of the host."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from sharding.base.atomic import TEMPORARY
from sharding.base.errors import UserError
from sharding.base.settings import Settings, unit
from sharding.base.user_paths import expanded
from sharding.storage.store import Store

log = logging.getLogger("reelscale")

_LOCK = ".lock"
_NAME = re.compile(r"[0-9a-f]{64}")
_CHUNK = 8 * 2**20  # of a download, in memory


class PartCacheSettings(Settings):
    """A cache of whole tar parts on a local disk."""

    folder: Annotated[
        Path | None, Field(description="folder of the cache, on a local disk; null: no parts are cached")
    ] = None
    bytes: Annotated[
        int, Field(json_schema_extra=unit("bytes"), ge=0, description="largest size of the cache, in bytes")
    ] = 200 * 10**9


class DamagedPart(Exception):
    """A tar's bytes in the store are not those its index names: the tar and both sums."""


class _DiskError(Exception):
    """This host's disk does not do what a cache needs."""


class PartCache:
    """Complete, verified copies of parts, each a file named by its sha256. Picklable; safe for threads and processes.

    Whoever changes what the folder holds has `.lock` while it does so. A part that is being fetched is a file
    `.tmp-<sha256>` of its final length, locked by its writer: one that can be locked is a dead process' and is
    removed by the next that needs room. What is there and what is being fetched are never above `bytes` together; the
    least recently opened parts go first, and who reads one then reads on.
    """

    def __init__(self, folder: str | os.PathLike[str], bytes: int) -> None:
        """Raises UserError if the folder cannot be made or written."""
        self.folder, self.bytes = expanded(folder).absolute(), bytes
        self._stopped = False
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._locked():
                self._make_room(0)
        except OSError as error:
            what = f"the cache's folder cannot be used: {error.strerror or error}"
            raise UserError(what, str(self.folder), "name a folder on a local disk that can be written") from error

    def open(self, sha256: str, size: int) -> int | None:
        """A descriptor to read the whole part by, the caller's to close; None if it is not here."""
        try:
            handle = os.open(self.folder / sha256, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return None
        if os.fstat(handle).st_size != size:
            os.close(handle)
            self.discard(sha256)
            return None
        with contextlib.suppress(OSError):
            os.utime(handle)  # it was used: it goes last
        return handle

    def fetch(self, store: Store, path: str, sha256: str, size: int) -> bool:
        """Download the part `path` of `size` bytes; whether it is here now.

        It is not when another process is fetching it at this moment, when it does not fit, and when the disk is full
        or broken: then the cache takes nothing more, and says so once. DamagedPart if the store's bytes have not
        this sha256 twice; the store's own errors as they are.
        """
        if not _NAME.fullmatch(sha256):
            raise DamagedPart(f"{path}: the index names no sha256 of it, but {sha256!r}")
        if self._stopped:
            return False
        try:
            handle = self._claimed(sha256, size)
            if handle is None:
                return self._here(sha256, size)
            done = False
            try:
                done = self._download(store, path, handle, sha256, size)
            finally:
                self._release(sha256, handle, done)
        except _DiskError as error:
            self._stopped = True
            log.warning("the cache keeps nothing more: %s; parts are read from the store", error)
        return self._here(sha256, size)

    def discard(self, sha256: str) -> None:
        """Forget a part, whose copy here turned out to be damaged."""
        with contextlib.suppress(OSError):
            (self.folder / sha256).unlink(missing_ok=True)

    def _here(self, sha256: str, size: int) -> bool:
        try:
            return (self.folder / sha256).stat().st_size == size
        except OSError:
            return False

    def _claimed(self, sha256: str, size: int) -> int | None:
        """A file to write the part to, its room reserved; None if it is here, another's or too large."""
        with self._disk_errors(), self._locked():
            if self._here(sha256, size):
                return None
            temporary = self._temporary(sha256)
            handle = _locked_file(temporary)
            if handle is None:
                return None
            fits = False
            try:
                fits = self._make_room(size, but=sha256)
                if fits:
                    os.ftruncate(handle, size)
            finally:
                if not fits:
                    temporary.unlink(missing_ok=True)
                    _let_go(handle)
            return handle if fits else None

    def _download(self, store: Store, path: str, handle: int, sha256: str, size: int) -> bool:
        """Write the whole part; True, or DamagedPart."""
        for _ in range(2):
            total = hashlib.sha256()
            for start in range(0, size, _CHUNK):
                data = store.get_range(path, start, min(start + _CHUNK, size))
                total.update(data)
                with self._disk_errors():
                    _write(handle, data, start)
            if total.hexdigest() == sha256:
                return True
        raise DamagedPart(f"{path}: its sha256 is {total.hexdigest()}, in the index {sha256}")

    def _release(self, sha256: str, handle: int, done: bool) -> None:
        """Give a temporary its name, if it is done, else remove it."""
        temporary = self._temporary(sha256)
        try:
            with self._disk_errors(), self._locked():
                try:
                    if done:  # not synced: what a power failure spoils is noticed by the sums of what is read
                        temporary.replace(self.folder / sha256)
                finally:
                    temporary.unlink(missing_ok=True)
        finally:
            _let_go(handle)

    def _make_room(self, size: int, but: str = "") -> bool:
        """Remove dead processes' temporaries and so many parts that `size` bytes more fit; whether they do.

        The temporary of the part `but` does not count. The folder must be locked.
        """
        parts, busy = [], 0
        for entry in os.scandir(self.folder):
            name = entry.name.removeprefix(TEMPORARY)
            with contextlib.suppress(FileNotFoundError):  # committed or discarded meanwhile
                if not _NAME.fullmatch(name):
                    continue
                if name == entry.name:
                    found = entry.stat()
                    parts.append((found.st_mtime_ns, found.st_size, name))
                elif name != but and not _removed(Path(entry.path)):
                    busy += entry.stat().st_size
        room, total = self.bytes - busy - size, sum(length for _, length, _ in parts)
        if room < 0:
            return False
        for _, length, name in sorted(parts):
            if total <= room:
                break
            (self.folder / name).unlink(missing_ok=True)
            total -= length
        return True

    def _temporary(self, sha256: str) -> Path:
        return self.folder / f"{TEMPORARY}{sha256}"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        handle = os.open(self.folder / _LOCK, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            _let_go(handle)

    @contextlib.contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise _DiskError(f"{error.strerror or error} ({self.folder})") from error


def _locked_file(temporary: Path) -> int | None:
    """A temporary, made if it is absent, that this process has locked; None if another has."""
    handle = os.open(temporary, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except BaseException:
        os.close(handle)
        raise
    return handle


def _removed(temporary: Path) -> bool:
    """Whether a temporary's writer was dead, and it is gone now."""
    handle = _locked_file(temporary)
    if handle is None:
        return False
    temporary.unlink(missing_ok=True)
    _let_go(handle)
    return True


def _let_go(handle: int) -> None:
    """Close a locked file; closing alone keeps it locked for a child that was forked meanwhile."""
    fcntl.flock(handle, fcntl.LOCK_UN)
    os.close(handle)


def _write(handle: int, data: bytes, start: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(handle, view, start)
        view, start = view[written:], start + written
