"""Ranks that a launcher started and the lanes have no use for: they wait, outside the process group, for the run's end.

The first rank says by the store at which the ranks meet that it lives, and how the run ended.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

from pretrain.resilience.stop_signal import Stop
from sharding.base import environment
from sharding.base.errors import CommandFailed
from sharding.base.exit_codes import FAILED

log = logging.getLogger("reelscale")

_BEAT, _OVER, _LEFT = "reelscale spares beat", "reelscale spares over ", "reelscale spares left "
_BEAT_SECONDS = 2.0
_FAREWELL_SECONDS = 10.0  # that the first rank waits for spare ranks to have read how the run ended
_CONNECT_SECONDS = 1800.0  # as long as ranks wait for each other
_LOST_SECONDS = 120.0


class EndOfRun:
    """The exit code with which this rank's run ends, for those that wait; FAILED until it is set."""

    def __init__(self) -> None:
        self.code = FAILED


@contextmanager
def tells_spares(spares: int) -> Iterator[EndOfRun]:
    """Inside the `with` the first rank says to `spares` spare ranks that it lives, and at its end its exit code.

    On other ranks, and where no rank is spare, it does nothing.
    """
    end = EndOfRun()
    if spares == 0 or environment.rank() != 0:
        yield end
        return
    store, start, over = _store(hosts=not environment.torchrun_hosts_store()), uuid.uuid4().hex, threading.Event()
    beating = threading.Thread(target=_beat, args=(store, start, over), name="spares", daemon=True)
    beating.start()
    try:
        yield end
    finally:
        with suppress(RuntimeError):
            store.set(_OVER + start, str(end.code))
            deadline = time.monotonic() + _FAREWELL_SECONDS
            while store.add(_LEFT + start, 0) < spares and time.monotonic() < deadline:
                time.sleep(0.1)
        over.set()
        beating.join()


def wait_as_spare(folder: Path) -> int:
    """The exit code of the run, once it has ended; a signal ends this process before, with STOPPED.

    Raises CommandFailed where the ranks that train have gone without a word.
    """
    with Stop(folder):
        try:
            return _wait(_store(hosts=False))
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            raise CommandFailed(f"the ranks that train are gone: their store does not answer ({reason})") from error


def _wait(store: Any) -> int:
    """What the first rank says at its end: a start counts as this one's once it was seen to live."""
    start, seen, heard = "", "", time.monotonic()
    longest = _CONNECT_SECONDS
    while time.monotonic() - heard < longest:
        beat = store.get(_BEAT).decode() if store.check([_BEAT]) else ""
        if beat != seen:
            if beat.split()[0] == (seen.split() or [""])[0]:
                start, longest = beat.split()[0], _LOST_SECONDS
            seen, heard = beat, time.monotonic()
        if start and store.check([_OVER + start]):
            code = int(store.get(_OVER + start))
            store.add(_LEFT + start, 1)
            return code
        time.sleep(_BEAT_SECONDS / 4)
    raise CommandFailed(f"the ranks that train are gone: nothing was heard of the first for {longest:g} s")


def _beat(store: Any, start: str, over: threading.Event) -> None:
    count = 0
    while True:
        with suppress(RuntimeError):
            store.set(_BEAT, f"{start} {count}")
        count += 1
        if over.wait(_BEAT_SECONDS):
            return


def _store(hosts: bool) -> Any:
    """The store at which the ranks meet; `hosts`: served by this process, for the process group, too."""
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # torch does not list it as exported

    host, port = environment.variable(environment.MASTER_ADDR), int(environment.variable(environment.MASTER_PORT))
    return TCPStore(
        host, port, is_master=hosts, wait_for_workers=False, multi_tenant=True,
        timeout=timedelta(seconds=_CONNECT_SECONDS),
    )  # fmt: skip
