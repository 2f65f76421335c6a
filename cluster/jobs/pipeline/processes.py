"""A pipeline run: its stages as processes of this command, side by side where they may be, watched to their ends."""

import datetime
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import IO, Any

from cluster.jobs.pipeline.plan import Plan, PlannedStage
from cluster.jobs.pipeline.records import (
    StageRecord,
    log_file,
    read_records,
    record_of,
    sole_use,
    state_of,
    write_record,
)
from cluster.launch.signals import raise_if_interrupted
from sharding.base import environment
from sharding.base.child_process import end_children, signal_of
from sharding.base.exit_codes import DONE, FAILED, MISTAKE, STOPPED
from sharding.base.parent_death import dying_with, stop_signals
from sharding.base.printable import visible, visible_lines
from sharding.base.user_paths import writing

_LOOK_SECONDS = 0.05
_LAST_LINES_SECONDS = 5.0  # of a stage that has ended, while a process of its own may still hold the pipe
_NOT_BEGUN = (-signal.SIGTERM, -signal.SIGINT)


@dataclass(frozen=True)
class StageEnd:
    """How a stage ended in this run: `outcome` is done, skipped, stopped, failed or not begun."""

    stage: str
    outcome: str
    exit_code: int | None = None
    seconds: float = 0.0
    tries: int = 0


@dataclass
class _Running:
    """A stage at work."""

    stage: PlannedStage
    process: subprocess.Popen[bytes]
    reader: threading.Thread
    tries: int
    begin: float = field(default_factory=time.monotonic)


def run_pipeline(plan: Plan, show: Callable[[str], None], again: Sequence[str] = ()) -> tuple[int, list[StageEnd]]:
    """Run what is not done of a pipeline; its exit code, and how each stage ended.

    A stage that fails ends the pipeline with its exit code, once the others have stopped and saved; of a plan that
    keeps going, once all have ended that do not need it. Signals that ask
    to stop are passed on as SIGTERM: 75. When this process dies, even by kill -9, the stages die with it. `show` gets
    every line that a stage prints, with the stage's name before it, and a line on each begin and end. `again`: stages
    that run although they are done.
    """
    with sole_use(plan.folder):
        raise_if_interrupted()
        return _Run(plan, show, again).to_the_end()


