"""HTTP/1.1 GETs of byte ranges over connections that are kept open, one a thread: little CPU a request.

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
_SMALL = 2**16  # bytes of a response that nobody wants (an error's): read, so that the connection can be kept
_RECORD = 2**14  # bytes of a TLS record, the most that one read gives
_ASKS = "GET {} HTTP/1.1\r\nHost: {}\r\nAccept-Encoding: identity\r\nRange: bytes={}-{}\r\n\r\n"
_EXTENT = re.compile(rb"bytes (\d+)-(\d+)/(\d+)")


class ResponseHead:
    """The status line and headers of a response.

    `content_range`: (start, end, bytes of the whole object) of the range that follows; None where the body is no range,
    or not as long as the header says.
    """

    __slots__ = ("_lower", "_text", "content_range", "status")

    def __init__(self, text: bytes) -> None:
        if not text.startswith(b"HTTP/1.") or not text[9:12].isdigit():
            raise BrokenResponse("the answer is not HTTP/1.1")
        self.status = int(text[9:12])
        self._text, self._lower = text + b"\r\n", text.lower() + b"\r\n"
        self.content_range: tuple[int, int, int] | None = None
        match = _EXTENT.fullmatch(self.field(b"content-range")) if self.status == 206 else None
        if match is not None and not self.field(b"transfer-encoding"):
            first, last, total = map(int, match.groups())
            if self.length == last + 1 - first:
                self.content_range = first, last + 1, total

    def field(self, name: bytes) -> bytes:
        """The value of a header, by its name in lower case; b"" if it is absent."""
        start = self._lower.find(b"\r\n" + name + b":")
        if start < 0:
            return b""
        start += len(name) + 3
        return self._text[start : self._text.index(b"\r\n", start)].strip()

    @property
    def length(self) -> int | None:
        """The length of the body in bytes; None if no header says."""
        text = self.field(b"content-length")
        return int(text) if text.isdigit() else None

    @property
    def closes(self) -> bool:
        """Whether the server closes the connection after this response."""
        return self._text.startswith(b"HTTP/1.0") or self.field(b"connection").lower() == b"close"

    def __str__(self) -> str:
        return self._text[9 : self._text.index(b"\r\n")].decode("latin-1")


class RangeConnections:
    """The connections of one process to one server, one a thread. Safe for threads."""

    def __init__(self, host: str, ssl_context: ssl.SSLContext | None) -> None:
        """`host`: with or without port. `ssl_context`: None for plain http."""
        self.host, self.ssl_context = host, ssl_context
        self._thread = threading.local()

    def request(self, target: str, start: int, end: int) -> ResponseHead:
        """The head of the response to a GET of bytes [start, end) of `target`.

        If it has a `content_range`, `read_body` must follow. A kept connection that the server has closed meanwhile is
        replaced silently. Raises BrokenResponse if no response comes.
        """
        request = f"GET {target} HTTP/1.1\r\nHost: {self.host}\r\nRange: bytes={start}-{end - 1}\r\n\r\n".encode(
            "ascii"
        )
        kept: _Connection | None = getattr(self._thread, "connection", None)
        if kept is not None:
            try:
                return self._exchange(kept, request)
            except OSError:
                if kept.response_begun:
                    raise
        return self._exchange(self._connect(), request)

    def read_body(self, pieces: list[bytes], size: int, seconds: float) -> None:
        """Append the `size` bytes that follow the last head to `pieces`.

        Raises BrokenResponse if fewer come within `seconds`; those that came are in `pieces`.
        """
        connection: _Connection = self._thread.connection
        until = time.monotonic() + seconds
        try:
            while size:
                piece = connection.read(size)
                pieces.append(piece)
                size -= len(piece)
                if size and time.monotonic() > until:
                    raise BrokenResponse(f"{size} bytes have not come after {seconds:.0f} s")
        except BaseException:
            self.disconnect()
            raise
        if connection.closes:
            self.disconnect()

    def _exchange(self, connection: _Connection, request: bytes) -> ResponseHead:
        try:
            head = connection.exchange(request)
            if head.content_range is None:
                length = head.length
                if length is None or length > _SMALL:
                    self.disconnect()
                else:
                    self.read_body([], length, READ_SECONDS)
            return head
        except BaseException as error:  # the rest of this response would be taken for the next one
            self.disconnect()
            if isinstance(error, OSError) and not isinstance(error, BrokenResponse):
                raise BrokenResponse(f"{error} ({self.host})") from error
            raise

    def _connect(self) -> _Connection:
        kind: http.client.HTTPConnection
        if self.ssl_context is None:
            kind = http.client.HTTPConnection(self.host, timeout=CONNECT_SECONDS)
        else:
            kind = http.client.HTTPSConnection(self.host, timeout=CONNECT_SECONDS, context=self.ssl_context)
        try:
            kind.connect()
        except ssl.SSLCertVerificationError:
            raise
        except OSError as error:
            raise BrokenResponse(f"{error} ({self.host})") from error
        connection = self._thread.connection = _Connection(cast(socket.socket, kind.sock))
        return connection

    def disconnect(self) -> None:
        """Close this thread's connection, if it has one."""
        connection: _Connection | None = self._thread.__dict__.pop("connection", None)
        if connection is not None:
            connection.close()


class _Connection:
    """A connected socket. `response_begun`: its first byte has come; `closes`: the server closes after the response."""

    def __init__(self, peer: socket.socket) -> None:
        self.peer = peer
        self.response_begun = self.closes = False
        self._body_start = b""  # bytes of the body that were read together with the head
        self._plain = not isinstance(peer, ssl.SSLSocket)
        if self._plain:  # one blocking call reads the whole body (MSG_WAITALL); the kernel keeps the time-out
            seconds = struct.pack("ll", int(READ_SECONDS), int(READ_SECONDS % 1 * 1e6))
            peer.settimeout(None)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, seconds)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)
        else:
            peer.settimeout(READ_SECONDS)

    def exchange(self, request: bytes) -> ResponseHead:
        """Send a request; returns the head of the response."""
        self.response_begun = False
        self.peer.sendall(request)
        received = b""
        while _HEAD_END not in received:
            if len(received) > _HEAD_MOST:
                raise BrokenResponse("the answer's head does not end")
            received += self._more_of_head(received)
        head, _, self._body_start = received.partition(_HEAD_END)
        response = ResponseHead(head)
        self.closes = response.closes
        return response

    def read(self, size: int) -> bytes:
        """At least one and up to `size` bytes of the body."""
        if self._body_start:
            piece, self._body_start = self._body_start[:size], self._body_start[size:]
        elif self._plain:
            piece = self._received(size, socket.MSG_WAITALL)
        else:
            piece = self._received(min(size, _RECORD))
        return piece

    def close(self) -> None:
        self.peer.close()

    def _more_of_head(self, received: bytes) -> bytes:
        """The next bytes of a head, on a plain connection none of the body, so that it is read in one piece."""
        if not self._plain:
            return self._received(_RECORD)
        seen = self._received(_RECORD // 4, socket.MSG_PEEK)
        end = (received + seen).find(_HEAD_END)
        return self._received(len(seen) if end < 0 else end + len(_HEAD_END) - len(received))

    def _received(self, size: int, flags: int = 0) -> bytes:
        try:
            piece = self.peer.recv(size, flags)
        except (BlockingIOError, TimeoutError):
            raise BrokenResponse(f"nothing came for {READ_SECONDS:.0f} s") from None
        if not piece:
            raise BrokenResponse("the connection was closed before the answer's end")
        self.response_begun = True
        return piece
