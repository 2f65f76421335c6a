"""A store on any fsspec file system: each operation is tried again until it succeeds or its time is up."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar, cast

import tenacity

from sharding.base.errors import UserError
from sharding.base.redact import redacted
from sharding.storage.counters import Counters
from sharding.storage.error_mapping import (
    ALREADY_EXISTS_CODES,
    BrokenResponse,
    error_code,
    is_transient,
    raise_as_user_error,
)
from sharding.storage.local import file_to_download, whole

T = TypeVar("T")

RETRY_SECONDS = 120.0  # for which an operation is tried again
_LONGEST_PAUSE = 8.0  # seconds between two tries
_CHECKS, CHECK_SECONDS = 6, 5.0  # when a store is opened, so that a wrong address is an error within seconds
_CHUNK = 16 * 2**20


class RemoteStore:
    """A prefix of an fsspec file system, by fsspec's common interface alone."""

    remote = True

    def __init__(self, url: str, connect: Callable[[str, str], Any], retry_seconds: float = RETRY_SECONDS) -> None:
        self.url = url.rstrip("/")
        self.scheme, _, self.root = self.url.partition("://")
        if not self.root:
            raise UserError("the store's address names no bucket", redacted(url), "write it as s3://bucket/prefix")
        self.retry_seconds = retry_seconds
        self.counters = Counters()
        self._connect = connect
        self._lock = threading.Lock()
        self._opened: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_lock", "_opened")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _opened=None)

    def check(self) -> None:
        """Raise UserError if the store does not answer one request within seconds.

        Making the client is this machine's work, and takes none of the store's time.
        """
        quick = tenacity.stop_after_attempt(_CHECKS) | tenacity.stop_after_delay(CHECK_SECONDS)
        try:
            self._make_client()
            _retrying(quick, slowest=1.0)(self._check)
        except Exception as error:
            raise_as_user_error(error, self.url, bucket_level=True)

    def get(self, path: str) -> bytes:
        """The whole object."""
        return self._cat(path)

    def get_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of the object; DamagedStore if it is shorter than `end`."""
        if end <= start:
            return b""
        return whole(self._cat(path, start=start, end=end), start, end, lambda: self._where(path))

    def get_tail(self, path: str, size: int) -> tuple[bytes, int]:
        """The last `size` bytes of the object, and its whole length."""
        total = self.size(path)
        return self.get_range(path, max(0, total - size), total), total

    def walk(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """(relative path, bytes) of all objects whose path begins with `prefix`, in no order."""
        folder = prefix.rpartition("/")[0]

        def find() -> dict[str, Any]:
            fs = self._fs()
            fs.invalidate_cache()
            return cast(dict[str, Any], fs.find(self._full(folder), detail=True))

        base = self._full("").strip("/") + "/"
        for full, info in self._call(folder, find).items():
            path = full.strip("/").removeprefix(base)
            if path.startswith(prefix):
                yield path, int(info["size"] or 0)

    def list(self, prefix: str = "") -> list[str]:
        """Sorted relative paths of all objects whose path begins with `prefix`."""
        return sorted(path for path, _ in self.walk(prefix))

    def exists(self, path: str) -> bool:
        """Whether there is an object at the path."""
        try:
            self.size(path)
        except FileNotFoundError:
            return False
        return True

    def size(self, path: str) -> int:
        """Bytes of the object."""

        def info() -> int:
            fs = self._fs()
            fs.invalidate_cache()
            entry = fs.info(self._full(path))
            if entry["type"] != "file":
                raise FileNotFoundError(path)
            return int(entry["size"])

        return self._call(path, info)

    def put(self, path: str, data: bytes, create: bool = False) -> None:
        """Write the object whole or not at all; with `create`, FileExistsError if the path is taken."""
        tries = 0

        def pipe() -> None:
            nonlocal tries
            tries += 1
            try:
                self._fs().pipe_file(self._full(path), data, mode="create" if create else "overwrite")
            except Exception as error:
                if not create or error_code(error) not in ALREADY_EXISTS_CODES:
                    raise
                # An earlier try whose response was lost may have written it.
                if tries > 1 and self.get(path) == data:
                    return
                raise FileExistsError(self._where(path)) from None

        self._call(path, pipe)

    def put_file(self, path: str, local_path: str | os.PathLike[str]) -> None:
        """Upload a local file whole or not at all."""
        length = Path(local_path).stat().st_size

        def put() -> None:
            self._fs().put_file(os.fspath(local_path), self._full(path))
            self._require_length(path, length)

        self._call(path, put)

    def get_file(self, path: str, local_path: str | os.PathLike[str]) -> None:
        """Download the object to a local file, whole or not at all."""
        total = self.size(path)
        with file_to_download(local_path) as file:
            for start in range(0, total, _CHUNK):
                file.write(self.get_range(path, start, min(start + _CHUNK, total)))

    def delete(self, path: str) -> None:
        """Remove the object, if there is one."""
        with contextlib.suppress(FileNotFoundError):
            self._call(path, lambda: self._fs().rm_file(self._full(path)))

    def server_time(self) -> float | None:
        """The server's clock: fsspec's common interface does not tell it."""
        return None

    def _make_client(self) -> None:
        self._fs()

    def _check(self) -> None:
        self._fs().exists(self._full(""))

    def _cat(self, path: str, **extent: int) -> bytes:
        data = cast(bytes, self._call(path, lambda: self._fs().cat_file(self._full(path), **extent)))
        self.counters.add(bytes=len(data))
        return data

    def _call(self, path: str, action: Callable[[], T]) -> T:
        self.counters.add(requests=1)
        try:
            return action()  # outside tenacity, whose bookkeeping costs as much as a small read
        except Exception as error:
            failed = [error]

        def replayed() -> T:
            if failed:
                raise failed.pop()
            return action()

        # Four tries at least: a server that hangs may eat the whole time with one.
        enough = tenacity.stop_after_delay(self.retry_seconds) & tenacity.stop_after_attempt(4)
        try:
            return _retrying(enough, _LONGEST_PAUSE, self._again)(replayed)
        except Exception as error:
            raise_as_user_error(error, self._where(path))

    def _again(self, _: tenacity.RetryCallState) -> None:
        self.counters.add(requests=1, retries=1)

    def _require_length(self, path: str, length: int) -> None:
        stored = self.size(path)
        if stored != length:
            raise BrokenResponse(f"{length} bytes were written, {stored} are there")

    def _where(self, path: str) -> str:
        return redacted(f"{self.url}/{path}".rstrip("/"))

    def _full(self, path: str) -> str:
        return f"{self.root}/{path}".rstrip("/")

    def _fs(self) -> Any:
        """The file system of this process, opened anew after a fork, which connections do not survive."""
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                if self._opened is not None:
                    _INHERITED.append(self._opened[1])
                self._opened = (os.getpid(), self._connect(self.scheme, self.url))
            return self._opened[1]


_INHERITED: list[Any] = []  # a parent's connections: closing them in a forked child fails loudly


def _retrying(
    stop: Any, slowest: float, again: Callable[[tenacity.RetryCallState], None] | None = None
) -> tenacity.Retrying:
    """A loop over transient errors, with pauses that grow to `slowest` seconds; `again` is called before each retry."""
    return tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_transient),
        stop=stop,
        wait=tenacity.wait_random_exponential(multiplier=0.25, max=slowest),
        before_sleep=again,
        reraise=True,
    )
