"""The HTTP server of one process: one thread with an event loop, however many clients there are and whatever they do.

A client costs no thread. It can hold a connection and the head of a request (64 KiB at most), and only until there are
`_CONNECTIONS` newer ones: then the one is ended that has asked for nothing for the longest. So silent and slow clients
never keep a scrape out. And it wakes the process at most `_TURNS` times a second, does in a turn what has come since
the one before, and answers and accepts no more than so often a second: those who want more wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import selectors
import socket
import ssl
import threading
import time
from collections.abc import Awaitable, Callable

from aiohttp import web

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]

_CONNECTIONS = 128
_IDLE_SECONDS = 150.0  # that a connection may ask for nothing: twice as long as most scrape a target
_HANDSHAKE_SECONDS = 5.0
_LINE, _HEADERS = 2048, 32  # the longest line of a request's head, and the most headers
_TURNS = 20  # a second: of a process that computes, each costs about as much as the answers themselves
_ACCEPTED = 400  # a second
_PAGES, _PROBES = 25, 25  # answers a second: of /metrics, of which each takes 0.2 to 0.4 ms of a core; of all else
_BURST_SECONDS = 0.2  # whose answers may come at once
_CROWD = 96  # requests under way from which on a connection ends with its answer, so that others get in
_PAUSE_SECONDS = 0.2  # after a connection that could not be accepted: the process may have no file handle left
_ENDING_SECONDS = 5.0


class HttpServer:
    """Serves `handler` at a listening socket, which it closes in the end, from `start` to `stop`."""

    def __init__(self, listener: socket.socket, handler: Handler, tls: ssl.SSLContext | None) -> None:
        """`tls`: by which connections are encrypted."""
        self._listener, self._handler, self._tls = listener, handler, tls
        self._loop = asyncio.SelectorEventLoop(_Turns())
        # What clients do wrong is not the run's to log.
        self._loop.set_exception_handler(lambda loop, context: None)
        self._thread = threading.Thread(target=self._run, name="monitor", daemon=True)
        # Oldest first: those whose handshake is under way; those that are open, by the time of their last request.
        self._arriving: dict[asyncio.Task[None], None] = {}
        self._open: dict[asyncio.BaseProtocol, asyncio.Transport] = {}
        self._asking = set[asyncio.BaseProtocol]()  # of those, whose request is under way
        self._accepted, self._pages, self._probes = _Pace(_ACCEPTED), _Pace(_PAGES), _Pace(_PROBES)

    def start(self) -> None:
        """Begin to serve, in the background."""
        self._listener.setblocking(False)
        self._thread.start()

    def stop(self) -> None:
        """Close all connections and the socket, within seconds."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_ENDING_SECONDS)

    def _run(self) -> None:
        accepting = self._loop.create_task(self._accept())
        try:
            self._loop.run_forever()
        finally:
            for transport in self._open.values():
                if not transport.is_closing():  # one of TLS cannot be ended twice (Python 3.11.2)
                    transport.abort()
            rest = [accepting, *self._arriving]
            for task in rest:
                task.cancel()
            self._loop.run_until_complete(asyncio.gather(*rest, return_exceptions=True))
            self._listener.close()
            self._loop.close()

    async def _accept(self) -> None:
        server = web.Server(
            self._answer,
            access_log=None,
            logger=_silent_logger(),
            keepalive_timeout=_IDLE_SECONDS,
            read_bufsize=_LINE,  # of a body, which nobody reads
            lingering_time=0.0,  # what a request brings beside its head is not read
            max_line_size=_LINE,
            max_field_size=_LINE,
            max_headers=_HEADERS,
        )
        while True:
            try:
                connection, _ = await self._loop.sock_accept(self._listener)
            except OSError:
                self._make_room()
                await asyncio.sleep(_PAUSE_SECONDS)
                continue
            await asyncio.sleep(self._accepted.delay(self._loop.time()))
            while len(self._arriving) + len(self._open) >= _CONNECTIONS:
                if not self._make_room():
                    await asyncio.sleep(1 / _TURNS)
            task = self._loop.create_task(self._adopt(connection, server))
            self._arriving[task] = None
            task.add_done_callback(lambda task: self._arriving.pop(task, None))

    async def _adopt(self, connection: socket.socket, server: web.Server) -> None:
        """Have aiohttp talk on a connection, once its handshake is done."""
        limit = _HANDSHAKE_SECONDS if self._tls else None
        try:
            transport, protocol = await self._loop.connect_accepted_socket(
                server.__call__, connection, ssl=self._tls, ssl_handshake_timeout=limit
            )
        except (OSError, EOFError):  # of TLS' own errors and timeouts, too
            connection.close()
        except BaseException:
            connection.close()
            raise
        else:
            self._open[protocol] = transport

    def _make_room(self) -> bool:
        """Whether there is room: by what has been closed, else by ending a connection that has no request under way."""
        closed = [protocol for protocol, transport in self._open.items() if transport.is_closing()]
        for protocol in closed:
            del self._open[protocol]
        if closed:
            return True
        if 2 * len(self._arriving) > _CONNECTIONS:
            task = next(iter(self._arriving))
            del self._arriving[task]
            task.cancel()
            return True
        oldest = next((protocol for protocol in self._open if protocol not in self._asking), None)
        if oldest is None:
            return False
        self._open.pop(oldest).abort()
        return True

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        transport = self._open.pop(request.protocol, None)
        if transport is not None:
            self._open[request.protocol] = transport
        pace = self._pages if request.path == "/metrics" else self._probes
        self._asking.add(request.protocol)
        try:
            if delay := pace.delay(self._loop.time()):
                await asyncio.sleep(delay)
            response = await self._handler(request)
            if request.can_read_body or len(self._asking) >= _CROWD:
                response.force_close()
            return response
        finally:
            self._asking.discard(request.protocol)


class _Turns(selectors.DefaultSelector):
    """The system's selector, which wakes a loop that has nothing to do only so often a second."""

    _woken = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Ready files, as of the class above; a `timeout` of 0 is one of a loop that has something to do."""
        if timeout != 0:
            time.sleep(max(0.0, self._woken + 1 / _TURNS - time.monotonic()))
        ready = super().select(timeout)
        self._woken = time.monotonic()
        return ready


class _Pace:
    """Delays by which something happens no more than so often a second, but for short bursts."""

    def __init__(self, a_second: float) -> None:
        self._each, self._due = 1 / a_second, 0.0

    def delay(self, now: float) -> float:
        """Seconds that the next one has to wait: several wait for the same moment, which costs less than one by one."""
        self._due = max(self._due + self._each, now)
        if self._due - now <= _BURST_SECONDS:
            return 0.0
        return math.ceil((self._due - _BURST_SECONDS) / _BURST_SECONDS) * _BURST_SECONDS - now


def _silent_logger() -> logging.Logger:
    """A logger that drops all it gets."""
    logger = logging.Logger("monitor")
    logger.addHandler(logging.NullHandler())
    return logger
