"""The live view: a thread looks again and again, and the terminal shows what it saw last, until Ctrl-C or the end."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from cluster.launch.signals import Interrupted
from cluster.status.states import Snapshot
from cluster.status.view import Page
from sharding.base.errors import CommandFailed, UserError

_BETWEEN_SECONDS = 1.5  # two looks
_DRAW_SECONDS = 1.0
_WIDE = 160  # columns of what is printed into a file or a pipe


class _Looker:
    """Looks again and again, in a thread: neither a process that hangs nor a cluster holds up who draws."""

    def __init__(self, look: Callable[[], Snapshot]) -> None:
        self._look = look
        self.snapshot: Snapshot | None = None
        self.failure: Exception | None = None  # of the last look
        self.news = threading.Event()
        threading.Thread(target=self._run, name="status-look", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self.snapshot, self.failure = self._look(), None
            except Exception as error:  # whatever it is, who draws says so, or raises it
                self.failure = error
            self.news.set()
            time.sleep(_BETWEEN_SECONDS)


def is_live_terminal() -> bool:
    """Whether standard output is a terminal on which lines can be drawn anew."""
    return sys.stdout.isatty() and not Console().is_dumb_terminal


def print_once(snapshot: Snapshot, nothing: str) -> None:
    """Print a snapshot; `nothing`: what is said where there is nothing in it."""
    _print(Console(width=None if sys.stdout.isatty() else _WIDE, highlight=False), snapshot, nothing)


def show_live(look: Callable[[], Snapshot], nothing: str, until_ended: bool) -> None:
    """Show what `look` sees until a signal asks to stop, or with `until_ended` until it has all ended.

    What was seen last stays on the terminal. Raises what the first look raises.
    """
    console = Console(highlight=False)
    looker = _Looker(look)
    try:
        with Live(console=console, screen=True, auto_refresh=False) as live:
            while True:
                snapshot = looker.snapshot
                if snapshot is None and looker.failure is not None:
                    raise looker.failure
                live.update(_drawn(console, snapshot, looker.failure, nothing), refresh=True)
                if until_ended and snapshot is not None and snapshot.has_ended:
                    break
                looker.news.wait(_DRAW_SECONDS)
                looker.news.clear()
    except Interrupted:
        pass
    if looker.snapshot is not None:
        _print(console, looker.snapshot, nothing)


def _drawn(console: Console, snapshot: Snapshot | None, failure: Exception | None, nothing: str) -> RenderableType:
    """What is drawn of the last look; after one that failed of the last but one, and why it did."""
    if snapshot is None:
        return Text("asking ...")
    if snapshot.is_empty:
        return Text(f"{nothing}; Ctrl-C ends this view")
    if failure is not None:
        snapshot = replace(snapshot, notes=[*snapshot.notes, _in_words(failure)])
    return Page(console.width, console.height, console.encoding).lay_out(snapshot, "Ctrl-C ends this view")


def _print(console: Console, snapshot: Snapshot, nothing: str) -> None:
    page = Page(console.width, None, console.encoding).lay_out(snapshot)
    console.print(Text(nothing) if snapshot.is_empty else page, soft_wrap=True)


def _in_words(failure: Exception) -> str:
    if isinstance(failure, UserError):
        return failure.what
    return str(failure) if isinstance(failure, CommandFailed) else repr(failure)
