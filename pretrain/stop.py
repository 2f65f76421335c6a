"""Stopping on request: signals and a file only mark, all ranks agree at a step's end, the trainer acts."""

import signal
import threading
from pathlib import Path
from types import FrameType

from pretrain.engine.world import World

STOP_FILE = "stop"


class Stop:
    """Collects requests to stop: SIGTERM, SIGINT or SIGUSR1 on any rank, or a file `stop` in the run's folder."""

    def __init__(self, world: World, folder: Path) -> None:
        self._world, self._file, self._marked = world, folder / STOP_FILE, False
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
                signal.signal(number, self._mark)

    def agreed(self) -> bool:
        """Whether any rank was asked to stop. A collective: every rank gets the same answer."""
        wanted = self._marked or (self._world.rank == 0 and self._file.exists())
        return self._world.any(wanted)

    def clear(self) -> None:
        """Take the request back, once it was carried out."""
        if self._world.rank == 0:
            self._file.unlink(missing_ok=True)

    def _mark(self, number: int, frame: FrameType | None) -> None:
        self._marked = True
