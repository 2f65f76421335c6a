"""A run's engine, ready to train: as its newest checkpoint says, by a compute path that has taken a step on trial."""

from __future__ import annotations

import gc
import logging
from pathlib import Path

import torch

from pretrain.checkpoints.checkpoint import Checkpoint
from pretrain.engine.autotune.choose import exclude_compute_path
from pretrain.engine.autotune.trial import Outcome, trial
from pretrain.engine.device_lost import DeviceLost
from pretrain.engine.distributed import World
from pretrain.engine.engine import Engine
from pretrain.models.count import macs, parameters
from pretrain.resilience.process_age import seconds_since_start
from pretrain.settings import TrainSettings
from pretrain.training.initial_network import is_autotuned, network, training_micro_step
from pretrain.training.resume import load_engine
from sharding.base.errors import UserError

log = logging.getLogger("reelscale")


def ready_engine(
    settings: TrainSettings,
    folder: Path,
    classes: list[str],
    world: World,
    checkpoint: Checkpoint | None,
) -> tuple[Engine, int]:
    """The engine, as it was at the checkpoint, and the multiply-accumulates of a clip's forward pass.

    A compute path that was chosen by measuring and fails on trial is left out, with a warning, and the next one is
    tried by an engine that is built anew. Raises UserError for clips that do not fit into memory and for a compute path
    that was asked for and fails; DeviceLost where the device is lost, after which the same command goes on with another
    compute path; RuntimeError if no compute path is left.
    """
    while True:
        log.info("building the network %s", settings.model.name)
        model = network(settings, folder, classes, world, checkpoint.model if checkpoint else None)
        clip = settings.data.clip
        cost = macs(model, clip.frames, clip.crop, clip.crop)  # before ZeRO 3 takes the weights apart
        training = training_micro_step(settings, parameters(model), world.size)
        log.info("starting DeepSpeed")
        rates, lanes, together = settings.schedule.rates, settings.lanes, settings.together
        engine = Engine(model, settings.engine, world, lanes, settings.lane_batch, together, rates)
        if checkpoint:
            load_engine(engine, checkpoint)
        outcome = trial(engine, training)
        if outcome == Outcome.FINE:
            log.info("a step on trial went well, %.1f s after this process began", seconds_since_start())
            return engine, cost
        _give_up(settings, folder, world, outcome)
        engine.close()
        del engine, model
        gc.collect()  # DeepSpeed's objects hold each other
        if world.device.type == "cuda":
            torch.cuda.empty_cache()


def _give_up(settings: TrainSettings, folder: Path, world: World, outcome: Outcome) -> None:
    """Leave the run's compute path out. Raises what ends the run where that is in vain."""
    if not is_autotuned(settings, world.device):
        asked = settings.engine.compute_path != "auto"
        raise UserError(
            "a step of training fails by this compute path, as the warning above says",
            "engine.compute_path" if asked else "deterministic",
            "set engine.compute_path=auto, which takes another one"
            if asked
            else "set engine.compute_path to another one",
        )
    exclude_compute_path(folder, world)
    if outcome == Outcome.DEVICE_LOST:
        raise DeviceLost(
            "training failed: a step on trial ended all computing on a rank's device, as the warning above says; "
            "the same command goes on by another compute path"
        )
