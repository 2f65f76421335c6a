"""Autotuning in a child process: a kernel that crashes or hangs ends the child, and the run takes another compute path.

On a GPU a kernel that reads where it must not ends the context of the whole process that sent it.
"""

from __future__ import annotations

import json
import logging
import os
import select
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from pydantic import BaseModel

from pretrain.engine.autotune.process import MODULE, PRESTARTED, CannotStart
from pretrain.engine.autotune.record import AutotuneResult
from pretrain.engine.deepspeed_config import EngineSettings
from pretrain.engine.precision import MicroStep
from pretrain.models.zoo import ModelSettings
from sharding.base.errors import UserError

log = logging.getLogger("reelscale")

LIMIT = 90.0  # seconds without a word, after which the child is taken to hang
_TO_START = 180.0  # and until the first one: it loads torch, beside other ranks that do
_TRIES = 2  # of what is no compute path, and ends the child


def _nothing() -> None:
    pass


class NetworkSpec(BaseModel):
    """All that a child process builds a run's network and engine from; rates as `parameter_groups` takes them."""

    model: ModelSettings
    classes: int
    rates: dict[str, float]
    engine: EngineSettings
    ranks: int


class AutotuneTask(BaseModel):
    """What a child is to do, and what those before it found out. As JSON, what it is given.

    names: compute paths that are to be measured; recomputed: as asked for; planar: once decided, the layers that are
    faster as 2D ones; fewest: groups that are recomputed at the least; rates: clips/s of the compute paths that were
    measured.
    """

    spec: NetworkSpec
    training: MicroStep
    device: str
    names: list[str]
    recomputed: int | None
    planar: list[str] | None = None
    fewest: int = 0
    rates: dict[str, float] = {}
    failed: list[str] = []


def autotune_in_child(
    spec: NetworkSpec,
    training: MicroStep,
    device: torch.device,
    names: Sequence[str],
    recomputed: int | None = None,
    limit: float = LIMIT,
    module: str = MODULE,
    meanwhile: Callable[[], object] = _nothing,
) -> AutotuneResult:
    """The fastest compute path that also takes steps of the whole engine, as measured by a process of its own.

    A compute path on which the child dies, or says nothing for `limit` seconds, is left out with a warning, and another
    child goes on with the others. `meanwhile` is called once, while the first one works. Raises CannotStart if none can
    begin or last, UserError for clips that do not fit into memory, and RuntimeError if no compute path is left.
    """
    task = AutotuneTask(spec=spec, training=training, device=str(device), names=list(names), recomputed=recomputed)
    tries = 0
    while True:
        progress = _Progress(task)
        end = _run(task, progress, limit, module, meanwhile)
        meanwhile = _nothing
        if progress.result is not None:
            return progress.result.without(task.failed)
        if not progress.began:
            raise CannotStart(end)
        if progress.compute_path is None:
            tries += 1
            if tries == _TRIES:
                raise CannotStart(f"it {end}, at {progress.under_way}, twice")
            if task.planar is None:
                task.planar = []
            continue
        log.warning(
            "the compute path %s is left out: %s, its process %s", progress.compute_path, progress.under_way, end
        )
        progress.fail(progress.compute_path)
        if not task.names and not task.rates:
            raise RuntimeError("no compute path runs this network on this device; the warnings above say why")


class _Progress:
    """What a child says, entered into its task."""

    def __init__(self, task: AutotuneTask) -> None:
        self.began, self.under_way = False, "its start"
        self.compute_path: str | None = None  # that is under way
        self.result: AutotuneResult | None = None
        self._task, self._all = task, [*task.names, *task.rates]

    def enter(self, word: str, value: Any) -> None:
        """Take note of one word of the child's. Raises the error that it tells."""
        task = self._task
        if word == "ready":
            self.began = True
        elif word == "begins":
            self.under_way, self.compute_path = value["what"], value["compute_path"]
        elif word == "decided":
            if value["recomputed"] > task.fewest:  # the former times are of another way to compute
                task.names, task.rates = [name for name in self._all if name not in task.failed], {}
            task.planar, task.fewest = value["planar"], value["recomputed"]
        elif word == "timed":
            task.rates[value["name"]] = value["rate"]
            task.names = [name for name in task.names if name != value["name"]]
        elif word == "failed":
            self.fail(value)
        elif word == "found":
            self.result = AutotuneResult.model_validate(value)
        elif word == "log":
            log.log(value["level"], "%s", value["message"])
        elif word == "mistake":
            raise UserError(*value)
        elif word == "error":
            raise RuntimeError(value)

    def fail(self, name: str) -> None:
        """Leave a compute path out."""
        self._task.failed.append(name)
        self._task.names = [other for other in self._task.names if other != name]
        self._task.rates.pop(name, None)


def _run(task: AutotuneTask, progress: _Progress, limit: float, module: str, meanwhile: Callable[[], object]) -> str:
    """One child, until it has ended: how it did, in words."""
    child = PRESTARTED.take(module)
    try:
        child.give(task)
        meanwhile()
        text = b""
        patience = max(limit, _TO_START)
        deadline = time.monotonic() + patience
        while True:
            ready, _, _ = select.select([child.words], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                return f"says nothing for {patience:g} s"
            more = os.read(child.words, 1 << 16)
            if not more:
                return child.ended()
            *lines, text = (text + more).split(b"\n")
            for line in lines:
                progress.enter(**json.loads(line))
            if progress.result is not None:
                return "is done"
            patience = limit if progress.began else patience
            deadline = time.monotonic() + patience
    finally:
        child.end()
