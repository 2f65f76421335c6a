"""A process that saves checkpoints again and again, to be killed, starved of disk or cut off from its store."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from pretrain.checkpoints.checkpoint import CheckpointSettings
from sharding.base.errors import UserError
from tests.support.training.checkpoints import made, started


@dataclass(frozen=True)
class Child:
    """A process that saves, and what it reports: each step once it is begun and once it is saved, or what failed."""

    process: BaseProcess
    reports: Connection

    def next(self) -> tuple[str, int | str]:
        """The next of its reports."""
        assert self.reports.poll(120)
        return self.reports.recv()  # type: ignore[no-any-return]

    def rest(self) -> list[tuple[str, int | str]]:
        """What it reported before it ended."""
        rest = []
        with contextlib.suppress(EOFError):
            while True:
                rest.append(self.next())
        return rest

    def kill(self) -> None:
        """End it as `kill -9` does."""
        self.process.kill()
        self.process.join()


@contextlib.contextmanager
def saving(
    run: Path, megabytes: float, store: str | None = None, limit: int | None = None, **environment: str
) -> Iterator[Child]:
    """A process that saves from the newest step on until it is killed or cannot. limit: bytes a file may have."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once
    ours, its = context.Pipe(duplex=False)
    process = context.Process(target=_save, args=(its, run, megabytes, store, limit, environment))
    process.start()
    its.close()
    child = Child(process, ours)
    try:
        yield child
    finally:
        child.kill()


def _save(
    reports: Connection, run: Path, megabytes: float, store: str | None, limit: int | None, environment: dict[str, str]
) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment)
    if limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    settings = CheckpointSettings(keep=2, store=store)
    checkpointer = started(run, settings)
    step = max((int(path.name[5:]) for path in (run / "checkpoints").glob("step-*")), default=0)
    try:
        while True:
            step += 1
            checkpointer.save(made(step, megabytes))
            reports.send(("begun", step))
            checkpointer.finish()
            reports.send(("saved", step))
    except UserError as error:
        reports.send(("failed", str(error)))
