"""Ranges of a bucket's objects by presigned URLs: signed once an object, then asked for with little work a range."""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
import urllib.request
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from sharding.base.errors import UserError
from sharding.storage.counters import Counters
from sharding.storage.error_mapping import BrokenResponse, is_retryable_status
from sharding.storage.range_connections import RangeConnections, ResponseHead

GOOD_SECONDS = 3600  # for which a URL is signed
_FRESH_SECONDS = 900.0  # for which it is used: temporary credentials are renewed at least so long before their end
_KEPT = 8192  # URLs, of about 1 kB
_DEFAULT_PORT = {"http": 80, "https": 443}


@dataclass
class PartialRange:
    """Bytes [start, end) of an object as far as they came: `total` and `tag` are known when the first did."""

    path: str
    start: int
    end: int
    pieces: list[bytes] = field(default_factory=list)
    total: int = 0
    tag: str = ""

    @property
    def position(self) -> int:
        """Where the next byte belongs."""
        return self.start + sum(map(len, self.pieces))

    def belongs(self, tag: str, total: int, where: Callable[[], str]) -> None:
        """Take an answer's word for what the object is; UserError if an answer before said otherwise."""
        if self.pieces and (tag, total) != (self.tag, self.total):
            raise replaced(where())
        self.tag, self.total = tag, total


class PresignedReader:
    """The objects of one bucket, for one process. Safe for threads."""

    def __init__(self, sign: Callable[[str], str], bundle: Callable[[], str | None], counters: Counters) -> None:
        """`sign`: path → URL of a GET, good for GOOD_SECONDS; `bundle`: the file of trusted authorities, if not ours.

        Both are asked when they are needed.
        """
        self._sign, self._bundle, self._counters = sign, bundle, counters
        self._lock, self._signing = threading.Lock(), threading.Lock()
        self._urls: OrderedDict[str, tuple[RangeConnections, str, float]] = OrderedDict()
        self._wires: dict[tuple[str, str], RangeConnections] = {}
        self._resting = 0.0  # until then nothing is asked for here

    def read(self, body: PartialRange, seconds: float, where: Callable[[], str]) -> bool:
        """Whether the server gives the missing bytes here: then they are in `body`, or BrokenResponse: ask again.

        If not, for whatever reason, the caller's other way will do it or will tell why it cannot be done. UserError
        if the object is another one than it was for the bytes that came.
        """
        if time.monotonic() < self._resting:
            return False
        for known in (True, False):
            try:
                wire, target, was_known = self._place(body.path, known)
            except Exception:  # of any of the ways to find credentials and addresses
                return False
            start = body.position
            try:
                head = wire.ask(target, start, body.end)
            except ssl.SSLCertVerificationError:
                return False
            if is_retryable_status(head.status):
                raise BrokenResponse(str(head))
            if head.extent is not None:
                self._take(wire, body, head, seconds, where)
                return True
            if not was_known or head.status not in (400, 401, 403):  # else the credentials behind it may have ended
                return False
        return False

    def rest(self) -> None:
        """Ask for nothing here for some time: it was refused, and the other way was not."""
        self._resting = time.monotonic() + _FRESH_SECONDS

    def _take(
        self, wire: RangeConnections, body: PartialRange, head: ResponseHead, seconds: float, where: Callable[[], str]
    ) -> None:
        start, end, total = head.extent or (0, 0, 0)
        if start != body.position or end > body.end:
            wire.drop()
            raise BrokenResponse(f"bytes {body.position} to {body.end} were asked for, {start} to {end} announced")
        try:
            body.belongs(head.field(b"etag").decode("latin-1"), total, where)
        except UserError:
            wire.drop()
            raise
        before = len(body.pieces)
        try:
            wire.body(body.pieces, end - start, seconds)
        finally:
            self._counters.add(bytes=sum(map(len, body.pieces[before:])))
        if end < min(body.end, total):
            raise BrokenResponse(f"bytes {start} to {body.end} were asked for, {end - start} came")

    def _place(self, path: str, known: bool) -> tuple[RangeConnections, str, bool]:
        """Where an object is to be had: (connections, target of the GET, whether its URL was signed earlier)."""
        if known and (found := self._known(path)):
            return found
        with self._signing:  # others that want the same object wait for its URL
            if known and (found := self._known(path)):
                return found
            url = urlsplit(self._sign(path))
            host = str(url.netloc).rpartition("@")[2].removesuffix(f":{_DEFAULT_PORT[url.scheme]}")
            until = time.monotonic() + _FRESH_SECONDS
            if (url.scheme, host) not in self._wires:
                self._wires[url.scheme, host] = self._wire(url.scheme, host)
            wire, target = self._wires[url.scheme, host], f"{url.path}?{url.query}"
            with self._lock:
                self._urls[path] = (wire, target, until)
                while len(self._urls) > _KEPT:
                    self._urls.popitem(last=False)
        return wire, target, False

    def _known(self, path: str) -> tuple[RangeConnections, str, bool] | None:
        with self._lock:
            found = self._urls.get(path)
            if found is None or time.monotonic() >= found[2]:
                return None
            self._urls.move_to_end(path)
            return found[0], found[1], True

    def _wire(self, scheme: str, host: str) -> RangeConnections:
        if scheme in urllib.request.getproxies() and not urllib.request.proxy_bypass(host):
            raise BrokenResponse("the way leads through a proxy")
        return RangeConnections(host, _trust(self._bundle()) if scheme == "https" else None)


def replaced(where: str) -> UserError:
    return UserError("the object was replaced while it was read", where, "run the same command again")


def _trust(bundle: str | None) -> ssl.SSLContext:
    """Verify by the authorities in `bundle` alone, else by this machine's and, where it is installed, certifi's."""
    context = ssl.create_default_context(cafile=bundle)
    if bundle is None:
        with contextlib.suppress(ImportError):
            import certifi

            context.load_verify_locations(cafile=certifi.where())
    return context
