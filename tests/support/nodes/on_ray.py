"""Ray on the hosts of a test: a head and nodes that take a token, and commands that are given on one of them."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.support.nodes.hosts import Host, HostProcess

LONGEST = 300.0  # seconds that anything here may take before it counts as hung
_LAST_WORDS = 20.0  # seconds that they may take, on a busy machine
TOKEN = "ab" * 32
_RAY = {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0", "DS_ACCELERATOR": "cpu"}
_START = ("ray", "start", "--num-cpus=1", "--disable-usage-stats", "--object-store-memory=100000000")


class RayHosts:
    """Hosts of one CPU each that form a cluster, the first its head."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        self.hosts, self.head = list(hosts), hosts[0]
        for host in hosts:
            self.join(host)

    def join(self, host: Host) -> None:
        """Start Ray on a host, as its administrator would."""
        file = host.disk / "home" / ".ray" / "auth_token"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(TOKEN)
        file.chmod(0o600)
        if host is self.head:
            words = [*_START, f"--node-ip-address={host.address}", "--head", "--port=6379", "--include-dashboard=false"]
        else:
            words = [*_START, f"--node-ip-address={host.address}", f"--address={self.head.address}:6379"]
        host.run(words, _RAY)

    def start_anew(self) -> None:
        """Boot all hosts again, with a cluster of their own."""
        for host in self.hosts:
            host.kill()
            host.start()
        for host in self.hosts:
            self.join(host)

    def reelscale(
        self, *arguments: str | Path, environment: Mapping[str, str] | None = None, on: Host | None = None
    ) -> HostCommand:
        """Start a command of Reelscale on a host (the head), with the cluster's address and no word of its token."""
        own = {name: value for name, value in _RAY.items() if name != "RAY_AUTH_MODE"}
        variables = {**own, "RAY_ADDRESS": f"{self.head.address}:6379", **(environment or {})}
        return HostCommand(on or self.head, [str(argument) for argument in arguments], variables)


class HostCommand:
    """A command that runs on a host, and what it has said so far."""

    def __init__(self, host: Host, arguments: list[str], variables: Mapping[str, str]) -> None:
        self.run = ""  # the name of a run's folder, for the test that gave it
        self._file = host.disk / f"{time.time_ns()}.out"
        with self._file.open("wb") as output:
            words = [sys.executable, "-m", "cluster.cli", *arguments]
            self.process: HostProcess = host.popen(words, variables, output)

    @property
    def said(self) -> str:
        """Standard output and error."""
        return self._file.read_text(errors="replace")

    def until(self, condition: str | Callable[[], Any]) -> Any:
        """Wait until a pattern is said, or a condition holds, while the command runs; returns what it gave."""
        deadline = time.monotonic() + LONGEST
        while time.monotonic() < deadline:
            met = re.search(condition, self.said) if isinstance(condition, str) else condition()
            if met:
                return met
            assert self.process.poll() is None, self.said
            time.sleep(0.1)
        raise AssertionError(f"waited in vain for {condition}\n{self.said}")

    def exit_code(self) -> int:
        """Wait for the end, and for what is said just after it, where another process has the last word."""
        code = self.process.wait(timeout=LONGEST)
        deadline = time.monotonic() + _LAST_WORDS
        while _is_open(self._file) and time.monotonic() < deadline:
            time.sleep(0.05)
        return code


def _is_open(file: Path) -> bool:
    """Whether a process has the file open."""
    for descriptor in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # it has ended
            if descriptor.readlink() == file:
                return True
    return False
