"""Progress of long work: a bar on a terminal, plain lines in a log."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, TextIO

from sharding.base.printable import visible

_SECONDS_BETWEEN_LINES = 5.0
_SILENT_SECONDS = 0.5  # that a command may be before it says what it does
_AGAIN_SECONDS = 15.0


class Advance(Protocol):
    """A function that shows that `count` more are done, with a line on how it goes."""

    def __call__(self, count: int, line: str = "") -> None:
        """Show it at once on a terminal, every few seconds in a log."""


@contextmanager
def progress(what: str, total: int) -> Iterator[Advance]:
    """A context manager with an `Advance` for `total` of `what`.

    Everything goes to standard error, which leaves standard output to results.
    """
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn(visible(what), markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[line]}", markup=False),
        )
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(what, total=total, line="")
            yield lambda count, line="": bar.update(task, advance=count, line=visible(line))
        return
    done, shown, printed = 0, time.monotonic(), -1

    def advance(count: int, line: str = "") -> None:
        nonlocal done, shown, printed
        done += count
        if (done == total and printed != total) or time.monotonic() - shown > _SECONDS_BETWEEN_LINES:
            shown, printed = time.monotonic(), done
            print(
                "  ".join(filter(None, (visible(f"{what}: {done}/{total}"), visible(line)))),
                file=sys.stderr,
                flush=True,
            )

    yield advance


@contextmanager
def working(what: str, silent_seconds: float = _SILENT_SECONDS, stream: TextIO | None = None) -> Iterator[None]:
    """Inside the `with`, in which nothing else is printed, standard error, or `stream`, says what is done.

    After `silent_seconds`, and every so often how long it takes: what is done sooner is not worth a line.
    """
    over, begin = threading.Event(), time.monotonic()

    def tell() -> None:
        wait = silent_seconds
        while not over.wait(wait):
            seconds = time.monotonic() - begin
            since = f", for {seconds:.0f} s" if wait == _AGAIN_SECONDS else ""
            print(visible(f"{what}{since} ..."), file=stream or sys.stderr, flush=True)
            wait = _AGAIN_SECONDS

    teller = threading.Thread(target=tell, daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()
