"""The main function of the process that autotunes: a task comes in, results go out as lines of JSON."""

from __future__ import annotations

import copy
import json
import logging
import os
import sys
from collections.abc import Sequence
from typing import Any

import torch

from pretrain.engine.autotune.benchmark import AutotuneListener, is_out_of_memory
from pretrain.engine.autotune.choose import autotune, device_name, lane_too_large, random_clips
from pretrain.engine.autotune.isolated import AutotuneTask, NetworkSpec
from pretrain.engine.autotune.record import AutotuneResult, library_versions
from pretrain.engine.deepspeed_import import import_deepspeed
from pretrain.engine.device_lost import is_device_lost
from pretrain.engine.distributed import World, leave_world, start_world
from pretrain.engine.engine import Engine
from pretrain.models.groups import freeze
from pretrain.models.network import VideoNetwork, seed_dropout
from pretrain.models.zoo import build_model
from sharding.base.errors import UserError
from sharding.base.exit_codes import FAILED
from sharding.base.printable import visible_lines

log = logging.getLogger("reelscale")

_STEPS = 2  # the second is the first with an optimizer's state, and after weights were moved


def main(words: int) -> None:
    """Load all, then do the task that stdin gives, and tell of it through the file descriptor `words`.

    Ends without a task where there comes none.
    """
    say = _Words(words)
    log.addHandler(say)
    log.setLevel(logging.INFO)
    log.propagate = False
    world = start_world()
    torch.zeros(1, device=world.device)  # fails where one process alone may have the GPU, which the parent does
    import_deepspeed(world.device)
    task = AutotuneTask.model_validate_json(sys.stdin.read())
    if str(world.device) != task.device:
        raise RuntimeError(f"it is to compute on {task.device}, and finds {world.device}")
    say.word("ready", None)
    try:
        say.word("found", found_by(task, world, say).model_dump())
    except UserError as error:
        say.word("mistake", [error.what, error.where, error.remedy])
    except Exception as error:
        if is_device_lost(error):  # another child goes on; leaving in order would ask the device
            print(visible_lines(error), file=sys.stderr, flush=True)
            os._exit(FAILED)
        say.word("error", f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
    leave_world()


def found_by(task: AutotuneTask, world: World, listener: _Words) -> AutotuneResult:
    """Measure what the task asks for; the result, with the fastest compute path that takes steps of the whole engine.

    Raises UserError for clips that do not fit into memory, RuntimeError if no compute path is left.
    """
    spec, training = task.spec, task.training
    listener.begins("building")
    torch.backends.cudnn.benchmark = False  # what it would try out here, the run would try again
    torch.manual_seed(0)
    frames, size = training.clip[1:3]
    model = build_model(spec.model, spec.classes, frames, size)
    freeze(model, spec.rates)
    model.to(world.device)
    rates, names, fewest = task.rates, task.names, task.fewest
    while True:
        result = AutotuneResult(
            compute_path="",
            planar=task.planar or [], recomputed=fewest if task.recomputed is None else task.recomputed,
            device=device_name(world.device), batch=training.batch, precision=training.precision, clips_per_second={},
            made_by=library_versions(),
        )  # fmt: skip
        if names:
            result = autotune(
                model, training, world.device, names, task.recomputed, listener, planar=task.planar, fewest=fewest
            )
        if names and result.recomputed != fewest:
            rates = {}
        rates = {**rates, **result.clips_per_second}
        result = result.model_copy(update={"clips_per_second": rates}).without(task.failed)
        chosen = _trains(result, model, task, world, listener)
        if chosen is not None:
            return chosen
        # Too little memory, which measuring alone had.
        if task.recomputed is not None or result.recomputed == len(model.stages):
            raise lane_too_large(training, task.recomputed is not None and task.recomputed < len(model.stages))
        task.planar, fewest = result.planar, result.recomputed + 1
        names, rates = [name for name in [*task.names, *result.clips_per_second] if name not in task.failed], {}


def _trains(
    result: AutotuneResult, model: VideoNetwork, task: AutotuneTask, world: World, listener: _Words
) -> AutotuneResult | None:
    """With the fastest compute path that takes whole steps; None where memory is short, as it is in the run then."""
    while result.compute_path:
        listener.begins(f"training by {result.compute_path}", result.compute_path)
        try:
            _take_steps(copy.deepcopy(model), result, task, world)
            return result
        except Exception as error:
            reason = str(error).partition("\n")[0]
            if is_device_lost(error):
                raise
            if is_out_of_memory(error):
                if task.spec.ranks == 1:
                    return None
                return result  # of several ranks each holds less than this one
            log.warning("the compute path %s does not train here: %s", result.compute_path, reason)
            listener.failed(result.compute_path, reason)
            result = result.without([result.compute_path])
    raise RuntimeError("no compute path trains this network on this device; the warnings above say why")


def _take_steps(model: VideoNetwork, result: AutotuneResult, task: AutotuneTask, world: World) -> None:
    training = task.training
    model.use(result.by_name(result.compute_path))
    engine = Engine(model, _own(task.spec), world, 1, training.batch, training.joint_batch_norm, task.spec.rates)
    engine.set_learning_rate(1e-4)
    clips = random_clips(training.batch, training.clip).to(world.device)
    try:
        for _ in range(_STEPS):
            seed_dropout(model, [0], world.device)
            engine.backward(engine.forward(clips).square().mean())
            engine.step()
            engine.record_verdict(bool(engine.verdict[0]))
        if world.device.type == "cuda":
            torch.cuda.synchronize(world.device)
    except Exception as error:
        if not is_device_lost(error):  # which is then asked for nothing any more
            engine.close()
        raise


def _own(spec: NetworkSpec) -> Any:
    """The run's engine settings without what would write or print beside the run."""
    theirs = {name: value for name, value in spec.engine.deepspeed.items() if name == "zero_optimization"}
    return spec.engine.model_copy(update={"deepspeed": theirs})


class _Words(logging.Handler, AutotuneListener):
    """Sends to the parent what is under way, what was measured, and the log."""

    def __init__(self, descriptor: int) -> None:
        logging.Handler.__init__(self)
        self._descriptor = descriptor

    def word(self, word: str, value: Any) -> None:
        """One line. A parent that is gone has ended this process."""
        line = json.dumps({"word": word, "value": value}).encode() + b"\n"
        while line:
            line = line[os.write(self._descriptor, line) :]

    def emit(self, record: logging.LogRecord) -> None:
        """A line of the log."""
        self.word("log", {"level": record.levelno, "message": record.getMessage()})

    def begins(self, what: str, compute_path: str | None = None) -> None:
        """What is under way, and by which compute path."""
        self.word("begins", {"what": what, "compute_path": compute_path})

    def decided(self, planar: Sequence[str], recomputed: int) -> None:
        """See AutotuneListener."""
        self.word("decided", {"planar": list(planar), "recomputed": recomputed})

    def timed(self, name: str, clips_per_second: float) -> None:
        """See AutotuneListener."""
        self.word("timed", {"name": name, "rate": clips_per_second})

    def failed(self, name: str, reason: str) -> None:
        """See AutotuneListener."""
        self.word("failed", name)
