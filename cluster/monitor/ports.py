"""A process' listening socket: the wished port or the next free one, and the URL at which others reach it."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Collection

import psutil

from cluster.monitor.settings import MonitorSettings
from pretrain.network_interface import FAR_AWAY, is_loopback, source_address

_BACKLOG = 1024  # that wait to be accepted: one more would be refused, and come back after seconds
_RECEIVED = 8192  # bytes that wait to be read, of which Linux makes twice as many: requests are short


def listen(settings: MonitorSettings, number: int, avoided: Collection[int] = ()) -> tuple[socket.socket, bool]:
    """A listening socket, and whether its port is another than the wished one, which is taken.

    `number`: of the process on its machine. The first one's port is `settings.port`, the others' follow, and where one
    is taken the next free one is had; one of `avoided` only where no other is free.
    Raises OSError where there is none, or the address is not this machine's.
    """
    family, _, _, _, place = socket.getaddrinfo(
        settings.address, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    if settings.port == 0:
        return _bound(family, place, 0), False
    ports = [settings.port + (number + tried) % settings.ports for tried in range(settings.ports)]
    for port in sorted(ports, key=lambda port: port in avoided):
        try:
            return _bound(family, place, port), port != ports[0]
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    last = settings.port + settings.ports - 1
    raise OSError(errno.EADDRINUSE, f"the ports {settings.port} to {last} are all taken")


def reached_at(settings: MonitorSettings, port: int) -> str:
    """HOST:PORT by which those who are to reach a process do: other machines, where it is served to them.

    With TLS the host's name, which certificates have; else an address.
    """
    host = settings.address
    if settings.serves_all:
        host = socket.gethostname() if settings.tls else _address_of_host(":" in settings.address)
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _bound(family: int, place: tuple[object, ...], port: int) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # not of one that listens
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVED)  # of its connections, too
        listener.bind((place[0], port, *place[2:]))
        listener.listen(_BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def _address_of_host(v6: bool) -> str:
    """This machine's address by the route that leads away from it, else any of its own; its name where it has none."""
    family = socket.AF_INET6 if v6 else socket.AF_INET
    with contextlib.suppress(OSError):
        return source_address(FAR_AWAY[family])
    for entries in psutil.net_if_addrs().values():
        for entry in entries:
            if entry.family == family and not is_loopback(entry.address):
                return str(entry.address.partition("%")[0])
    return socket.gethostname()
