"""How a process ends that others ask, or are not to outlive: the signals that ask, and dying with the one above."""

import ctypes
import os
import signal
import sys

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1


def stop_signals() -> list[signal.Signals]:
    """The signals that ask to stop, but for those that whoever started this process has it ignore, as nohup does."""
    return [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]


def die_with(parent: int) -> None:
    """Have this process killed when the process that started it is gone."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)
