"""Being asked to stop: signals do what Ctrl-C does, a clean-up is not cut short, workers die with their command."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from pretrain.resilience.stop_signal import NOT_BEGUN as NOT_BEGUN
from sharding.base import environment
from sharding.base.parent_death import STOP_SIGNALS, stop_signals


class Interrupted(BaseException):
    """The command was asked to stop by a signal.

    Not KeyboardInterrupt: after one inside an `eval`, and importing torch is full of them, Python ends itself by
    SIGINT whatever exit code was chosen.
    """


_came: list[int] = []


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside the `with`, these signals raise Interrupted, except one that was ignored, as in the background.

    It may break whatever was under way, so any error after it is told as Interrupted, too.
    """
    _came.clear()

    def interrupt(number: int, frame: FrameType | None) -> None:
        _came.append(number)
        raise Interrupted

    before = {number: signal.signal(number, interrupt) for number in stop_signals()}
    try:
        with interruption_told():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def interruption_told() -> Iterator[None]:
    """Inside the `with`, an error that comes after the signal, of what it broke, is Interrupted, too."""
    try:
        yield
    except Exception as error:
        if _came:
            raise Interrupted from error
        raise


def raise_if_interrupted() -> None:
    """Raise Interrupted again where Python lost it: an exception in a destructor or callback goes nowhere."""
    if _came:
        raise Interrupted


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore the signals that ask to stop for the length of a clean-up, which impatience would cut short."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def postponed() -> Iterator[None]:
    """Signals that ask to stop and come inside the `with` are answered at its end."""
    came: list[int] = []
    before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[-1])


def started_by_run_ranks() -> bool:
    """Whether this process is a rank of launcher=none."""
    return environment.command_pid() is not None
