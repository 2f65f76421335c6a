"""Part of the benchmarks: work in a process of its own, so that a fault of one contender is not the next one's."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from typing import Any


class ChildFailed(Exception):
    """The process died, or said nothing for too long."""


def in_a_child(work: Callable[..., Iterator[Any]], *arguments: Any, patience: float) -> Iterator[Any]:
    """What `work(*arguments)` yields in a fresh process, as it comes: plain values, of a function of a module.

    Tensors do not come through: torch would share their memory, which ends with the process.

    All processes are forks of one that has imported torch and has touched no GPU. One whose words nobody takes any
    more is killed. Raises ChildFailed if it dies, or is silent for `patience` seconds.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch"])  # and nothing that could ask for a GPU, which a fork cannot have after
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sending, work, arguments))
    process.start()
    sending.close()
    try:
        while True:
            if not receiving.poll(patience):
                raise ChildFailed(f"silent for {patience:g} s")
            try:
                yield receiving.recv()
            except EOFError:
                break
        process.join(30)
        if process.exitcode:
            raise ChildFailed(f"died with exit code {process.exitcode}")
    finally:
        process.kill()
        process.join(30)
        receiving.close()


def _send(sending: Connection, work: Callable[..., Iterator[Any]], arguments: tuple[Any, ...]) -> None:
    for each in work(*arguments):
        sending.send(each)
    sending.close()
