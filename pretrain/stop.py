"""Stopping on request: signals and a file only mark; ranks agree at a step's end, and the trainer acts."""

import signal
import threading
from pathlib import Path
from types import FrameType

STOP_FILE = "stop"


class Stop:
    """Collects requests to stop: SIGTERM, SIGINT or SIGUSR1, or a file `stop` in the run's folder (rank 0 looks)."""

    def __init__(self, folder: Path, looks: bool) -> None:
        self._file, self._looks, self._marked = folder / STOP_FILE, looks, False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                signal.signal(number, self._mark)

    @property
    def wanted(self) -> bool:
        """Whether this rank was asked to."""
        return self._marked or (self._looks and self._file.exists())

    def clear(self) -> None:
        """Take the request back, once it was carried out."""
        if self._looks:
            self._file.unlink(missing_ok=True)

    def _mark(self, number: int, frame: FrameType | None) -> None:
        self._marked = True
