"""A table that grows by a line a check: what was seen, and below it what to do where something is to be mended."""

import sys
from collections import Counter

from sharding.base.printable import visible

_WORDS = {"ok": "ok", "warning": "warning", "wrong": "WRONG", "skipped": "skipped"}


class FindingsTable:
    """Prints findings as they come; on a terminal also the name of the check that is under way."""

    def __init__(self, width: int) -> None:
        self._width = width
        self._counts: Counter[str] = Counter()

    def begin(self, name: str) -> None:
        """Show on a terminal, until its finding comes, that a check is under way."""
        if sys.stderr.isatty():
            print(f"{'…':<8} {visible(name)}", end="\r", file=sys.stderr, flush=True)

    def add(self, name: str, state: str, what: str, remedy: str) -> None:
        """Print the finding of a check: its state is a Finding's."""
        self._counts[state] += 1
        if sys.stderr.isatty():
            print("\x1b[K", end="", file=sys.stderr, flush=True)
        print(f"{_WORDS[state]:<8} {visible(name):<{self._width}}  {visible(what)}")
        if remedy:
            print(f"{'':<8} {'':<{self._width}}  remedy: {visible(remedy)}")
        sys.stdout.flush()

    def end(self) -> None:
        """Print how many there were of each state."""
        print(", ".join(f"{self._counts[state]} {state}" for state in _WORDS if self._counts[state]))
