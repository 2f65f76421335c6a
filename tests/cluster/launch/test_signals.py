"""A signal ends what it breaks as an interruption, whatever error that makes of it."""

from __future__ import annotations

import os
import signal

import pytest

from cluster.launch.signals import Interrupted, errors_as_interrupted, interruptible


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_an_error_that_comes_of_a_signal_is_the_interruption(number: int) -> None:
    """Also where it is looked at, within."""
    with interruptible():
        with pytest.raises(Interrupted) as raised, errors_as_interrupted():
            try:
                os.kill(os.getpid(), number)
                signal.pause()
            except Interrupted:
                raise RuntimeError("the library that was broken into") from None
        assert isinstance(raised.value.__cause__, RuntimeError)


def test_an_error_without_a_signal_stays_what_it_is() -> None:
    with interruptible(), pytest.raises(RuntimeError, match="of its own"), errors_as_interrupted():
        raise RuntimeError("of its own")
