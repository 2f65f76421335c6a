"""Plain HTTP/1.1 GETs of byte ranges over kept connections, one a thread: little work a request.

A range of 20 kB costs about 0.1 ms of CPU here, 0.3 ms by http.client and 0.5 ms by urllib3, which make objects of
every header; connecting, with TLS and its verification, is http.client's all the same.
"""

from __future__ import annotations

import http.client
import re
import socket
import ssl
import struct
import threading
import time
from typing import cast

from sharding.storage.error_mapping import BrokenResponse

CONNECT_SECONDS, READ_SECONDS = 5.0, 30.0  # to connect; without any byte
_HEAD_END, _HEAD_MOST = b"\r\n\r\n", 2**16
_SMALL = 2**16  # bytes of an answer that is nobody's: read, so that the connection can be kept
_RECORD = 2**14  # bytes of a TLS record, the most that one read gives
_ASKS = "GET {} HTTP/1.1\r\nHost: {}\r\nAccept-Encoding: identity\r\nRange: bytes={}-{}\r\n\r\n"
_EXTENT = re.compile(rb"bytes (\d+)-(\d+)/(\d+)")


class ResponseHead:
    """An answer's status line and headers; `extent` is (start, end, bytes of the object) of the range that follows.

    It is None where what follows is none, or not as long as announced.
    """

    __slots__ = ("_lower", "_text", "extent", "status")

    def __init__(self, text: bytes) -> None:
        if not text.startswith(b"HTTP/1.") or not text[9:12].isdigit():
            raise BrokenResponse("the answer is not HTTP/1.1")
        self.status = int(text[9:12])
        self._text, self._lower = text + b"\r\n", text.lower() + b"\r\n"
        self.extent: tuple[int, int, int] | None = None
        found = _EXTENT.fullmatch(self.field(b"content-range")) if self.status == 206 else None
        if found is not None and not self.field(b"transfer-encoding"):
            first, last, total = map(int, found.groups())
            if self.length == last + 1 - first:
                self.extent = first, last + 1, total

    def field(self, name: bytes) -> bytes:
        """A header by its name in lower case; nothing if it is absent."""
        start = self._lower.find(b"\r\n" + name + b":")
        if start < 0:
            return b""
        start += len(name) + 3
        return self._text[start : self._text.index(b"\r\n", start)].strip()

    @property
    def length(self) -> int | None:
        """Bytes of its body, where it tells them."""
        text = self.field(b"content-length")
        return int(text) if text.isdigit() else None

    @property
    def last(self) -> bool:
        """Whether the server closes the connection after it."""
        return self._text.startswith(b"HTTP/1.0") or self.field(b"connection").lower() == b"close"

    def __str__(self) -> str:
        return self._text[9 : self._text.index(b"\r\n")].decode("latin-1")


