"""A last line for a command that is ended where it cannot say one itself: by kill -9, or by Ray within the process."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

ENDED = (
    "reelscale: the command was ended from outside: killed, or Ray's head or its process of this machine (its raylet) "
    "died; the same command goes on from what is saved"
)
_WAIT = 'read -r word || echo "$1" >&2'  # without a word its standard input ends when the command does


@contextmanager
def exit_notice() -> Iterator[Callable[[], None]]:
    """Inside the `with`, the sudden end of this process is followed by one line on standard error.

    Ray's library ends the process, with no exception, once the raylet of its machine has died. Gives a function to be
    called before an end that the process has words of its own for.
    """
    words = ["sh", "-c", _WAIT, "sh", ENDED]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True) as speaker:

        def dismiss() -> None:
            assert speaker.stdin is not None
            with suppress(OSError, ValueError):  # it has ended, by the first word
                speaker.stdin.write(b"all is well\n")
                speaker.stdin.flush()

        try:
            yield dismiss
        finally:
            dismiss()
