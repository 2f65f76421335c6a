"""A step on trial: whether the whole engine runs its compute path on every rank, before training relies on it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import timedelta
from enum import IntEnum

import torch
from torch import Tensor

from pretrain.engine.autotune.benchmark import is_out_of_memory
from pretrain.engine.autotune.choose import lane_too_large, random_clips
from pretrain.engine.device_lost import is_device_lost
from pretrain.engine.engine import Engine
from pretrain.engine.precision import MicroStep, autocast
from pretrain.models.compute.batchnorm import discard_statistics
from pretrain.models.network import VideoNetwork, seed_dropout
from sharding.base.errors import UserError

log = logging.getLogger("reelscale")

_TO_COMPILE = timedelta(minutes=10)  # one rank's kernels, and what a library tries out, later than another's
_TO_EXCHANGE = timedelta(seconds=50)  # after a step in whose exchange all ranks have met
_ON_CPU = 2  # clips of a dry micro-step there, whose kernels are the same for more


class Outcome(IntEnum):
    """What came of a step on trial, on the rank where it went worst."""

    FINE = 0
    FAILED = 1
    TOO_LARGE = 2
    DEVICE_LOST = 3


def trial(engine: Engine, training: MicroStep) -> Outcome:
    """One whole step of noise, forward, backward and of the optimizer; the same outcome on all ranks. A collective.

    If it went well the engine is as before to the bit, otherwise of no further use; a lost device computes nothing any
    more in this process. The log says why. Raises UserError for clips that do not fit into the device's memory.
    """
    world = engine.world
    clips = random_clips(training.batch, training.clip).to(world.device)
    if world.size > 1 and not engine.forward_waits:
        # A rank that fails before it exchanges gradients leaves the others waiting for it: first without an exchange.
        few = clips if world.device.type == "cuda" else clips[:_ON_CPU]
        with world.host_maximum(_TO_COMPILE) as highest:
            outcome = Outcome(highest(_outcome(lambda: _dry_micro_step(engine, few, training), world.device)))
        if outcome == Outcome.TOO_LARGE:
            raise _lane_too_large(engine, training)
        if outcome:
            return outcome
    with world.host_maximum(_TO_EXCHANGE) as highest:
        outcome = _outcome(lambda: _step(engine, clips), world.device)
        if outcome == Outcome.TOO_LARGE:  # the other ranks may wait for this one
            raise _lane_too_large(engine, training)
        return Outcome(highest(outcome))


def _lane_too_large(engine: Engine, training: MicroStep) -> UserError:
    model = engine.model
    assert isinstance(model, VideoNetwork)
    return lane_too_large(training, model.compute_path.recomputed < len(model.stages))


def _step(engine: Engine, clips: Tensor) -> None:
    with engine.unmoved():
        seed_dropout(engine.model, [0], clips.device)
        logits = engine.forward(clips)
        engine.backward((logits * 0).sum())  # gradients of zero: none overflows in half precision
        engine.step()


def _dry_micro_step(engine: Engine, clips: Tensor, training: MicroStep) -> None:
    """Forward and backward by the weights where they lie, past all that DeepSpeed hangs on their gradients."""
    model = engine.model
    trained = [value for value in model.parameters() if value.requires_grad]
    seed_dropout(model, [0], clips.device)
    with torch.random.fork_rng([clips.device] if clips.device.type == "cuda" else []):
        with autocast(clips.device, training.precision):
            logits = model(clips)
        torch.autograd.grad((logits.float() * 0).sum(), trained, allow_unused=True)
    discard_statistics(model)


def _outcome(attempt: Callable[[], None], device: torch.device) -> Outcome:
    try:
        attempt()
        _wait(device)
        return Outcome.FINE
    except Exception as error:
        if is_out_of_memory(error):
            return Outcome.TOO_LARGE
        log.warning("a step on trial failed: %s: %s", type(error).__name__, str(error).partition("\n")[0])
        if is_device_lost(error):
            return Outcome.DEVICE_LOST
    try:
        _wait(device)
    except Exception:  # what a kernel does where it must not ends the whole context
        return Outcome.DEVICE_LOST
    return Outcome.FAILED


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
