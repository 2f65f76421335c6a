"""An error that a signal causes in a library ends the command as an interruption."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest

from cluster.launch.signals import (
    FORCED,
    Interrupted,
    StopRequests,
    errors_as_interrupted,
    interruptible,
    is_forced,
)
from tests.support.commands import LONGEST, ROOT


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_an_error_that_comes_of_a_signal_is_the_interruption(number: int) -> None:
    """Also where the code inside asks for it."""
    with interruptible():
        with pytest.raises(Interrupted) as interruption, errors_as_interrupted():
            try:
                os.kill(os.getpid(), number)
                signal.pause()
            except Interrupted:
                raise RuntimeError("the library that was broken into") from None
        assert isinstance(interruption.value.__cause__, RuntimeError)


def test_an_error_without_a_signal_stays_what_it_is() -> None:
    with interruptible(), pytest.raises(RuntimeError, match="of its own"), errors_as_interrupted():
        raise RuntimeError("of its own")


def test_signals_that_ask_are_counted_and_the_first_passed_on() -> None:
    passed_on: list[int] = []
    before = signal.getsignal(signal.SIGTERM)
    with StopRequests(lambda: passed_on.append(1)) as requests:
        assert not requests.asked
        for _ in range(2):  # to the process, and to its group
            os.kill(os.getpid(), signal.SIGTERM)
        assert requests.asked and not requests.forced and passed_on == [1]
    assert signal.getsignal(signal.SIGTERM) is before


def test_who_asks_again_later_insists() -> None:
    assert not is_forced([]) and not is_forced([5.0]) and not is_forced([5.0, 5.1]) and is_forced([5.0, 5.1, 7.5])


STUCK = """
import ctypes, sys, time
from cluster.launch import signals
from sharding.base.exit_codes import STOPPED

signals._ORDERLY_SECONDS = 0.5
with signals.interruptible(), signals.ended_at_second_signal(lambda: print("before the end", flush=True)):
    print("ready", flush=True)
    if sys.argv[1] == "stuck":
        lock, library = ctypes.create_string_buffer(64), ctypes.CDLL(None)
        library.pthread_mutex_lock(lock)
        library.pthread_mutex_lock(lock)  # for ever, and no signal interrupts it
    with signals.signals_ignored():
        time.sleep(1000)
"""


@pytest.mark.parametrize("where", ["stuck", "leaving"])
def test_a_second_signal_ends_a_process_that_does_not_come_back_to_python(where: str) -> None:
    """Stuck in a library, and in a clean-up that no signal cuts short; the first signal, repeated at once, does not."""
    with subprocess.Popen(
        [sys.executable, "-c", STUCK, where], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        for _ in range(2):
            process.send_signal(signal.SIGTERM)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(timeout=3)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=LONGEST)
    assert (process.returncode, out, err) == (75, "before the end\n", f"{FORCED}\n")
