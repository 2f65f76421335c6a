"""An object store by URL: put atomically or only if absent, get a range, list, retry."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from typing import Any, Protocol, TypeVar, cast

import tenacity

from sharding.directory import LocalStore, whole
from sharding.errors import UserError

T = TypeVar("T")


class Store(Protocol):
    """Objects by relative posix path. Picklable; used from many threads; one connection a process.

    Every method raises UserError when the store cannot be used (unreachable, refused, full) and
    FileNotFoundError for a path that is absent.
    """

    url: str

    def get(self, path: str) -> bytes:
        """The whole object."""

    def get_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of the object; UserError if it is shorter than `end`."""

    def list(self, prefix: str = "") -> list[str]:
        """Sorted relative paths of all objects whose path begins with `prefix`, recursively."""

    def exists(self, path: str) -> bool:
        """Whether the object is there."""

    def size(self, path: str) -> int:
        """Its bytes."""

    def put(self, path: str, data: bytes, create: bool = False) -> None:
        """Write whole or not at all; with `create`, FileExistsError if the path is taken."""

    def put_file(self, path: str, local_path: str | os.PathLike[str]) -> None:
        """Upload a local file whole or not at all."""

    def get_file(self, path: str, local_path: str | os.PathLike[str]) -> None:
        """Download an object to a local file, without holding it in memory."""

    def delete(self, path: str) -> None:
        """Remove the object, if it is there."""


def open_store(url: str | os.PathLike[str]) -> Store:
    """The store at a directory path, `file://` or fsspec URL (`s3://bucket/prefix`).

    A remote store is asked once, so that a wrong address, bucket or secret is a UserError here, in
    seconds. A directory need not exist yet: the first put makes it.
    """
    text = os.fspath(url)
    scheme, separator, rest = text.partition("://")
    if not separator or scheme in ("file", "local"):
        return LocalStore(rest if separator else text)
    store = RemoteStore(text)
    store.check()
    return store


