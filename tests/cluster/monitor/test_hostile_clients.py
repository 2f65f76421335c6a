"""Clients that are silent, slow, greedy or many: a scrape still succeeds, and a process' threads and memory stay."""

from __future__ import annotations

import contextlib
import http.client
import os
import resource
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest
import trustme

from cluster.monitor.endpoint import Served, endpoint
from cluster.monitor.settings import MonitorSettings
from pretrain.resilience.progress import Progress
from tests.cluster.monitor.conftest import ask

# The endpoint's thread may not end by an error, wherever a connection is by then.
pytestmark = pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
SOCKETS = 500
HELD = 140  # connections that a process holds at most, and a few that are being ended


@pytest.fixture(autouse=True)
def room_for_sockets() -> Iterator[None]:
    """File handles for both ends of all sockets, which here are one process'."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(max(soft, 4096), hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def _connections(served: Served) -> int:
    """Connections that the process holds as a server."""
    port = urlsplit(served.url).port
    return sum(
        each.status == psutil.CONN_ESTABLISHED and each.laddr.port == port
        for each in psutil.Process().net_connections("tcp4")
    )


def _memory() -> int:
    return int(psutil.Process().memory_info().rss)


@contextlib.contextmanager
def _clients(served: Served, behave: Callable[[socket.socket, int], object]) -> Iterator[list[socket.socket]]:
    parts, clients = urlsplit(served.url), list[socket.socket]()
    try:
        for number in range(SOCKETS):
            client = socket.create_connection((parts.hostname, parts.port), timeout=60)
            clients.append(client)
            with contextlib.suppress(ConnectionError):  # the process may have ended it by now
                behave(client, number)
        yield clients
    finally:
        for client in clients:
            client.close()


def _silent(client: socket.socket, number: int) -> None:
    """Say nothing."""


def _half(client: socket.socket, number: int) -> None:
    client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ")


def _huge(client: socket.socket, number: int) -> None:
    client.settimeout(1)
    with contextlib.suppress(TimeoutError):
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
        client.sendall(b"X-Huge: " + b"x" * 2**20)


def _many_headers(client: socket.socket, number: int) -> None:
    client.settimeout(1)
    with contextlib.suppress(TimeoutError):
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n" + b"".join(b"X-%d: y\r\n" % n for n in range(20000)))


def _body(client: socket.socket, number: int) -> None:
    client.settimeout(1)
    with contextlib.suppress(TimeoutError):
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000\r\n\r\n")
        client.sendall(b"x" * 2**20)


def _deaf(client: socket.socket, number: int) -> None:
    """Ask for many pages and read none."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.settimeout(1)
    with contextlib.suppress(TimeoutError):
        client.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 100)


def _noise(client: socket.socket, number: int) -> None:
    client.sendall(os.urandom(4096))


@pytest.mark.parametrize(
    "behave", [_silent, _half, _huge, _many_headers, _body, _deaf, _noise], ids=lambda each: each.__name__[1:]
)
def test_500_clients_keep_no_scrape_out_and_nothing_grows(
    served: Served, behave: Callable[[socket.socket, int], object], capfd: pytest.CaptureFixture[str]
) -> None:
    assert ask(served).status == 200
    threads, memory = threading.active_count(), _memory()
    with _clients(served, behave):
        for _ in range(5):
            assert ask(served).status == 200
        assert threading.active_count() <= threads + 1, "one more while a page is rendered"
        assert _connections(served) <= HELD
        assert _memory() - memory < 64 * 2**20
    assert ask(served, "/healthz").status == 200
    assert "".join(capfd.readouterr()) == "", "clients write no line into the run's log"


def test_slow_clients_that_go_on_a_byte_at_a_time_keep_no_scrape_out(served: Served) -> None:
    with _clients(served, _half) as clients:
        for _ in range(20):
            for client in clients:
                with contextlib.suppress(OSError):
                    client.send(b"x")
            assert ask(served).status == 200
        assert _connections(served) <= HELD


def test_a_reader_that_keeps_its_connection_outlives_those_that_ask_for_nothing(served: Served) -> None:
    parts = urlsplit(served.url)
    reader = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
    reader.connect()
    own = reader.sock
    for _ in range(6):
        clients = [socket.create_connection((parts.hostname, parts.port), timeout=60) for _ in range(50)]
        reader.request("GET", "/metrics")
        assert reader.getresponse().read()
        for client in clients:
            client.close()
    assert reader.sock is own
    reader.close()


def test_clients_that_shake_no_hand_keep_no_scrape_out(
    progress: Progress, authority: trustme.CA, tmp_path: Path
) -> None:
    certificate = authority.issue_cert("127.0.0.1")
    tls = {"certificate": str(tmp_path / "certificate.pem"), "key": str(tmp_path / "key.pem")}
    certificate.cert_chain_pems[0].write_to_path(tls["certificate"])
    certificate.private_key_pem.write_to_path(tls["key"])
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    settings = MonitorSettings.model_validate({"port": 0, "tls": tls, "targets": str(tmp_path / "targets")})
    with endpoint(settings, "pretrain", "/runs/a", progress) as served:
        assert served and ask(served, tls=trusting).status == 200
        threads = threading.active_count()
        for behave in (_silent, _noise, _half):
            with _clients(served, behave):
                for _ in range(3):
                    assert ask(served, tls=trusting).status == 200
                assert _connections(served) <= HELD
        assert threading.active_count() <= threads + 1


def test_200_scrapes_a_second_are_answered_by_one_thread(served: Served) -> None:
    parts = urlsplit(served.url)
    threads, memory, failures, stop = threading.active_count(), _memory(), list[object](), threading.Event()

    def scrape() -> None:
        while not stop.is_set():
            connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
            try:
                for _ in range(20):
                    connection.request("GET", "/metrics")
                    if connection.getresponse().read()[:6] != b"# HELP":
                        failures.append("no page")
            except OSError as error:
                failures.append(error)
            finally:
                connection.close()

    readers = [threading.Thread(target=scrape) for _ in range(4)]
    for reader in readers:
        reader.start()
    try:
        for _ in range(20):
            time.sleep(0.1)
            assert threading.active_count() <= threads + len(readers) + 1
            assert ask(served, "/readyz").status == 200
    finally:
        stop.set()
        for reader in readers:
            reader.join()
    assert failures == [] and _memory() - memory < 64 * 2**20


def test_a_process_without_file_handles_serves_again_once_it_has_some(served: Served) -> None:
    parts = urlsplit(served.url)
    assert ask(served).status == 200
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    client = socket.socket()
    client.settimeout(60)
    resource.setrlimit(resource.RLIMIT_NOFILE, (psutil.Process().num_fds(), hard))
    try:
        client.connect((parts.hostname, parts.port))
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        time.sleep(0.5)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with client:
        assert client.recv(100).startswith(b"HTTP/1.1 200")
