"""Opens a source video, local or in a store, and tells whether the machine is to blame if it cannot be read."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import re
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from av.error import FFmpegError

from sharding.base import environment
from sharding.base.errors import UserError
from sharding.base.user_paths import expanded
from sharding.media.input.bad_video import BadVideo
from sharding.media.input.ranged import MEBIBYTE, RangedFile
from sharding.storage.store import Store, open_store

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")  # at the beginning only: an object's key may hold a URL further on
FILE_ERRORS = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)


class SourceFile:
    """The seekable file of `size` bytes that FFmpeg reads.

    The first error in reading it is kept in `error` and the file seems to end there, as FFmpeg would hide the error,
    or ask again and again; `raise_read_error` raises it. `name`: only an extension, by which demuxers may choose.
    """

    def __init__(self, raw: io.FileIO | RangedFile, size: int, name: str, on_read: Callable[[int], None]) -> None:
        self.raw = raw
        self.size = size
        self.name = name
        self.error: BaseException | None = None
        self._on_read = on_read

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes; b"" at the end, and from an error on."""
        if self.error is not None:
            return b""
        try:
            data = self.raw.read(size)
        except BaseException as error:
            self.error = error
            return b""
        self._on_read(len(data))
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Set the position, which it returns."""
        return self.raw.seek(offset, whence)

    def tell(self) -> int:
        """Byte that is read next."""
        return self.raw.tell()


@dataclass
class Source:
    """A video at `uri`: relative to `root` (a folder or a store's URL), an absolute path, or a full URL.

    `bytes_read` (of the file, or fetched from the store) and `frames` (decoded) grow while the video is read.
    Picklable; it holds nothing open outside `opened`.
    """

    root: str
    uri: str
    bytes_read: int = 0
    frames: int = 0

    @property
    def path(self) -> Path | None:
        """The video's local path; None if it is in a remote store."""
        root = local_root(self.uri) if is_absolute(self.uri) else local_root(self.root)
        if root is None:
            return None
        return root if is_absolute(self.uri) else root / self.uri

    @property
    def where(self) -> str:
        """The path or URL of the video, for messages."""
        return self.uri if is_absolute(self.uri) else f"{self.root.rstrip('/')}/{self.uri}"

    @contextlib.contextmanager
    def opened(self, sequential: bool, on_wait: Callable[[], None] | None = None) -> Iterator[SourceFile]:
        """A context manager with the open file.

        `sequential`: it will be read from one end to the other, not in places. `on_wait` is called now and then while
        a store does not answer, which is no fault of the video.

        Raises BadVideo if it is missing or forbidden, UserError if the store cannot be used, OSError if the disk
        does not answer.
        """
        name = f"video{PurePosixPath(self.uri).suffix}"
        path = self.path
        if path is None:
            stored = self._object(sequential, on_wait)
            with contextlib.closing(stored):
                yield SourceFile(stored, stored.size, name, lambda _: None)
            return
        try:
            if not stat.S_ISREG(path.stat().st_mode) and not path.is_dir():
                raise BadVideo("unreadable", "it is no file but a pipe or a device")  # opened, it might never end
            local = io.FileIO(path)
        except FILE_ERRORS as error:
            raise BadVideo("unreadable", "the file cannot be read", str(error.strerror or error)) from error
        with local:
            yield SourceFile(local, os.fstat(local.fileno()).st_size, name, self._count_bytes)

    def _object(self, sequential: bool, on_wait: Callable[[], None] | None) -> RangedFile:
        url, name = (self.root, self.uri) if not is_absolute(self.uri) else _bucket_and_key(self.uri)
        # Large requests, which object stores serve best, for a whole video; small ones where only pieces are wanted.
        sizes = {"block": MEBIBYTE, "cached_blocks": 16}
        if sequential:
            sizes = {"block": 4 * MEBIBYTE, "cached_blocks": 4, "prefetch_blocks": 2}
        store = _store(url, environment.s3_endpoint())
        try:
            return RangedFile(store, name, on_read=self._count_bytes, on_wait=on_wait, **sizes)
        except FileNotFoundError as error:
            raise BadVideo("missing", "the file is not in the store", self.where) from error

    def _count_bytes(self, count: int) -> None:
        self.bytes_read += count


def raise_read_error(file: SourceFile) -> None:
    """Raise the error in reading the file, if there was one, which FFmpeg may have taken for the file's end.

    BadVideo for an object that vanished while it was read.
    """
    if isinstance(file.error, FileNotFoundError):
        raise BadVideo("missing", "the file is no longer there", str(file.error)) from file.error
    if file.error is not None:
        raise file.error


def is_absolute(uri: str) -> bool:
    """Whether a video's uri is an absolute path or a full URL, so that the corpus' root does not matter."""
    return uri.startswith("/") or _SCHEME.match(uri) is not None


def local_root(corpus: str) -> Path | None:
    """The local path that a path or file:// URL means; None for a URL of a remote store."""
    scheme, separator, rest = corpus.partition("://")
    if separator and scheme not in ("file", "local"):
        return None
    return expanded(rest if separator else corpus)


def require_readable(corpus: str, uri: str, error: Exception) -> None:
    """Raise UserError if a video failed because the corpus cannot be read here, and not because of the video.

    A file that is missing, forbidden or a folder is at fault itself, as long as the folder it lies in, or if that is
    gone the next one above it, can be read and holds something.
    """
    source = Source(corpus, uri)
    obstacle = _obstacle(source, error)
    if obstacle is not None:
        remedy = (
            "see that every machine that shards can read the corpus under this path, and that its disk is sound, "
            "or leave the file out; then run the same command again: it goes on where it stopped"
        )
        what = f"the corpus cannot be read here: {obstacle.strerror or obstacle}"
        raise UserError(what, source.where, remedy) from obstacle


@functools.lru_cache(maxsize=16)
def _store(url: str, endpoint: str | None) -> Store:
    """The store at a URL, opened once in this process; `endpoint` only distinguishes servers."""
    return open_store(url, ask=False)


def _bucket_and_key(url: str) -> tuple[str, str]:
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    return f"{scheme}://{bucket}", key


def _obstacle(source: Source, error: Exception) -> OSError | None:
    """The error that keeps this machine from reading the corpus; None if there is none.

    FFmpeg may turn an error of the disk into any other, so the file is read once more without FFmpeg.
    """
    if isinstance(error, OSError) and not isinstance(error, (*FILE_ERRORS, FFmpegError)):
        return error
    path = source.path
    if path is None:
        return None
    root = local_root(source.root)
    folder = path.parent
    while folder != root and not folder.exists() and root in folder.parents:
        folder = folder.parent  # one folder that is gone says nothing of the others
    try:
        with os.scandir(folder) as entries:
            if next(entries, None) is None:
                return FileNotFoundError(f"the folder {folder} is empty")
        if not os.access(folder, os.X_OK):
            return PermissionError(f"the folder {folder} may not be entered")
    except OSError as folder_error:
        return folder_error
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return None
        with path.open("rb") as file:
            while file.read(2**20):
                pass
    except FILE_ERRORS:
        return None
    except OSError as file_error:
        return file_error
    return None
