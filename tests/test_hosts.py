"""The hosts that tests of several machines are given: apart from each other, joined by a network, and breakable."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.nodes import hosts as hosts_module
from tests.support.nodes.hosts import ROOT, Host, Names, gateway, hosts, require_hosts
from tests.support.processes import gone
from tests.support.s3 import running_s3

_SERVE = ["python", "-m", "http.server", "8000", "--directory"]
_OWN = "import socket; print(socket.gethostname(), socket.gethostbyname(socket.gethostname()))"
_HOLDS_HOST = """
import sys, time
from tests.support.nodes.hosts import hosts
with hosts(1) as (host,):
    print(host.popen(["sleep", "1000"]).inner, host._bridge, flush=True)
    time.sleep(1000)
"""


@pytest.fixture(scope="module")
def pair() -> Iterator[list[Host]]:
    require_hosts()
    with hosts(2) as both:
        yield both


def _answers(host: Host, seconds: float = 2) -> bool:
    """Whether the server on a host answers the test's machine."""
    try:
        urllib.request.urlopen(f"http://{host.address}:8000/", timeout=seconds).close()
    except (OSError, urllib.error.URLError):
        return False
    return True


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)


def test_hosts_have_their_own_names_processes_memory_and_disk(pair: list[Host]) -> None:
    first, second = pair
    assert first.address != second.address and first.disk != second.disk
    assert first.run(["sh", "-c", "hostname; pwd; echo $HOME"]).split() == [
        "node0", str(first.disk), str(first.disk / "home")
    ]  # fmt: skip
    first.run(["touch", "/dev/shm/mine"])
    assert "mine" not in second.run(["ls", "/dev/shm"]) and not Path("/dev/shm/mine").exists()
    process = first.popen(["sleep", "1000"])
    assert process.inner in first.processes() and second.processes() == {}
    assert "sleep 1000" not in second.run(["ps", "ax"])
    process.terminate()
    assert process.wait(10) == -signal.SIGTERM


@pytest.mark.slow
def test_hosts_reach_each_other_and_servers_of_the_test(pair: list[Host]) -> None:
    first, second = pair
    server = first.popen([*_SERVE, first.disk], output=subprocess.DEVNULL)
    try:
        _until(lambda: _answers(first))
        fetch = "import urllib.request; print(urllib.request.urlopen('http://node0:8000/').status)"
        assert second.run(["python", "-c", fetch]).strip() == "200"
    finally:
        server.kill()
        server.wait()
    with running_s3(address=gateway(first)) as s3:
        ask = f"import s3fs; print(s3fs.S3FileSystem(endpoint_url='{s3.environment['AWS_ENDPOINT_URL']}').ls(''))"
        assert s3.bucket in second.run(["python", "-c", ask], s3.environment)


@pytest.mark.parametrize(("names", "own"), [("network", ""), ("debian", "127.0.1.1"), ("loopback", "127.0.0.1")])
def test_a_host_resolves_its_own_name_as_asked(names: Names, own: str) -> None:
    require_hosts()
    with hosts(2, names) as (first, second):
        assert first.run(["python", "-c", _OWN]).split() == ["node0", own or first.address]
        other = "import socket; print(socket.gethostbyname('node1'))"
        assert first.run(["python", "-c", other]).strip() == second.address


@pytest.mark.slow
def test_a_cut_link_and_a_frozen_host_do_not_answer_until_they_are_mended(pair: list[Host]) -> None:
    first = pair[0]
    server = first.popen([*_SERVE, first.disk], output=subprocess.DEVNULL)
    try:
        _until(lambda: _answers(first))
        first.unplug()
        assert not _answers(first)
        first.plug()
        _until(lambda: _answers(first))
        first.freeze()
        assert not _answers(first)
        first.thaw()
        _until(lambda: _answers(first))
    finally:
        server.kill()
        server.wait()


def test_a_slow_link_takes_as_long_as_its_rate_says(pair: list[Host]) -> None:
    first = pair[0]
    (first.disk / "file").write_bytes(bytes(150_000))
    server = first.popen([*_SERVE, first.disk], output=subprocess.DEVNULL)
    try:
        _until(lambda: _answers(first))
        first.slow("800kbit")
        begin = time.monotonic()
        with urllib.request.urlopen(f"http://{first.address}:8000/file", timeout=60) as answer:
            assert len(answer.read()) == 150_000
        assert time.monotonic() - begin > 1
    finally:
        first.fast()
        server.kill()
        server.wait()


def test_a_killed_host_takes_all_its_processes_along_and_starts_again_with_its_disk() -> None:
    require_hosts()
    with hosts(2) as (first, second):
        lost = first.popen(["sh", "-c", "sleep 1000 & sleep 1000"])
        kept = second.popen(["sleep", "1000"])
        _until(lambda: len(first.processes()) == 3)
        pids = list(first.processes())
        (first.disk / "file").write_text("kept")
        first.kill()
        assert all(gone(pid) for pid in pids) and lost.wait(10) == -signal.SIGKILL
        assert first.processes() == {} and kept.poll() is None
        first.start()
        assert first.run(["cat", "file"]) == "kept"
        first.popen([*_SERVE, first.disk], output=subprocess.DEVNULL)
        _until(lambda: _answers(first))
    assert gone(kept.pid)


def test_nothing_is_left_of_a_test_that_was_killed() -> None:
    require_hosts()
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    holder = subprocess.Popen([sys.executable, "-c", _HOLDS_HOST], stdout=subprocess.PIPE, env=variables)
    assert holder.stdout is not None
    pid, bridge = holder.stdout.readline().decode().split()
    holder.kill()
    holder.wait()
    holder.stdout.close()
    assert gone(int(pid))
    hosts_module._remove(int(bridge.removeprefix("hosts")))  # what the next test that takes this network does
    assert not [path for path in Path("/sys/class/net").iterdir() if path.name.startswith(bridge)]