class _Run:
    """One run of a plan, from its first stage to its last or to the first that fails."""

    def __init__(self, plan: Plan, show: Callable[[str], None], again: Sequence[str]) -> None:
        self._plan, self._show, self._again = plan, show, again
        self._records: dict[str, StageRecord] = read_records(plan)
        self._running: list[_Running] = []
        self._ends: dict[str, StageEnd] = {}
        self._asked = False
        self._code = DONE

    def to_the_end(self) -> tuple[int, list[StageEnd]]:
        """The exit code, and the end of each stage."""
        with self._signals_passed_on():
            try:
                while self._start_ready() or self._running:
                    time.sleep(_LOOK_SECONDS)
                    for running in [each for each in self._running if each.process.poll() is not None]:
                        self._running.remove(running)
                        self._ended(running)
            finally:
                end_children([running.process for running in self._running])
        left = [stage.name for stage in self._plan.stages if stage.name not in self._ends]
        if self._asked and self._code == DONE and left:
            self._code = STOPPED
        if self._code == STOPPED:
            print("reelscale: stopped; what is done is kept, the same command goes on", file=sys.stderr)
        ends = [self._ends.get(stage.name, StageEnd(stage.name, "not begun")) for stage in self._plan.stages]
        return self._code, ends

    @property
    def _ending(self) -> bool:
        """Whether no more stages begin: by a signal, or since one has failed."""
        return self._asked or (self._code != DONE and not self._plan.keep_going)

    def _start_ready(self) -> bool:
        """Start the stages that may begin, and pass over those that are done; whether there was any."""
        any_ready = False
        for stage in self._plan.stages:
            if self._ending or len(self._running) >= self._plan.parallel:
                return any_ready
            done = {name for name, end in self._ends.items() if end.outcome in ("done", "skipped")}
            begun = {*self._ends, *(running.stage.name for running in self._running)}
            if stage.name in begun or not done.issuperset(stage.needs):
                continue
            any_ready = True
            state = state_of(stage, self._records, again=stage.name in self._again)
            if state.state == "done":
                self._show(f"{stage.name}: done already")
                self._ends[stage.name] = StageEnd(stage.name, "skipped")
                continue
            if state.reason:
                self._show(visible(f"{stage.name}: runs again, and so does what needs it: {state.reason}"))
            self._start(stage, tries=1)
        return any_ready

    def _start(self, stage: PlannedStage, tries: int) -> None:
        said = f"$ reelscale {shlex.join(stage.words)}"
        self._show(visible(said))
        with writing(self._plan.folder, "folder"):
            log = log_file(self._plan.folder, stage.name).open("ab")
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            log.write(f"== {now} {visible(said)}\n".encode())
            log.flush()
        # In a session of its own: a terminal's Ctrl-C comes to this process alone, which passes it on.
        process = subprocess.Popen(
            dying_with(os.getpid(), [sys.executable, "-m", "cluster.cli", *stage.words]),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env=environment.of_a_stage(),
        )
        reader = threading.Thread(target=self._copy, args=(stage.name, process.stdout, log), daemon=True)
        reader.start()
        self._running.append(_Running(stage, process, reader, tries))
        if self._asked:
            process.terminate()  # a signal meets only the stages that are in the list by then

    def _copy(self, name: str, pipe: IO[bytes], log: IO[bytes]) -> None:
        """Show a stage's lines and keep them, until it has closed its end."""
        with pipe, log:
            for line in pipe:
                with suppress(OSError):  # a full disk or a closed terminal ends no stage that needs none
                    log.write(line)
                    log.flush()
                with suppress(OSError):
                    self._show(f"[{name}] {visible_lines(line.decode(errors='replace').rstrip())}")

    def _ended(self, running: _Running) -> None:
        """Keep that a stage is done, try it once more, or have the pipeline end with it."""
        stage, code = running.stage, running.process.returncode
        running.reader.join(_LAST_LINES_SECONDS)
        seconds = time.monotonic() - running.begin
        if code == DONE:
            self._records[stage.name] = record_of(stage, self._records, seconds)
            write_record(self._plan.folder, self._records[stage.name])
            self._ends[stage.name] = StageEnd(stage.name, "done", code, round(seconds, 1), running.tries)
            return
        ending = self._ending
        outcome = "stopped" if code == STOPPED or (ending and code in _NOT_BEGUN) else "failed"
        if outcome == "failed" and not ending and code != MISTAKE and running.tries <= stage.retries:
            self._show(f"{stage.name}: {_how(code)}; try {running.tries + 1} of {stage.retries + 1} begins")
            self._start(stage, running.tries + 1)
            return
        self._ends[stage.name] = StageEnd(stage.name, outcome, code, round(seconds, 1), running.tries)
        if outcome == "stopped":
            self._code = self._code or STOPPED
            self._show(f"{stage.name}: stopped with everything saved")
        elif self._code in (DONE, STOPPED) or self._plan.keep_going:
            self._code = MISTAKE if code == MISTAKE and self._code != FAILED else FAILED
            log = log_file(self._plan.folder, stage.name)
            remedy = "mend what it says; the same command goes on there"
            print(visible(f"reelscale: stage {stage.name} {_how(code)}; see {log}; {remedy}"), file=sys.stderr)
        if not self._plan.keep_going:
            self._ask_to_stop()

    @contextmanager
    def _signals_passed_on(self) -> Iterator[None]:
        def pass_on(number: int, frame: FrameType | None) -> None:
            self._asked = True
            self._ask_to_stop()

        before: dict[int, Any] = {number: signal.signal(number, pass_on) for number in stop_signals()}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask_to_stop(self) -> None:
        for running in self._running:
            if running.process.poll() is None:
                running.process.terminate()


def _how(code: int) -> str:
    """How a process ended, in words."""
    name = signal_of(code)
    return f"was ended by {name}" if name else f"ended with exit code {code}"
