"""The network that a run begins with: new, another run's, or its own of a checkpoint; and its compute path."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pretrain.checkpoints.checkpointer import Checkpointer
from pretrain.data.views.views import Normalisation
from pretrain.engine.autotune.choose import choose_compute_path
from pretrain.engine.autotune.isolated import NetworkSpec
from pretrain.engine.autotune.process import PRESTARTED
from pretrain.engine.autotune.record import read_result
from pretrain.engine.distributed import World
from pretrain.engine.precision import MicroStep
from pretrain.models.compute.compute_path import COMPUTE_PATHS, ComputePath
from pretrain.models.count import parameters
from pretrain.models.groups import freeze
from pretrain.models.network import VideoNetwork
from pretrain.models.weights import load_weights, order_classifier
from pretrain.models.zoo import build_model
from pretrain.run_folder import read_settings
from pretrain.settings import TrainSettings, held_bytes, is_deterministic
from sharding.base import environment
from sharding.base.errors import UserError

log = logging.getLogger("reelscale")


def network(
    settings: TrainSettings, folder: Path, classes: list[str], world: World, weights: Mapping[str, Tensor] | None
) -> VideoNetwork:
    """The network on its device, by its compute path: of these weights, else of the run to start from, else new.

    Raises UserError for clips that do not fit into memory, as far as that is measured.
    """
    torch.manual_seed(settings.seed)
    clip = settings.data.clip
    model = build_model(settings.model, len(classes), clip.frames, clip.crop)
    if weights is not None:
        load_weights(model, dict(weights), "keep", str(folder))
    elif settings.init:
        start_from(model, settings, Path(settings.init.run), classes)
    freeze(model, settings.schedule.rates)
    model.to(world.device).use(_path(settings, folder, model, world, classes))
    return model


def training_micro_step(settings: TrainSettings, parameters: int, ranks: int) -> MicroStep:
    """What a rank computes at once in training, with a network of so many parameters."""
    clip = settings.data.clip
    shape = (settings.model.in_channels, clip.frames, clip.crop, clip.crop)
    batch = settings.lane_batch * (settings.lanes // ranks if settings.together else 1)
    held = held_bytes(settings, parameters, ranks)
    graph = settings.engine.cuda_graph and settings.engine.zero < 3 and not settings.together
    return MicroStep(shape, batch, settings.engine.precision, held, settings.together, graph)


def is_autotuned(settings: TrainSettings, device: torch.device) -> bool:
    """Whether the run measures which compute path is fastest: none was asked for, and runs may differ in bits."""
    return settings.engine.compute_path == "auto" and not is_deterministic(settings, device)


def prestart_autotune(settings: TrainSettings, folder: Path) -> None:
    """Have the process that measures compute paths load what it needs, if this rank is going to need one.

    It then does so while ranks meet and stores are opened. `choose_compute_path` takes it, or lets go of it.
    """
    needed = torch.cuda.is_available() and is_autotuned(settings, torch.device("cuda")) and read_result(folder) is None
    if needed and environment.is_first_rank():
        PRESTARTED.start()


def start_from(model: VideoNetwork, settings: TrainSettings, source: Path, classes: list[str]) -> None:
    """Load another run's network; its classifier stays behind when its classes are not the same.

    Classes are the same by name: a classifier's rows come in the order of `classes`.

    Raises UserError for a network that computes something else than this run's, or on other input.
    """
    theirs, their_classes = read_settings(source)
    for field in ("name", "depth", "width", "in_channels", "pool1", "midplanes", "eps"):
        _same(f"model.{field}", getattr(theirs.model, field), getattr(settings.model, field), source)
    if settings.model.name == "r2d":  # its first convolution spans the whole clip
        _same("data.clip.frames", theirs.data.clip.frames, settings.data.clip.frames, source)
    _same("data.clip.normalisation", theirs.data.clip.normalisation, settings.data.clip.normalisation, source)
    checkpoint = Checkpointer(source).load_weights_only()
    same = sorted(their_classes) == sorted(classes)
    load_weights(model, checkpoint.weights, "keep" if same else "swap", str(source))
    how = "kept" if same else "new"
    if same and their_classes != classes:
        order_classifier(model, [their_classes.index(name) for name in classes])
        how = "kept, its rows in the order of this run's classes"
    log.info("starting from %s, step %d, classifier %s", source, checkpoint.step, how)


def _path(settings: TrainSettings, folder: Path, model: VideoNetwork, world: World, classes: list[str]) -> ComputePath:
    """The compute path of the run: the one asked for, or the fastest here, or one that is the same in every run."""
    recomputed = None if settings.engine.recomputed == "auto" else settings.engine.recomputed
    if settings.engine.compute_path != "auto":
        return replace(COMPUTE_PATHS[settings.engine.compute_path], recomputed=recomputed or 0)
    if not is_autotuned(settings, world.device):
        return replace(COMPUTE_PATHS["planar"], recomputed=recomputed or 0)
    training = training_micro_step(settings, parameters(model), world.size)
    rates, engine = settings.schedule.rates, settings.engine
    spec = NetworkSpec(model=settings.model, classes=len(classes), rates=dict(rates), engine=engine, ranks=world.size)
    return choose_compute_path(folder, model, training, world, recomputed, spec)


def _same(field: str, theirs: object, ours: object, source: Path) -> None:
    if theirs != ours:
        values = " ".join(f"{name}={value}" for name, value in _overrides(field, theirs))
        raise UserError(f"{field} is {ours} here and {theirs} in the run to start from", str(source), f"set {values}")


def _overrides(field: str, value: object) -> list[tuple[str, object]]:
    if isinstance(value, Normalisation):
        return [(f"{field}.{name}", list(numbers)) for name, numbers in value]
    return [(field, value)]
