"""Reads ranges of a bucket's objects by presigned URLs: one signature an object, then little CPU a range."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from sharding.base.errors import UserError
from sharding.base.lru import LRU
from sharding.storage.counters import Counters
from sharding.storage.error_mapping import BrokenResponse, is_retryable_status
from sharding.storage.range_connections import RangeConnections, ResponseHead

GOOD_SECONDS = 3600  # for which a URL is signed
_FRESH_SECONDS = 900.0  # for which it is used: temporary credentials are renewed at least so long before their end
_KEPT = 8192  # URLs, of about 1 kB
_DEFAULT_PORT = {"http": 80, "https": 443}


@dataclass
class PartialRange:
    """Bytes [start, end) of an object, as far as they have come; `object_size` and `etag` are set with the first."""

    path: str
    start: int
    end: int
    pieces: list[bytes] = field(default_factory=list)
    object_size: int = 0
    etag: str = ""

    @property
    def position(self) -> int:
        """The offset in the object of the next missing byte."""
        return self.start + sum(map(len, self.pieces))

    def check_version(self, tag: str, total: int, where: Callable[[], str]) -> None:
        """Note the object's version in a response. Raises UserError if it is not that of the responses before."""
        if self.pieces and (tag, total) != (self.etag, self.object_size):
            raise object_replaced(where())
        self.etag, self.object_size = tag, total


class PresignedReader:
    """Reads ranges of the objects of one bucket, in one process. Safe for threads."""

    def __init__(self, sign: Callable[[str], str], ca_bundle: Callable[[], str | None], counters: Counters) -> None:
        """`sign`: path → URL of a GET, good for GOOD_SECONDS; `ca_bundle`: the user's file of authorities, or None.

        Both are asked when they are needed.
        """
        self._sign, self._ca_bundle, self._counters = sign, ca_bundle, counters
        self._signing = threading.Lock()
        self._urls: LRU[str, tuple[RangeConnections, str, float]] = LRU(_KEPT)
        self._connections: dict[tuple[str, str], RangeConnections] = {}
        self._paused_until = 0.0  # until then nothing is asked for here

    def read(self, body: PartialRange, seconds: float, where: Callable[[], str]) -> bool:
        """Read the missing bytes into `body`; returns False if that cannot be done by presigned URLs.

        Then the caller reads by the S3 client, which does it or raises the right error. Raises BrokenResponse where
        another try may help, UserError if the object is not the one that the first bytes are of.
        """
        if time.monotonic() < self._paused_until:
            return False
        for may_be_cached in (True, False):
            try:
                connections, target, was_cached = self._signed(body.path, may_be_cached)
            except Exception:  # of any of the ways to find credentials and addresses
                return False
            start = body.position
            try:
                head = connections.request(target, start, body.end)
            except ssl.SSLCertVerificationError:
                return False
            if is_retryable_status(head.status):
                raise BrokenResponse(str(head))
            if head.content_range is not None:
                self._receive(connections, body, head, seconds, where)
                return True
            if not was_cached or head.status not in (400, 401, 403):  # else the credentials behind it may have ended
                return False
        return False

    def pause(self) -> None:
        """Have `read` return False for some time: the server refused, and answered the S3 client."""
        self._paused_until = time.monotonic() + _FRESH_SECONDS

    def _receive(
        self,
        connections: RangeConnections,
        body: PartialRange,
        head: ResponseHead,
        seconds: float,
        where: Callable[[], str],
    ) -> None:
        start, end, total = head.content_range or (0, 0, 0)
        if start != body.position or end > body.end:
            connections.disconnect()
            raise BrokenResponse(f"bytes {body.position} to {body.end} were asked for, {start} to {end} announced")
        try:
            body.check_version(head.field(b"etag").decode("latin-1"), total, where)
        except UserError:
            connections.disconnect()
            raise
        before = len(body.pieces)
        try:
            connections.read_body(body.pieces, end - start, seconds)
        finally:
            self._counters.add(bytes=sum(map(len, body.pieces[before:])))
        if end < min(body.end, total):
            raise BrokenResponse(f"bytes {start} to {body.end} were asked for, {end - start} came")

    def _signed(self, path: str, may_be_cached: bool) -> tuple[RangeConnections, str, bool]:
        """(connections, target of the GET, whether the URL comes from the cache) for an object."""
        if may_be_cached and (cached := self._cached(path)):
            return cached
        with self._signing:  # other threads that want the same object wait for its URL
            if may_be_cached and (cached := self._cached(path)):
                return cached
            url = urlsplit(self._sign(path))
            host = str(url.netloc).rpartition("@")[2].removesuffix(f":{_DEFAULT_PORT[url.scheme]}")
            until = time.monotonic() + _FRESH_SECONDS
            if (url.scheme, host) not in self._connections:
                self._connections[url.scheme, host] = self._connect(url.scheme, host)
            connections, target = self._connections[url.scheme, host], f"{url.path}?{url.query}"
            self._urls.put(path, (connections, target, until))
        return connections, target, False

    def _cached(self, path: str) -> tuple[RangeConnections, str, bool] | None:
        entry = self._urls.get(path)
        if entry is None or time.monotonic() >= entry[2]:
            return None
        return entry[0], entry[1], True

    def _connect(self, scheme: str, host: str) -> RangeConnections:
        if scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
            raise BrokenResponse("the way leads through a proxy")
        return RangeConnections(host, _trust(self._ca_bundle()) if scheme == "https" else None)


def object_replaced(where: str) -> UserError:
    """The error for an object whose content changed while it was read in pieces."""
    return UserError("the object was replaced while it was read", where, "run the same command again")


def _trust(ca_bundle: str | None) -> ssl.SSLContext:
    """A context that trusts the authorities in `ca_bundle`, or this machine's and, where installed, certifi's."""
    context = ssl.create_default_context(cafile=ca_bundle)
    if ca_bundle is None:
        with contextlib.suppress(ImportError):
            import certifi

            context.load_verify_locations(cafile=certifi.where())
    return context
