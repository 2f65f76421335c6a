"""The protocol of an object store, and `open_store`, which opens one by its URL."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Protocol

from sharding.base import environment
from sharding.base.errors import UserError
from sharding.base.redact import redacted, require_no_password
from sharding.storage.counters import Counters
from sharding.storage.fsspec_store import RETRY_SECONDS, RemoteStore
from sharding.storage.local import LocalStore
from sharding.storage.s3 import S3Store


class Store(Protocol):
    """Objects by relative posix path. Picklable; used from many threads; one connection a process.

    Every method raises UserError when the store cannot be used (unreachable, refused, full) and
    FileNotFoundError for a path that is absent. A remote store tries each operation again for its `retry_seconds`;
    what is read or written is whole, or the method raises. `counters`: the requests of this process. `remote`: each
    request takes a round trip, and many at once take no longer than one.
    """

    url: str
    remote: bool
    counters: Counters

    def get(self, path: str) -> bytes:
        """The whole object."""

    def get_range(self, path: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of the object; UserError if it is shorter than `end`."""

    def get_tail(self, path: str, size: int) -> tuple[bytes, int]:
        """The object's last `size` bytes, all of it if it is no longer, and its whole length; one request on S3."""

    def walk(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        """(relative path, bytes) of all objects whose path begins with `prefix`, in no order.

        Streamed, so that a million names take no more memory than a thousand.
        """

    def list(self, prefix: str = "") -> list[str]:
        """Sorted relative paths of all objects whose path begins with `prefix`, recursively."""

    def exists(self, path: str) -> bool:
        """Whether the object is there."""

    def size(self, path: str) -> int:
        """The object's size in bytes."""

    def put(self, path: str, data: bytes, create: bool = False) -> None:
        """Write whole or not at all; with `create`, FileExistsError if the path is taken."""

    def put_file(self, path: str, local_path: str | os.PathLike[str]) -> None:
        """Upload a local file whole or not at all."""

    def get_file(self, path: str, local_path: str | os.PathLike[str]) -> None:
        """Download an object to a local file, whole or not at all, without holding it in memory."""

    def delete(self, path: str) -> None:
        """Remove the object, if it is there."""

    def server_time(self) -> float | None:
        """The store's own clock, in whole seconds since 1970 (UTC); None where it has none, or does not tell it."""


def is_remote(url: str) -> bool:
    """Whether a store lies elsewhere than in a folder that this machine sees."""
    scheme, separator, _ = url.partition("://")
    return bool(separator) and scheme not in ("file", "local")


def open_store(url: str | os.PathLike[str], retry_seconds: float = RETRY_SECONDS, ask: bool = True) -> Store:
    """The store at a directory path, `file://` or fsspec URL (`s3://bucket/prefix`).

    A remote store gets one request, so that a wrong address, bucket or secret is a UserError within seconds; without
    `ask` it does not, for an address that worked before. Later each operation is tried again for `retry_seconds`.
    A directory need not exist yet: the first put makes it. Raises UserError for a URL with a password, too.
    """
    text = os.fspath(url)
    require_no_password(text)
    scheme, separator, rest = text.partition("://")
    if not is_remote(text):
        return LocalStore(rest if separator else text)
    store = (S3Store if scheme == "s3" else RemoteStore)(text, _connect, retry_seconds)
    if ask:
        store.check()
    return store


def _connect(scheme: str, url: str) -> Any:
    import fsspec

    options: dict[str, Any] = {}
    if scheme == "s3":
        options["config_kwargs"] = {
            "connect_timeout": 5,
            "read_timeout": 30,
            "retries": {"mode": "standard", "total_max_attempts": 1},
        }
        endpoint = environment.s3_endpoint()
        if endpoint:
            options["endpoint_url"] = endpoint
    try:
        fs = fsspec.filesystem(scheme, skip_instance_cache=True, use_listings_cache=False, **options)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"no store of the kind {scheme}://: {redacted(str(error))}",
            redacted(url),
            "use a directory or s3://bucket/prefix",
        ) from None
    if scheme == "s3":
        fs.retries = 1  # RemoteStore retries: s3fs' and botocore's own retries would only multiply its tries
    return fs