class RangeConnections:
    """Connections of one process to one server, `host` or `host:port`. Safe for threads."""

    def __init__(self, host: str, trust: ssl.SSLContext | None) -> None:
        """`trust`: None for plain http."""
        self.host, self.trust = host, trust
        self._mine = threading.local()

    def ask(self, target: str, start: int, end: int) -> ResponseHead:
        """The head of the answer to a GET of bytes [start, end) of `target`; its body, if `extent`, is to be read.

        BrokenResponse if none comes. A kept connection that the server has closed meanwhile is replaced, untold.
        """
        request = f"GET {target} HTTP/1.1\r\nHost: {self.host}\r\nRange: bytes={start}-{end - 1}\r\n\r\n".encode(
            "ascii"
        )
        kept: _Connection | None = getattr(self._mine, "connection", None)
        if kept is not None:
            try:
                return self._answer(kept, request)
            except OSError:
                if kept.begun:
                    raise
        return self._answer(self._connect(), request)

    def body(self, pieces: list[bytes], size: int, seconds: float) -> None:
        """Append the `size` bytes that follow the last head to `pieces`; BrokenResponse if fewer come in `seconds`.

        What came before the break is in `pieces`.
        """
        connection: _Connection = self._mine.connection
        until = time.monotonic() + seconds
        try:
            while size:
                piece = connection.read(size)
                pieces.append(piece)
                size -= len(piece)
                if size and time.monotonic() > until:
                    raise BrokenResponse(f"{size} bytes have not come after {seconds:.0f} s")
        except BaseException:
            self.drop()
            raise
        if connection.last:
            self.drop()

    def _answer(self, connection: _Connection, request: bytes) -> ResponseHead:
        try:
            head = connection.exchange(request)
            if head.extent is None:
                length = head.length
                if length is None or length > _SMALL:
                    self.drop()
                else:
                    self.body([], length, READ_SECONDS)
            return head
        except BaseException as error:  # what is left of an answer would be taken for the next one
            self.drop()
            if isinstance(error, OSError) and not isinstance(error, BrokenResponse):
                raise BrokenResponse(f"{error} ({self.host})") from error
            raise

    def _connect(self) -> _Connection:
        kind: http.client.HTTPConnection
        if self.trust is None:
            kind = http.client.HTTPConnection(self.host, timeout=CONNECT_SECONDS)
        else:
            kind = http.client.HTTPSConnection(self.host, timeout=CONNECT_SECONDS, context=self.trust)
        try:
            kind.connect()
        except ssl.SSLCertVerificationError:
            raise
        except OSError as error:
            raise BrokenResponse(f"{error} ({self.host})") from error
        self._mine.connection = _Connection(cast(socket.socket, kind.sock))
        return self._mine.connection

    def drop(self) -> None:
        """Close this thread's connection, whatever was still to come on it."""
        connection: _Connection | None = self._mine.__dict__.pop("connection", None)
        if connection is not None:
            connection.close()


class _Connection:
    """One connected socket; `begun`: an answer's first byte has come; `last`: the server closes after this answer."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self.begun = self.last = False
        self._early = b""  # of the body, read with the head
        self._plain = not isinstance(peer, ssl.SSLSocket)
        if self._plain:  # a blocking read of all that is to come is one call; the kernel keeps the time
            seconds = struct.pack("ll", int(READ_SECONDS), int(READ_SECONDS % 1 * 1e6))
            peer.settimeout(None)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
        else:
            peer.settimeout(READ_SECONDS)

    def exchange(self, request: bytes) -> ResponseHead:
        """Send a request and read the answer's head."""
        self.begun = False
        self.peer.sendall(request)
        got = b""
        while _HEAD_END not in got:
            if len(got) > _HEAD_MOST:
                raise BrokenResponse("the answer's head does not end")
            got += self._some(got)
        head, _, self._early = got.partition(_HEAD_END)
        found = ResponseHead(head)
        self.last = found.last
        return found

    def read(self, size: int) -> bytes:
        """Up to `size` bytes of the body, at least one."""
        if self._early:
            piece, self._early = self._early[:size], self._early[size:]
        elif self._plain:
            piece = self._received(size, socket.MSG_WAITALL)
        else:
            piece = self._received(min(size, _RECORD))
        return piece

    def close(self) -> None:
        self.peer.close()

    def _some(self, got: bytes) -> bytes:
        """More of a head: on a plain connection nothing after it, so that a body need not be put together."""
        if not self._plain:
            return self._received(_RECORD)
        seen = self._received(_RECORD // 4, socket.MSG_PEEK)
        end = (got + seen).find(_HEAD_END)
        return self._received(len(seen) if end < 0 else end + len(_HEAD_END) - len(got))

    def _received(self, size: int, flags: int = 0) -> bytes:
        try:
            piece = self.peer.recv(size, flags)
        except (BlockingIOError, TimeoutError):
            raise BrokenResponse(f"nothing came for {READ_SECONDS:.0f} s") from None
        if not piece:
            raise BrokenResponse("the connection was closed before the answer's end")
        self.begun = True
        return piece
