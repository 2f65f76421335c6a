"""A training run on a terminal: the ranks' lines, and below them a bar with where the run is and what it takes."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import IO, Any

from sharding.base.printable import visible_lines

_STEP = re.compile(r"step (\d+)/(\d+)  .*  loss (\S+)  .*?  (\S+) clips/s  ")
_ETA = re.compile(r"  ETA (.+)$")
_TIME = re.compile(r"^\d\d:\d\d:\d\d ")
_ENDS = ("validation at", "checkpoint ")  # of lines on what is over by then
_BEGINS = ("validating", "starting", "building", "going on", "room for", "training again")  # of what comes now
_JOIN_SECONDS = 5.0
_LONGEST = 40  # characters of what a run does


@dataclass(frozen=True)
class Position:
    """Where a run is, by its lines. `doing`: what it does when it does not take steps, in the log's words."""

    doing: str
    step: int = 0
    steps: int | None = None
    loss: str = ""
    rate: str = ""
    eta: str = ""

    def after(self, line: str) -> Position:
        """Where it is once it has logged this line."""
        if match := _STEP.search(line):
            step, steps, loss, rate = match.groups()
            eta = _ETA.search(line)
            return Position("training", int(step), int(steps), loss, rate, eta.group(1) if eta else "")
        words = _TIME.sub("", line)
        if words == line or words.startswith(_ENDS):
            return replace(self, doing="training") if words.startswith("validation at") else self
        if self.steps is None or words.startswith(_BEGINS):
            return replace(self, doing=words[:_LONGEST])
        return self

    @property
    def figures(self) -> str:
        """Loss, rate and time left, as far as they are known."""
        parts = [f"loss {self.loss}" if self.loss else "", f"{self.rate} clips/s" if self.rate else ""]
        return "  ".join(filter(None, [*parts, f"ETA {self.eta}" if self.eta else ""]))


class TrainingBar:
    """Prints the lines of a run's ranks; on a terminal above a bar that follows them."""

    def __init__(self, bar: Any = None) -> None:
        """`bar`: rich's, None where there is no terminal."""
        self._bar, self._position = bar, Position("starting")
        self._task = None if bar is None else bar.add_task("starting", total=None, figures="")
        self._lock = threading.Lock()  # of threads that follow processes
        self._followers: list[threading.Thread] = []

    def print(self, text: str) -> None:
        """Print whole lines, made harmless."""
        if self._bar is None:
            print(visible_lines(text), end="", flush=True)
            return
        with self._lock:
            for line in visible_lines(text).splitlines():
                self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
                self._position = self._position.after(line)
            at = self._position
            self._bar.update(self._task, description=at.doing, total=at.steps, completed=at.step, figures=at.figures)

    @property
    def of_process(self) -> dict[str, Any]:
        """Arguments of Popen for a process that is then followed: on a terminal its output comes here, not there."""
        return {} if self._bar is None else {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}

    def follow(self, process: subprocess.Popen[bytes]) -> None:
        """Print what a process prints, from now on."""
        if process.stdout is not None:
            self._followers.append(threading.Thread(target=self._print_all, args=(process.stdout,), daemon=True))
            self._followers[-1].start()

    def finish(self) -> None:
        """Wait until all is printed that processes have printed which have ended."""
        for follower in self._followers:
            follower.join(_JOIN_SECONDS)

    def _print_all(self, output: IO[bytes]) -> None:
        with output:
            for line in output:
                self.print(line.decode(errors="replace"))


@contextmanager
def training_bar() -> Iterator[TrainingBar]:
    """Inside the `with`, a run's lines are printed by the bar; it is drawn where all output goes to one terminal.

    It goes when the `with` ends: what stays are the lines.
    """
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if not (sys.stdout.isatty() and console.is_terminal) or console.is_dumb_terminal:
        yield TrainingBar()
        return
    columns = (
        SpinnerColumn("line"),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[figures]}", markup=False),
    )
    with Progress(*columns, console=console, transient=True, refresh_per_second=4) as bar:
        drawn = TrainingBar(bar)
        try:
            yield drawn
        finally:
            drawn.finish()
