"""The network interface by which other machines are reached: by the kernel's routes, not by what a host's name is.

A host's own name often resolves to 127.0.0.1 or 127.0.1.1 (Debian's /etc/hosts), and gloo listens where it does.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket

import psutil

# Documentation's addresses (RFC 5737, 3849), where nobody is: the way there is the way to the rest of the world.
FAR_AWAY = {socket.AF_INET: "192.0.2.1", socket.AF_INET6: "2001:db8::1"}


def source_address(target: str) -> str:
    """This machine's address from which a host, by name or address, is reached. Nothing is sent.

    Raises OSError where the name means nothing, or there is no route.
    """
    family, kind, protocol, _, place = socket.getaddrinfo(target, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.connect(place)
        return str(probe.getsockname()[0])


def interface_of(address: str) -> str | None:
    """The name of the interface that has an address of this machine; None where none has it."""
    plain = address.partition("%")[0]
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == plain for entry in entries):
            return str(name)
    return None


def interface_address(name: str) -> str | None:
    """The first IPv4 address of an interface, else its first of IPv6; None where it has none."""
    entries = psutil.net_if_addrs().get(name, [])
    addresses = [entry.address for family in (socket.AF_INET, socket.AF_INET6) for entry in entries
                 if entry.family == family]  # fmt: skip
    return str(addresses[0]) if addresses else None


def is_loopback(address: str) -> bool:
    """Whether an address is reached from its own machine alone."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def network_interface(target: str) -> str | None:
    """The interface by which another machine is reached, named or by its address; None where it is this one's loopback.

    None, too, where the name means nothing here or no route leads there.
    """
    with contextlib.suppress(OSError):
        address = source_address(target)
        return None if is_loopback(address) else interface_of(address)
    return None
