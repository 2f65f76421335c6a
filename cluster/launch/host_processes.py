"""The commands that start a run on hosts, as processes here: watched, and ended with whatever they have started."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from types import TracebackType
from typing import Self

import psutil

from cluster.launch.signals import (
    FORCED,
    Interrupted,
    StopRequests,
    raise_if_interrupted,
    signals_ignored,
    signals_postponed,
)
from sharding.base.errors import UserError
from sharding.base.exit_codes import DONE, FAILED, MISTAKE, STOPPED
from sharding.base.parent_death import dying_with

_OTHERS_SECONDS = 60.0  # that hosts may go on for when one has failed and all are needed, or when the run has ended

# Reads ids of process groups, a negative one for a group that has ended, and kills those left once no one writes more.
_GUARD = """
import os, signal, sys
groups = set()
for line in sys.stdin:
    group = int(line)
    (groups.add if group > 0 else groups.discard)(abs(group))
for group in groups:
    try:
        os.killpg(group, signal.SIGKILL)
    except OSError:
        pass
"""


def run_host_commands(commands: Sequence[Sequence[str]], by_ssh: bool, fewest: int | None, save_seconds: float) -> int:
    """Run a command for each host, or one for all, to their ends; returns `hosts_exit_code`, or STOPPED after a signal.

    `by_ssh`: each holds a terminal of its host, by which it is asked to end. `fewest`: hosts that suffice; None: all.
    A signal is passed on: FAILED where what the commands started has not ended after `save_seconds`. At a second one
    it is not waited for. When this process dies, even by kill -9, all of it dies with it. Raises UserError for a
    program that is not there.
    """
    with HostProcesses(by_ssh) as processes:
        try:
            for words in commands:
                processes.start(words)
            return processes.wait(fewest)
        except Interrupted:
            with StopRequests(first=time.monotonic()) as requests:
                processes.ask_to_end()
                if processes.all_end(save_seconds, requests):
                    return STOPPED
                if requests.forced:
                    print(FORCED, file=sys.stderr)
                return STOPPED if requests.forced else FAILED


def hosts_exit_code(codes: Sequence[int], fewest: int | None) -> int:
    """The exit code of a run from those of its hosts: DONE where `fewest` of them have ended it, else the highest.

    One that is none of ours, as of a signal or of ssh itself, is FAILED.
    """
    if fewest and codes.count(DONE) >= fewest:
        return DONE
    return max(code if code in (DONE, FAILED, MISTAKE, STOPPED) else FAILED for code in codes)


class HostProcesses:
    """Processes, each in a session and group of its own; the `with` leaves nothing of a group behind."""

    def __init__(self, by_ssh: bool) -> None:
        self._by_ssh = by_ssh
        self._processes: list[subprocess.Popen[bytes]] = []
        # Groups of which a process may live; the id of one that has ended may come to be a stranger's.
        self._left = set[int]()

    def __enter__(self) -> Self:
        # The kernel's end of a command with its parent reaches the command alone, and not what it has started.
        self._guard = subprocess.Popen(
            [sys.executable, "-c", _GUARD],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with signals_ignored():
            for group in self._left:
                with suppress(OSError):
                    os.killpg(group, signal.SIGKILL)
            for process in self._processes:
                process.communicate()
            self._guard.kill()
            self._guard.communicate()

    def start(self, words: Sequence[str]) -> None:
        """Start one more. Raises UserError where there is no such program."""
        if shutil.which(words[0]) is None:
            raise UserError(f"there is no program {words[0]} on this machine", "--submit", "install it")
        with signals_postponed():
            process = subprocess.Popen(dying_with(os.getpid(), words), stdin=subprocess.PIPE, start_new_session=True)
            self._processes.append(process)
            self._left.add(process.pid)
            self._tell_guard(process.pid)

    def wait(self, fewest: int | None) -> int:
        """Wait for their ends; returns `hosts_exit_code`. Hosts that have nothing to go on for are ended after a while.

        Raises Interrupted.
        """
        deadline: float | None = None
        while None in (codes := [process.poll() for process in self._processes]):
            raise_if_interrupted()
            over = codes.count(DONE) >= fewest if fewest else any(code not in (None, DONE) for code in codes)
            if deadline is None and over:
                deadline = time.monotonic() + _OTHERS_SECONDS
            elif deadline is not None and time.monotonic() > deadline:
                why = "the run has ended" if fewest else "a host failed, and the others cannot go on without it"
                print(f"{why}: the hosts that are left are asked to end", file=sys.stderr)
                self.ask_to_end()
                self.all_end(_OTHERS_SECONDS)
                return DONE if fewest else FAILED
            self._drop_ended()
            time.sleep(0.2)
        return hosts_exit_code([process.returncode for process in self._processes], fewest)

    def ask_to_end(self) -> None:
        """Send each group SIGTERM, and ssh what Ctrl-C sends: its end would say nothing of the other side's."""
        self._drop_ended()
        for process in self._processes:
            if self._by_ssh and process.stdin and process.poll() is None:
                with suppress(BrokenPipeError):
                    process.stdin.write(b"\x03")
                    process.stdin.flush()
            elif process.pid in self._left and not self._by_ssh:
                with suppress(OSError):
                    os.killpg(process.pid, signal.SIGTERM)

    def all_end(self, seconds: float, requests: StopRequests | None = None) -> bool:
        """Whether nothing is left of any group within a time, and before a second signal."""
        deadline = time.monotonic() + seconds
        while self._drop_ended() and time.monotonic() < deadline:
            if requests and requests.forced:
                break
            time.sleep(0.1)
        return not self._left

    def _drop_ended(self) -> bool:
        """Note the groups of which no process is left; whether there are others."""
        for process in self._processes:
            if process.pid in self._left and process.poll() is not None and not _group_lives(process.pid):
                self._left.discard(process.pid)
                self._tell_guard(-process.pid)
        return bool(self._left)

    def _tell_guard(self, group: int) -> None:
        assert self._guard.stdin is not None
        with suppress(BrokenPipeError):
            self._guard.stdin.write(f"{group}\n".encode())
            self._guard.stdin.flush()


def _group_lives(group: int) -> bool:
    """Whether a process of a group is left; one that has ended and that nobody waits for is not."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return any(
        process.info["status"] not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD) and _group_of(process.pid) == group
        for process in psutil.process_iter(["status"])
    )


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except OSError:
        return None
