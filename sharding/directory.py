"""A store in a directory: whole files under their names, or nothing."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from sharding.errors import UserError
from sharding.rename import rename_new

TEMPORARY = ".tmp-"


class LocalStore:
    """A directory."""

    def __init__(self, root: str) -> None:
        if not root:
            raise UserError(
                "the store's address is empty", "STORE", "give a directory or a URL like s3://bucket/prefix"
            )
        self.root = Path(root).expanduser().absolute()
        self.url = str(self.root)
        if self.root.exists() and not self.root.is_dir():
            raise UserError("the store is a file, not a directory", self.url, "give a directory or a URL")

    def get(self, path: str) -> bytes:
        with self._told(path):
            return (self.root / path).read_bytes()

    def get_range(self, path: str, start: int, end: int) -> bytes:
        with self._told(path), (self.root / path).open("rb") as file:
            file.seek(start)
            data = file.read(end - start)
        return whole(data, start, end, f"{self.url}/{path}")

    def list(self, prefix: str = "") -> list[str]:
        base = self.root / prefix.rpartition("/")[0]
        found = []
        with self._told(prefix):
            for folder, _, names in os.walk(base, onerror=_raise_unless_absent):
                relative = Path(folder).relative_to(self.root)
                found += [(relative / name).as_posix() for name in names if not name.startswith(TEMPORARY)]
        return sorted(path for path in found if path.startswith(prefix))

    def exists(self, path: str) -> bool:
        with self._told(path):
            return (self.root / path).is_file()

    def size(self, path: str) -> int:
        with self._told(path):
            return (self.root / path).stat().st_size

    def put(self, path: str, data: bytes, create: bool = False) -> None:
        def write(temporary: Path) -> None:
            temporary.write_bytes(data)

        self._commit(path, write, create)

    def put_file(self, path: str, local_path: str | os.PathLike[str]) -> None:
        self._commit(path, lambda temporary: _copy(local_path, temporary), create=False)

    def get_file(self, path: str, local_path: str | os.PathLike[str]) -> None:
        with self._told(path):
            shutil.copyfile(self.root / path, local_path)

    def delete(self, path: str) -> None:
        with self._told(path):
            (self.root / path).unlink(missing_ok=True)

    def _commit(self, path: str, write: Callable[[Path], object], create: bool) -> None:
        """Write a temporary file beside the target, sync it, then give it its name in one step."""
        target = self.root / path
        with self._told(path):
            _make_folder(target.parent)
            temporary = target.parent / f"{TEMPORARY}{uuid.uuid4().hex}"
            handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
            try:
                write(temporary)
                os.fsync(handle)
                if create:
                    rename_new(temporary, target)
                else:
                    temporary.replace(target)
            finally:
                os.close(handle)
                temporary.unlink(missing_ok=True)
            _sync_folder(target.parent)

    @contextlib.contextmanager
    def _told(self, path: str) -> Iterator[None]:
        try:
            yield
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError as error:
            remedy = "check the directory's permissions and the disk's free space"
            raise UserError(
                f"the store cannot be used: {error.strerror or error}", f"{self.url}/{path}", remedy
            ) from error


def whole(data: bytes, start: int, end: int, where: str) -> bytes:
    if len(data) == end - start:
        return data
    what = f"the object ends early: bytes {start} to {end} were asked for, {len(data)} came"
    raise UserError(what, where, "it is damaged or was replaced: shard into a new STORE")


def _raise_unless_absent(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _copy(source: str | os.PathLike[str], target: Path) -> None:
    shutil.copyfile(source, target)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:  # not the caller's "the object is taken"
        raise NotADirectoryError(error.errno, "a file is in the way of a folder", str(folder)) from error


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # SMB and some FUSE mounts sync no folders
            raise
    finally:
        os.close(handle)
