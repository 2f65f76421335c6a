"""The store in a directory: an object is a file, which is whole or does not exist."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from sharding.base.atomic import TEMPORARY, atomic_write
from sharding.base.errors import DamagedStore, UserError
from sharding.base.user_paths import expanded
from sharding.storage.counters import Counters


class LocalStore:
    """A directory. Links to files count as files, links to folders are not followed."""

    remote = False

    def __init__(self, root: str) -> None:
        if not root:
            raise UserError(
                "the store's address is empty", "STORE", "give a directory or a URL like s3://bucket/prefix"
            )
        self.root = expanded(root).absolute()
        self.url = str(self.root)
        self.counters = Counters()
        with self._store_errors("."):
            if self.root.exists() and not self.root.is_dir():
                raise UserError("the store is a file, not a directory", self.url, "give a directory or a URL")

    def get(self, path: str) -> bytes:
        """A whole object."""
        with self._store_errors(path):
            return self._counted((self.root / path).read_bytes())

    def get_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of an object."""
        if end <= start:
            return b""
        try:  # a clip costs one such read: no context manager, path or file object
            handle = os.open(f"{self.url}/{path}", os.O_RDONLY | os.O_CLOEXEC)
            try:
                data = _pread(handle, start, end)
            finally:
                os.close(handle)
        except OSError as error:
            with self._store_errors(path):
                raise error
        return whole(self._counted(data), start, end, lambda: f"{self.url}/{path}")

    def get_tail(self, path: str, size: int) -> tuple[bytes, int]:
        """The last `size` bytes of an object, and how many it has."""
        with self._store_errors(path), (self.root / path).open("rb") as file:
            total = file.seek(0, os.SEEK_END)
            start = max(0, total - max(0, size))
            file.seek(start)
            data = file.read(total - start)
        return whole(self._counted(data), start, total, lambda: f"{self.url}/{path}"), total

    def walk(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """(path, bytes) of all objects whose path begins with `prefix`, in no order."""
        folders = [prefix.rpartition("/")[0]]
        while folders:
            folder = folders.pop()
            with self._store_errors(folder):
                for entry in _entries(self.root / folder):
                    path = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(path)
                    elif path.startswith(prefix) and not entry.name.startswith(TEMPORARY):
                        size = _size(entry)
                        if size is not None:
                            yield path, size

    def list(self, prefix: str = "") -> list[str]:
        """The sorted paths of all objects whose path begins with `prefix`."""
        return sorted(path for path, _ in self.walk(prefix))

    def exists(self, path: str) -> bool:
        """Whether there is an object at this path."""
        with self._store_errors(path):
            return (self.root / path).is_file()

    def size(self, path: str) -> int:
        """Bytes of an object."""
        with self._store_errors(path):
            return (self.root / path).stat().st_size

    def put(self, path: str, data: bytes, create: bool = False) -> None:
        """Put an object; with `create` raises FileExistsError if there is one."""

        def write(temporary: Path) -> None:
            temporary.write_bytes(data)

        self._commit(path, write, create)

    def put_file(self, path: str, local_path: str | os.PathLike[str]) -> None:
        """Put a local file as an object."""
        self._commit(path, lambda temporary: _copy(local_path, temporary), create=False)

    def get_file(self, path: str, local_path: str | os.PathLike[str]) -> None:
        """Download an object to a local file, which appears whole or not at all."""
        with self._store_errors(path), (self.root / path).open("rb") as source, file_to_download(local_path) as file:
            shutil.copyfileobj(source, file, 2**20)

    def delete(self, path: str) -> None:
        """Delete an object, if there is one."""
        with self._store_errors(path):
            (self.root / path).unlink(missing_ok=True)

    def server_time(self) -> float | None:
        """A directory has no clock but this machine's."""
        return None

    def _counted(self, data: bytes) -> bytes:
        self.counters.add(requests=1, bytes=len(data))
        return data

    def _commit(self, path: str, write: Callable[[Path], object], create: bool) -> None:
        """Have `write` write the object's file, whole or not at all; raises as `Store.put`."""
        target = self.root / path
        with self._store_errors(path):
            _make_folder(target.parent)
            with atomic_write(target, create) as temporary:
                write(temporary)

    @contextlib.contextmanager
    def _store_errors(self, path: str) -> Iterator[None]:
        """Inside the `with`, an OSError is a UserError that names the object, but for an absent or a taken one."""
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            remedy = "check the directory's permissions and the disk's free space"
            raise UserError(
                f"the store cannot be used: {error.strerror or error}", f"{self.url}/{path}", remedy
            ) from error


@contextlib.contextmanager
def file_to_download(local_path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """The open file of a download, which has its name once the `with` ends well, and is removed if it does not.

    It is not synced: a download that is lost can be made again. Raises UserError if the disk does not take it.
    """
    target = Path(local_path)
    try:
        with atomic_write(target, durable=False) as temporary, temporary.open("xb") as file:
            yield file
    except OSError as error:
        if error.errno is None:  # not the disk's: the store's word for an absent object
            raise
        remedy = "check the free space and the permissions of this machine's disk"
        what = f"a download cannot be written: {error.strerror or error}"
        raise UserError(what, str(target), remedy) from error


def whole(data: bytes, start: int, end: int, where: Callable[[], str]) -> bytes:
    """`data`, if it is all of the bytes [start, end). Raises DamagedStore, with what `where()` says, otherwise."""
    if len(data) == end - start:
        return data
    what = f"the object ends early: bytes {start} to {end} were asked for, {len(data)} came"
    raise DamagedStore(what, where(), "it is damaged or was replaced: shard into a new STORE")


def _pread(handle: int, start: int, end: int) -> bytes:
    """Bytes [start, end) of an open file, fewer if it ends before."""
    data = os.pread(handle, end - start, start)
    while start + len(data) < end:  # one call reads 2 GiB at most, and a network's file system less if it likes
        more = os.pread(handle, end - start - len(data), start + len(data))
        if not more:
            break
        data += more
    return data


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    """What lies in a folder; nothing if it is absent."""
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        yield from entries


def _size(entry: os.DirEntry[str]) -> int | None:
    """Bytes of the file an entry leads to; None if it leads to no file, or to one that has just gone."""
    try:
        status = entry.stat()
    except FileNotFoundError:
        return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


def _copy(source: str | os.PathLike[str], target: Path) -> None:
    shutil.copyfile(source, target)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # not the caller's "the object is taken"
        raise NotADirectoryError(error.errno, "a file is in the way of a folder", str(folder)) from error
    except FileNotFoundError as error:  # not the caller's "the object is absent", but a place such as /proc
        raise PermissionError(error.errno, "no folder can be made there", str(folder)) from error
