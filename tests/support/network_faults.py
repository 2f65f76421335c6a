"""A proxy before an HTTP server that makes what goes wrong between machines happen: seeded, counted, on loopback."""

from __future__ import annotations

import contextlib
import random
import re
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest

SLOW_DOWN = "slow_down"  # 503, nothing forwarded
RESET_BEFORE = "reset_before"  # the connection is reset, nothing forwarded
RESET_AFTER = "reset_after"  # the server did it, but its answer is lost
CUT_ANSWER = "cut_answer"  # half of the answer's body comes
CUT_REQUEST = "cut_request"  # half of the request's body reaches the server
CLOSE_AFTER = "close_after"  # all goes well, but the connection is closed after it, untold; not by chance
HALF_RANGE = "half_range"  # the server is asked for half of a range only; not by chance
KINDS = (SLOW_DOWN, RESET_BEFORE, RESET_AFTER, CUT_ANSWER, CUT_REQUEST)
_XML = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n<Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)


@dataclass
class Proxy:
    """What the proxy does and did. `rate`: share of requests with a fault of `kinds`; `delay`: seconds before each.

    `script`: (method, fault) for the next requests of that method, each used once and before chance.
    """

    url: str
    rate: float
    kinds: Sequence[str] = KINDS
    delay: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    requests: list[str] = field(default_factory=list)  # "METHOD path?query"
    sent: int = 0  # bytes of answers' bodies
    script: list[tuple[str, str]] = field(default_factory=list)
    running: threading.Event = field(default_factory=threading.Event)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Inside the `with`, requests wait."""
        self.running.clear()
        try:
            yield
        finally:
            self.running.set()


@contextlib.contextmanager
def before_s3(environment: Mapping[str, str], monkeypatch: pytest.MonkeyPatch, seed: int) -> Iterator[Proxy]:
    """This process reaches the S3 server of `environment` through a proxy, inside the `with`."""
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with fault_proxy(environment["AWS_ENDPOINT_URL"], seed=seed) as found:
        monkeypatch.setenv("AWS_ENDPOINT_URL", found.url)
        yield found


@contextlib.contextmanager
def fault_proxy(
    endpoint: str,
    rate: float = 0.0,
    seed: int = 0,
    kinds: Sequence[str] = KINDS,
    identity: ssl.SSLContext | None = None,
) -> Iterator[Proxy]:
    """A proxy before `endpoint` (http://host:port) that runs inside the `with`; https with an `identity`."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    scheme = "https" if identity else "http"
    proxy = Proxy(f"{scheme}://127.0.0.1:{listener.getsockname()[1]}", rate, kinds)
    proxy.running.set()
    there = urlsplit(endpoint)
    relay = _Relay(proxy, (str(there.hostname), int(there.port or 80)), random.Random(seed), identity)
    threading.Thread(target=relay.accept, args=(listener,), daemon=True).start()
    try:
        yield proxy
    finally:
        proxy.running.set()
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()


@dataclass
class _Message:
    """A request or an answer: its first line and headers as they came, and its body as it came."""

    head: bytes
    body: bytes

    @property
    def method(self) -> str:
        return self.head.split(b" ", 1)[0].decode()


class _Relay:
    def __init__(
        self, proxy: Proxy, server: tuple[str, int], chance: random.Random, identity: ssl.SSLContext | None
    ) -> None:
        self.proxy, self.server, self.chance, self.identity = proxy, server, chance, identity
        self.lock = threading.Lock()

    def accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=self._converse, args=(client,), daemon=True).start()

    def _converse(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, EOFError):
            if self.identity is not None:
                client = self.identity.wrap_socket(client, server_side=True)
            while True:
                request = _read(client, asks=True)
                with self.lock:
                    self.proxy.requests.append(b" ".join(request.head.split(b" ", 2)[:2]).decode())
                    fault = self._fault(request)
                    self.proxy.counts[fault] += 1
                self.proxy.running.wait()
                time.sleep(self.proxy.delay)
                if not self._answer(client, request, fault):
                    return

    def _fault(self, request: _Message) -> str:
        for number, (method, fault) in enumerate(self.proxy.script):
            if method == request.method:
                del self.proxy.script[number]
                return fault
        kinds = [kind for kind in self.proxy.kinds if kind != CUT_REQUEST or request.body]
        if not kinds or self.chance.random() >= self.proxy.rate:
            return "none"
        return min(kinds, key=lambda kind: self.proxy.counts[kind])  # all of them, even in a short test

    def _answer(self, client: socket.socket, request: _Message, fault: str) -> bool:
        """Whether the connection goes on."""
        if fault == SLOW_DOWN:
            head = f"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nContent-Length: {len(_XML)}\r\n\r\n"
            client.sendall(head.encode() + (b"" if request.method == "HEAD" else _XML))
            return True
        if fault == RESET_BEFORE:
            _reset(client)
            return False
        try:
            with socket.create_connection(self.server, timeout=120) as server:
                if fault == CUT_REQUEST:
                    server.sendall(request.head + request.body[: len(request.body) // 2])
                    time.sleep(0.05)
                    _reset(client)
                    return False
                server.sendall((_halved(request.head) if fault == HALF_RANGE else request.head) + request.body)
                answer = _read(server, asks=False, to_head=request.method == "HEAD")
        except (OSError, EOFError):
            _reset(client)
            return False
        if fault == RESET_AFTER or (fault == CUT_ANSWER and not answer.body):
            _reset(client)
            return False
        if fault == CUT_ANSWER:
            self.proxy.sent += len(answer.body) // 2
            client.sendall(answer.head + answer.body[: len(answer.body) // 2])
            return False
        self.proxy.sent += len(answer.body)
        client.sendall(answer.head + answer.body)
        return fault != CLOSE_AFTER and b"connection: close" not in answer.head.lower()


def _halved(head: bytes) -> bytes:
    """A request's head that asks for the first half of the range."""

    def half(match: re.Match[bytes]) -> bytes:
        first, last = map(int, match.groups())
        return b"bytes=%d-%d" % (first, (first + last) // 2)

    return re.sub(rb"bytes=(\d+)-(\d+)", half, head)


def _read(peer: socket.socket, asks: bool, to_head: bool = False) -> _Message:
    """One message; EOFError if the peer leaves before it is whole."""
    got = _until(peer, b"", b"\r\n\r\n")
    end = got.index(b"\r\n\r\n") + 4
    head, body = got[:end], got[end:]
    headers = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
    }
    if asks and headers.get(b"expect", b"").lower() == b"100-continue":
        peer.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        head = b"\r\n".join(line for line in head.split(b"\r\n") if not line.lower().startswith(b"expect:"))
    status = b"" if asks else head.split(b" ", 2)[1]
    if to_head or status in (b"204", b"304") or status.startswith(b"1"):
        return _Message(head, b"")
    if b"content-length" in headers:
        return _Message(head, _until(peer, body, int(headers[b"content-length"])))
    if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
        return _Message(head, _until(peer, body, b"0\r\n\r\n"))
    return _Message(head, b"" if asks else _rest(peer, body))


def _until(peer: socket.socket, got: bytes, end: bytes | int) -> bytes:
    whole = bytearray(got)
    while len(whole) < end if isinstance(end, int) else end not in whole[-(2**16) - len(end) :]:
        data = peer.recv(2**16)
        if not data:
            raise EOFError
        whole += data
    return bytes(whole)


def _rest(peer: socket.socket, got: bytes) -> bytes:
    whole = bytearray(got)
    while data := peer.recv(2**16):
        whole += data
    return bytes(whole)


def _reset(peer: socket.socket) -> None:
    """Close with a RST instead of a FIN."""
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()
