"""Standard output kept clear for one result, and a process that ends once all is said."""

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import NoReturn

from sharding.base.exit_codes import DONE, FAILED
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


def end_process(code: str | int | None) -> NoReturn:
    """End this process as it is, with the code of a SystemExit, once what it said is out.

    For ranks: a thread of gloo may be about to let go of a tensor, and an interpreter that is taken down meanwhile
    aborts, after all was well.
    """
    if isinstance(code, str):
        print(visible_lines(code), file=sys.stderr)
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(FAILED if isinstance(code, str) else code or DONE)