class RemoteStore:
    """A prefix of an fsspec file system; s3 is the one that is tested, others need their fsspec package."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.scheme, _, self.root = self.url.partition("://")
        if not self.root:
            raise UserError("the store's address names no bucket", url, "write it as s3://bucket/prefix")
        self._lock = threading.Lock()
        self._opened: tuple[int, Any] | None = None

    def __getstate__(self) -> dict[str, str]:
        return {"url": self.url, "scheme": self.scheme, "root": self.root}

    def __setstate__(self, state: dict[str, str]) -> None:
        self.__dict__.update(state, _lock=threading.Lock(), _opened=None)

    def check(self) -> None:
        """One listing of one name, tried once: UserError if the store does not answer it."""
        try:
            fs = self._fs()
            if self.scheme == "s3":
                bucket, _, key = self.root.partition("/")
                fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=key, MaxKeys=1)
        except Exception as error:
            self._translate(error, "", bucket_level=True)

    def get(self, path: str) -> bytes:
        whole = {"max_concurrency": 1} if self.scheme == "s3" else {}  # without it s3fs asks the size first
        return cast(bytes, self._call(path, lambda fs, full: fs.cat_file(full, **whole)))

    def get_range(self, path: str, start: int, end: int) -> bytes:
        if end <= start:
            return b""
        data = self._call(path, lambda fs, full: fs.cat_file(full, start=start, end=end))
        return whole(cast(bytes, data), start, end, f"{self.url}/{path}")

    def list(self, prefix: str = "") -> list[str]:
        folder, _, start = prefix.rpartition("/")

        def find(fs: Any, full: str) -> list[str]:
            fs.invalidate_cache()
            return list(fs.find(full, prefix=start)) if self.scheme == "s3" else list(fs.find(full))

        base = self.root.strip("/") + "/"
        found = [full.strip("/").removeprefix(base) for full in self._call(folder, find)]
        return sorted(path for path in found if path.startswith(prefix))

    def exists(self, path: str) -> bool:
        try:
            self.size(path)
        except FileNotFoundError:
            return False
        return True

    def size(self, path: str) -> int:
        def info(fs: Any, full: str) -> int:
            fs.invalidate_cache()
            found = fs.info(full)
            if found["type"] != "file":
                raise FileNotFoundError(full)
            return int(found["size"])

        return self._call(path, info)

    def put(self, path: str, data: bytes, create: bool = False) -> None:
        mode = "create" if create else "overwrite"
        tries = 0

        def pipe(fs: Any, full: str) -> None:
            nonlocal tries
            tries += 1
            try:
                fs.pipe_file(full, data, mode=mode)
            except Exception as error:
                if not create or _error_code(error) not in _TAKEN:
                    raise
                # A try that was lost on its way back may have written it.
                if tries > 1 and self.get(path) == data:
                    return
                raise FileExistsError(f"{self.url}/{path}") from error

        self._call(path, pipe)

    def put_file(self, path: str, local_path: str | os.PathLike[str]) -> None:
        # s3fs aborts its multipart upload on any failure; the sizes bound its memory at 64 MiB.
        sizes = {"chunksize": 32 * 2**20, "max_concurrency": 2} if self.scheme == "s3" else {}
        self._call(path, lambda fs, full: fs.put_file(os.fspath(local_path), full, **sizes))

    def get_file(self, path: str, local_path: str | os.PathLike[str]) -> None:
        self._call(path, lambda fs, full: fs.get_file(full, os.fspath(local_path)))

    def delete(self, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._call(path, lambda fs, full: fs.rm_file(full))

    def _call(self, path: str, action: Callable[[Any, str], T]) -> T:
        full = f"{self.root}/{path}".rstrip("/")
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(_is_transient),
            stop=tenacity.stop_after_attempt(4),
            wait=tenacity.wait_random_exponential(multiplier=0.3, max=8),
            reraise=True,
        )
        try:
            return retrying(lambda: action(self._fs(), full))
        except Exception as error:
            return self._translate(error, path)

    def _fs(self) -> Any:
        """This process's file system: connections do not survive a fork."""
        with self._lock:
            if self._opened is None or self._opened[0] != os.getpid():
                if self._opened is not None:
                    _INHERITED.append(self._opened[1])
                self._opened = (os.getpid(), _connect(self.scheme, self.url))
            return self._opened[1]

    def _translate(self, error: Exception, path: str, bucket_level: bool = False) -> Any:
        """Raise `error` as what the caller should see."""
        where = f"{self.url}/{path}".rstrip("/")
        code = _error_code(error)
        if isinstance(error, UserError | FileExistsError):
            raise error
        if code == "NoSuchBucket" or (bucket_level and isinstance(error, FileNotFoundError)):
            raise UserError("there is no such bucket", where, "create the bucket, or correct its name") from error
        if isinstance(error, FileNotFoundError):
            raise FileNotFoundError(where) from error
        if isinstance(error, PermissionError) or type(error).__name__ in (
            "NoCredentialsError",
            "PartialCredentialsError",
        ):
            remedy = "check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY (or the profile) and the bucket's policy"
            raise UserError(f"the store refused the credentials: {error}", where, remedy) from error
        if not isinstance(error, OSError) and not _is_transient(error) and not _is_boto(error):
            raise error
        remedy = "check the address (AWS_ENDPOINT_URL for S3), the network, and that the service is up"
        raise UserError(f"the store does not answer: {str(error) or type(error).__name__}", where, remedy) from error


_INHERITED: list[Any] = []  # a parent's connections: closing them in a forked child fails loudly
_TAKEN = ("PreconditionFailed", "412", "ConditionalRequestConflict", "FileExistsError")


def _connect(scheme: str, url: str) -> Any:
    import fsspec

    options: dict[str, Any] = {}
    if scheme == "s3":
        options["config_kwargs"] = {
            "connect_timeout": 3,
            "read_timeout": 30,
            "retries": {"mode": "standard", "max_attempts": 3},
        }
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        if endpoint:
            options["endpoint_url"] = endpoint
    try:
        fs = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False, **options)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"no store of the kind {scheme}://: {error}", url, "use a directory or s3://bucket/prefix"
        ) from error
    if scheme == "s3":
        fs.retries = 1  # botocore retries a request, tenacity an operation; a third layer only multiplies
    return fs


def _error_code(error: BaseException) -> str:
    """The S3 error code behind an exception, else its type's name."""
    response = getattr(error.__cause__, "response", None) or getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", ""))
    return type(error).__name__


def _is_boto(error: BaseException) -> bool:
    return any(kind.__module__.startswith(("botocore", "aiobotocore", "aiohttp")) for kind in type(error).__mro__)


def _is_transient(error: BaseException) -> bool:
    """Whether trying again may help: no answer, a broken answer, or a server's 5xx, 409 and 429."""
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError | IsADirectoryError):
        return False
    response = getattr(error.__cause__, "response", None) or getattr(error, "response", None)
    if isinstance(response, dict):
        status = int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500))
        return status >= 500 or status in (408, 409, 429)
    if _is_boto(error):
        return "Credential" not in type(error).__name__ and "Validation" not in type(error).__name__
    return isinstance(error, OSError | TimeoutError)
