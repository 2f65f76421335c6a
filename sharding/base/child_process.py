"""A child process that runs one Python function: how it is started, limited and ended, and what ended it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Collection, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sharding.base.parent_death import die_with

# The parent's path, because it need not be that of a fresh interpreter: a Ray worker's is its job's.
_PROGRAM = (
    "import sys; sys.path[:] = {path!r}; from sharding.base.child_process import begin; "
    "begin({parent}, {ignored!r}, {expendable}); from {module} import {function}; {function}({handles})"
)
_OUT_OF_MEMORY_SCORE = "500"  # of the kernel's choice whom to kill; a common process has 0
_TO_END_SECONDS = 5.0


def start_child(
    module: str,
    function: str,
    handles: Sequence[int],
    ignored: Collection[signal.Signals] = (signal.SIGINT,),
    expendable: bool = False,
    **options: Any,
) -> subprocess.Popen[bytes]:
    """A process in which `function` of `module` is called with these file descriptors, which it inherits.

    It has this process' `sys.path` and is killed when this process is gone. A terminal's Ctrl-C and a scheduler's
    signals reach it, too: those `ignored` never do anything in it, not even while it starts; its parent decides.
    `expendable`: where the kernel is short of memory, it is ended before its parent. `options` are Popen's.
    Raises OSError if it cannot be started.
    """
    program = _PROGRAM.format(
        path=[*map(str, sys.path)],
        parent=os.getpid(),
        ignored=[int(number) for number in ignored],
        expendable=expendable,
        module=module,
        function=function,
        handles=", ".join(map(str, handles)),
    )
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ignored)  # inherited: see `begin`
    try:
        return subprocess.Popen([sys.executable, "-c", program], pass_fds=handles, **options)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def start_connected(
    module: str, function: str, handles: Sequence[int] = (), **options: Any
) -> tuple[subprocess.Popen[bytes], Connection]:
    """As `start_child`, and the connection to it, whose other end is the last of the child's descriptors."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        process = start_child(module, function, [*handles, theirs.fileno()], stdin=subprocess.DEVNULL, **options)
        return process, Connection(ours.detach())


def begin(parent: int, ignored: Collection[int], expendable: bool) -> None:
    """The child's first act, before it imports what it runs: take the limits that `start_child` gave it."""
    die_with(parent)
    for number in ignored:  # blocked when this process started
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ignored)
    if expendable:
        with suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text(_OUT_OF_MEMORY_SCORE)


def end_children(processes: Collection[subprocess.Popen[bytes]]) -> None:
    """Kill children, and wait until they are gone."""
    for process in processes:
        process.kill()
    for process in processes:
        process.wait()


def exit_code(process: subprocess.Popen[bytes], seconds: float = _TO_END_SECONDS) -> int:
    """The exit code of a child that is ending, or minus the signal that ended it; killed if that takes longer."""
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def signal_of(code: int) -> str | None:
    """The name of the signal that ended a process with this exit code; None if it ended by itself."""
    if code >= 0:
        return None
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
