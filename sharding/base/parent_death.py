"""The signals that ask a process to stop, and ending a process together with its parent."""

import ctypes
import os
import signal
import sys
from collections.abc import Sequence

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


def stop_signals() -> list[signal.Signals]:
    """The signals that ask to stop, without those that this process was started to ignore, as by nohup."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent, the process with the id `parent`, ends; on Linux only."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def dying_with(parent: int, command: Sequence[str]) -> list[str]:
    """A command line that runs `command`, and has the kernel kill it when the process `parent`, its parent, ends.

    The kernel's request outlives the exec by which the command takes the place of the process that made it.
    """
    program = (
        f"import os, sys; from {__name__} import die_with; die_with({parent}); os.execvp(sys.argv[1], sys.argv[1:])"
    )
    return [sys.executable, "-c", program, *command]
