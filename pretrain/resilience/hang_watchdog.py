"""A watchdog: a rank that takes no step for long writes where it hangs, and ends so that the run can go on."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pretrain.resilience.progress import TRAINING
from sharding.base.exit_codes import STOPPED
from sharding.base.settings import Seconds, Settings

log = logging.getLogger("reelscale")

_STDERR = 2
_POLL = 2.0  # seconds between two looks
_EXCUSED = 60.0  # seconds that an excuse holds
_REPORT_SECONDS = 30.0  # for writing and logging, which may hang on the disk that the run hangs on


class WatchdogSettings(Settings):
    """When a run counts as hung."""

    stall_seconds: Annotated[Seconds, Field(description="seconds without a step after which a run is ended")] = 1800


class Watchdog:
    """Watches this process inside a `with`; `beat` at each step.

    Without a beat for `stall_seconds` it writes the Python stacks of all threads to FOLDER/stacks/rank-NNNN.txt, logs
    who hangs, and ends the process with exit code 75. The others of the attempt, which see FOLDER/stacks/hung-NNNNNN
    where they share the folder, do the same within seconds, whatever they wait for. It works while the main thread is
    in a call that does not return; should that call keep Python's lock too, the stacks go to standard error and the
    exit code is 1.
    """

    def __init__(self, folder: Path, rank: int, attempt: int, stall_seconds: float) -> None:
        """`attempt`: of the run: hung ranks of an older one, still there, do not end those of a newer one."""
        self._stacks = folder / "stacks"
        self._hung = self._stacks / f"hung-{attempt:06d}"
        self._excused = self._stacks / f"excused-{attempt:06d}"
        self._rank, self._attempt, self._stall = rank, attempt, stall_seconds
        self._allowed = stall_seconds
        self._beat = time.monotonic()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self.beat()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def beat(self) -> None:
        """Note that this rank has taken a step."""
        self._beat = time.monotonic()

    def excuse(self) -> None:
        """Allow this rank, while it waits for a store, and the others, who may wait for it, one more minute."""
        TRAINING.wait()
        self.beat()
        with contextlib.suppress(OSError):
            self._stacks.mkdir(parents=True, exist_ok=True)
            self._excused.touch()

    @contextlib.contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """Inside the `with`, allow that long without a beat, if that is more: to compile, evaluate or save."""
        before, self._allowed = self._allowed, max(self._allowed, seconds)
        self.beat()
        try:
            yield
        finally:
            self.beat()
            self._allowed = before

    def _watch(self) -> None:
        poll = min(_POLL, self._stall / 4)
        try:
            while not self._over.wait(poll):
                # Ends the process where this thread does not come back here: another keeps Python's lock.
                faulthandler.dump_traceback_later(self._allowed + 2 * poll, exit=True, file=_STDERR)
                silent = time.monotonic() - self._beat
                if silent > self._allowed and self._is_excused():
                    self.beat()
                elif silent > self._allowed:
                    self._end(f"has taken no step for {silent:.0f} s")
                elif self._is_hung():
                    self._end(f"ends because another rank hangs (its own last step: {silent:.0f} s ago)")
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _is_hung(self) -> bool:
        try:
            return self._hung.exists()
        except OSError:
            return False

    def _is_excused(self) -> bool:
        """Whether a rank has said so lately. By this machine's clock and the disk's, which may differ by seconds."""
        try:
            return abs(time.time() - self._excused.stat().st_mtime) < _EXCUSED
        except OSError:
            return False

    def _end(self, why: str) -> None:
        faulthandler.dump_traceback_later(2 * _REPORT_SECONDS, exit=True, file=_STDERR)
        reporter = threading.Thread(target=self._report, args=(why,), name="watchdog-report", daemon=True)
        reporter.start()
        reporter.join(_REPORT_SECONDS)
        # Until all have seen the file: who goes first breaks the others' collectives, rank 0 their liveness store, too.
        time.sleep((4 if self._rank == 0 else 2) * min(_POLL, self._stall / 4))
        os._exit(STOPPED)  # schedulers start such a command again: it goes on from the last checkpoint

    def _report(self, why: str) -> None:
        who = f"rank {self._rank} on {socket.gethostname()} {why}"
        path = self._stacks / f"rank-{self._rank:04d}.txt"
        stacks = f"stacks in {path}"
        try:
            self._stacks.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:  # an older attempt's stay, to be compared
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} attempt {self._attempt}: {who}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
                file.write("\n")
            with self._hung.open("a") as file:
                file.write(f"{who}\n")
        except OSError as error:
            stacks = f"stacks on standard error, because of {error}"
            faulthandler.dump_traceback(_STDERR, all_threads=True)
        log.error("%s; %s; the same command goes on from the last checkpoint", who, stacks)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
