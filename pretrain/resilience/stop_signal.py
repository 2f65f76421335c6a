"""Stopping on request: signals and a file only mark; ranks agree at a step's end, and the trainer acts.

Before training has begun there is nothing to save: a signal ends the process at once.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import sys
import threading
from pathlib import Path
from types import FrameType
from typing import Self

from sharding.base import environment
from sharding.base.exit_codes import STOPPED
from sharding.base.parent_death import stop_signals

STOP_FILE, BEGUN_FILE = "stop", "begun"
NOT_BEGUN = "reelscale: stopped before training began; the same command starts it"
_LOOK_SECONDS = 0.5


class Stop:
    """Collects requests to stop: signals, or a file `stop` in the run's folder, at which rank 0 looks.

    A context manager. Until `begin` a signal ends this process with exit code 75, whatever it is in the middle of, as
    kill -9 may at any time. A thread does that: Python's own handler is not called while the main thread meets the
    other ranks, or computes by a network of which one call takes minutes.
    """

    def __init__(self, folder: Path) -> None:
        self._file, self._begun_file = folder / STOP_FILE, folder / BEGUN_FILE
        self._looks = self._marked = self._begun = False
        self._deciding, self._over = threading.Lock(), threading.Event()
        self._main = threading.current_thread() is threading.main_thread()
        self._thread = threading.Thread(target=self._watch, name="stop", daemon=True)

    def __enter__(self) -> Self:
        if self._main:
            self._woken, self._wakes = socket.socketpair()
            self._wakes.setblocking(False)
            for number in stop_signals():
                signal.signal(number, self._mark)
            signal.set_wakeup_fd(self._wakes.fileno(), warn_on_full_buffer=False)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Signals that come now end nothing, and mark nothing that is read."""
        self._listen_no_more()

    @property
    def wanted(self) -> bool:
        """Whether a signal has come to this rank; on rank 0, also whether the file `stop` is there."""
        return self._marked or (self._looks and self._file.exists())

    @property
    def asked(self) -> bool:
        """Whether a signal has come to this rank, or the file `stop` is there: at the cost of a look into the folder.

        For a rank that waits by itself, and does not hear from rank 0 meanwhile.
        """
        return self._marked or self._file.exists()

    def begin(self, looks: bool) -> None:
        """From now on requests only mark: there is something to save.

        `looks`: rank 0's, which says so by a file `begun`, with its process id, where a launcher follows the run.
        """
        with self._deciding:
            self._begun = True
        self._looks = looks
        if looks and environment.is_followed():
            self._begun_file.write_text(str(os.getpid()))
        self._listen_no_more()

    def clear(self) -> None:
        """Take the request back, once it was carried out."""
        if self._looks:
            self._file.unlink(missing_ok=True)

    def _mark(self, number: int, frame: FrameType | None) -> None:
        self._marked = True

    def _listen_no_more(self) -> None:
        """End the thread that ends the process; the handlers, which only mark, stay."""
        if self._thread.ident is None or self._over.is_set():
            return
        signal.set_wakeup_fd(-1)
        self._over.set()
        self._thread.join()
        self._woken.close()
        self._wakes.close()

    def _watch(self) -> None:
        asking = stop_signals()
        while not self._over.is_set():
            ready, _, _ = select.select([self._woken], [], [], _LOOK_SECONDS)
            if ready and any(number in asking for number in self._woken.recv(4096)):
                with self._deciding:
                    if not self._begun:
                        self._end()

    def _end(self) -> None:
        if environment.is_first_rank():
            print(NOT_BEGUN, file=sys.stderr, flush=True)
        os._exit(STOPPED)
