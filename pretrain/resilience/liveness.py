"""Ranks that die end the others: each rank shows that it lives (a heartbeat), and watches its neighbour's."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from datetime import timedelta
from types import TracebackType
from typing import Annotated, Self

import torch.distributed as dist
from pydantic import Field, model_validator

from pretrain.engine.distributed import RankLost, World, plain_reason
from sharding.base.exit_codes import FAILED
from sharding.base.settings import Seconds, Settings

log = logging.getLogger("reelscale")

_ANSWERS_WITHIN = timedelta(seconds=10)
_LOST = "lost"  # the key of the first rank whose heartbeat stayed out


class LivenessSettings(Settings):
    """When a rank counts as lost."""

    every_seconds: Annotated[Seconds, Field(description="seconds between two signs of life of a rank")] = 5.0
    lost_seconds: Annotated[
        Seconds,
        Field(
            description="seconds without a sign of life of a rank after which the others end, at least twice "
            "every_seconds"
        ),
    ] = 35.0

    @model_validator(mode="after")
    def _more_than_one_sign(self) -> Self:
        if self.lost_seconds < 2 * self.every_seconds:
            raise ValueError(
                f"lost_seconds={self.lost_seconds:g} end every run whose ranks show that they live each "
                f"every_seconds={self.every_seconds:g}; set lost_seconds to twice every_seconds or more"
            )
        return self


class LivenessMonitor:
    """While the `with` lasts, a thread ends this process (exit 1) once any rank has gone.

    A collective of NCCL waits hours for a rank that was killed (`longest_wait`), and a launcher that sees it die is not
    everywhere. A rank that is only slow shows that it lives: the thread needs nothing of the main one. Signs of life go
    through the store by which the ranks met, at rank 0. Each rank looks after the next one only, and whoever misses it
    tells all the others there.
    """

    def __init__(self, world: World, settings: LivenessSettings) -> None:
        self._world, self._settings = world, settings
        self._left, self._failed, self._reported = threading.Event(), False, False
        self._thread = threading.Thread(target=self._watch, name="liveness", daemon=True)

    def __enter__(self) -> Self:
        if self._world.size > 1:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """One that leaves in order is not missed; one that an error ends is.

        Where it is the loss of a rank that the log has already, the process ends here, without a second message.
        """
        self._failed = error is not None and not (self._reported and isinstance(error, RankLost))
        self._left.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _watch(self) -> None:
        # A connection of its own: a timeout is the whole connection's, and one that waits keeps it locked. The store
        # that init_process_group was given is torch's private matter (2.11 to 2.13), and has no public accessor.
        own = dist.distributed_c10d._get_default_store().clone()  # type: ignore[attr-defined]
        store = dist.PrefixStore("pulse", own)  # type: ignore[attr-defined]  # torch does not list it as exported
        store.set_timeout(_ANSWERS_WITHIN)
        rank, size = self._world.rank, self._world.size
        neighbour = (rank + 1) % size
        last_beat, since, beats = "", time.monotonic(), 0
        # torchrun keeps the store, and what older ranks reported there, when it starts ranks again.
        before: str | None = None
        while True:
            left = self._left.wait(self._settings.every_seconds)
            beats += 1
            if left and self._failed:
                return
            try:
                store.set(str(rank), "left" if left else str(beats))
                if left:
                    return
                reported = store.get(_LOST).decode() if store.check([_LOST]) else ""
                before = reported if before is None else before
                if reported != before:
                    self._end(*_parse(reported), reported=True)
                    return
                beat = store.get(str(neighbour)).decode() if store.check([str(neighbour)]) else ""
            except (RuntimeError, ValueError) as error:  # what torch raises of a store that is gone
                self._end(0, plain_reason(error), reported=False)
                return
            if beat != last_beat or beat == "left":
                last_beat, since = beat, time.monotonic()
            elif time.monotonic() - since > self._settings.lost_seconds:
                why = f"no sign of life for {self._settings.lost_seconds:g} s"
                self._end(*_report(store, before, neighbour, why), reported=True)
                return

    def _end(self, lost: int, why: str, reported: bool) -> None:
        """End this process. `reported`: the store says so, too, which the others have yet to read."""
        if self._left.is_set():
            return
        self._reported = True
        if lost == self._world.rank:
            log.error("rank %d: the others go on without it (%s); the same command joins them", lost, why)
        else:
            log.error("rank %d: rank %d is gone (%s); unless it tells an error of its own, the same command goes on "
                      "from the last checkpoint", self._world.rank, lost, why)  # fmt: skip
        for handler in log.handlers:
            handler.flush()
        sys.stdout.flush()
        if reported:
            # Whoever ends breaks the others' collectives, and rank 0 takes the store along.
            beats = 2 if self._world.rank == 0 else 1
            time.sleep(min(beats * self._settings.every_seconds, self._settings.lost_seconds))
            if self._failed:
                return  # the main thread has an error of its own to tell
        os._exit(FAILED)


def _report(
    store: dist.Store,  # type: ignore[name-defined]  # torch does not list it as exported
    before: str,
    lost: int,
    why: str,
) -> tuple[int, str]:
    """The lost rank and why, as all ranks read it in the store from now on: what the first has reported stays.

    `before`: what the store held when the ranks began, from which any report of theirs differs.
    """
    try:
        return _parse(store.compare_set(_LOST, before, f"{lost} {time.time_ns()} {why}").decode())
    except (RuntimeError, ValueError):
        return lost, why


def _parse(report: str) -> tuple[int, str]:
    lost, _, why = report.split(" ", 2)
    return int(lost), why
