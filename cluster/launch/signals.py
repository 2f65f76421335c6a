"""Signals that ask a command to stop: raised as Interrupted, counted, ignored during a clean-up, or postponed."""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Self

from cluster.terminal.output import end_process
from pretrain.resilience.stop_signal import NOT_BEGUN as NOT_BEGUN
from sharding.base.exit_codes import STOPPED
from sharding.base.parent_death import STOP_SIGNALS, stop_signals


class Interrupted(BaseException):
    """The command was asked to stop by a signal.

    Not KeyboardInterrupt: after one inside an `eval`, and importing torch is full of them, Python ends itself by
    SIGINT whatever exit code was chosen.
    """


FORCED = (
    "reelscale: stopped at the second signal without waiting for what is under way; the same command goes on from what "
    "is saved"
)
_SAME_REQUEST_SECONDS = 2.0  # schedulers, terminals and pipelines signal a process, its group and its parent: at once

_ORDERLY_SECONDS = 6.0  # that a command may take to end in order after a second signal

_came: list[int] = []


class StopRequests:
    """Counts the signals that ask to stop while the `with` lasts, and passes the first on to `on_first`.

    A later one insists: who asks twice does not want to wait for what is being saved. `first`: when one came before
    the `with`, in monotonic seconds.
    """

    def __init__(self, on_first: Callable[[], None] = lambda: None, first: float | None = None) -> None:
        self._on_first = on_first
        self._came: list[float] = [] if first is None else [first]

    @property
    def asked(self) -> bool:
        """Whether a signal has come."""
        return bool(self._came)

    @property
    def forced(self) -> bool:
        """Whether a second one has come."""
        return is_forced(self._came)

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._count) for number in stop_signals()}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _count(self, number: int, frame: FrameType | None) -> None:
        self._came.append(time.monotonic())
        if len(self._came) == 1:
            self._on_first()


def is_forced(came: Sequence[float]) -> bool:
    """Whether of signals that came at these times, in seconds, a later one is a second request."""
    return bool(came) and came[-1] - came[0] > _SAME_REQUEST_SECONDS


@contextmanager
def interruptible() -> Iterator[None]:
    """Inside the `with`, these signals raise Interrupted, except one that was ignored, as in the background.

    It may break whatever was under way, so any error after it is raised as Interrupted, too.
    """
    _came.clear()

    def interrupt(number: int, frame: FrameType | None) -> None:
        _came.append(number)
        raise Interrupted

    before = {number: signal.signal(number, interrupt) for number in stop_signals()}
    try:
        with errors_as_interrupted():
            yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def errors_as_interrupted() -> Iterator[None]:
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
def ended_at_second_signal(before_end: Callable[[], None]) -> Iterator[None]:
    """Inside the `with`, a second signal ends the process within seconds, with STOPPED, wherever it is.

    Python answers a signal once its main thread comes back to Python: from Ray's library, where the cluster's head is
    away, after a minute or never. So a thread, which hears of signals at once, calls `before_end` and ends the process.
    """
    inward, outward = os.pipe()
    os.set_blocking(outward, False)
    outer = signal.set_wakeup_fd(outward, warn_on_full_buffer=False)
    threading.Thread(target=_end_at_second, args=(inward, before_end), name="second signal", daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(outer)
        os.close(outward)


def _end_at_second(inward: int, before_end: Callable[[], None]) -> None:
    """End the process seconds after a second signal; return when the pipe, from which signals come, is closed first."""
    came: list[float] = []
    with open(inward, "rb", buffering=0) as pipe:
        while not is_forced(came):
            if not (numbers := pipe.read(64)):
                return
            came += [time.monotonic() for number in numbers if number in STOP_SIGNALS]
    time.sleep(_ORDERLY_SECONDS)
    before_end()
    print(FORCED, file=sys.stderr)
    end_process(STOPPED)


@contextmanager
def signals_ignored() -> Iterator[None]:
    """Do nothing at signals that ask to stop for the length of a clean-up, which impatience would cut short.

    They are still counted by `ended_at_second_signal`, which what the kernel ignores would not be.
    """
    before = {number: signal.signal(number, lambda *_: None) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def signals_postponed() -> Iterator[list[float]]:
    """Signals that ask to stop are answered at the end of the `with`. Gives the times at which they come."""
    came: list[int] = []
    times: list[float] = []

    def keep(number: int, frame: FrameType | None) -> None:
        came.append(number)
        times.append(time.monotonic())

    before = {number: signal.signal(number, keep) for number in STOP_SIGNALS}
    try:
        yield times
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[-1])
