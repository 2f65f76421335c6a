"""The end of a process: standard output kept clear for one result, errors in words, an exit code."""

import io
import logging
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from typing import NoReturn

from sharding.base.errors import CommandFailed, UserError
from sharding.base.exit_codes import DONE, FAILED, MISTAKE
from sharding.base.printable import visible_lines


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Inside the `with`, what this process and those it starts print goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def exit_code_of(run: Callable[[], int]) -> int:
    """The exit code that `run` returns; where it raises, that of the error, which is printed to standard error.

    A user's mistake is one message, what ends a run for good one line; anything else has its traceback.
    """
    try:
        return run()
    except SystemExit as asked:
        if isinstance(asked.code, str):
            print(visible_lines(asked.code), file=sys.stderr)
            return FAILED
        return asked.code or DONE
    except UserError as error:
        print(f"reelscale: {error}", file=sys.stderr)
        return MISTAKE
    except CommandFailed as error:
        print(visible_lines(f"reelscale: {error}"), file=sys.stderr)
    except Exception:
        print(visible_lines(traceback.format_exc()), end="", file=sys.stderr)
    return FAILED


def escape_what_stdout_lacks() -> None:
    """Have standard output print escapes for characters that its encoding lacks, as standard error does."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def end_process(code: int) -> NoReturn:
    """End this process at once and without clean-up, after its output is written.

    For ranks: a thread of gloo may be about to let go of a tensor, and an interpreter that is taken down meanwhile
    aborts, after all was well.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
