"""What a run begins with: a network that is new, another run's, or its own of a checkpoint; and what is refused."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from pretrain.checkpoints.checkpoint import has_checkpoint, load_run
from pretrain.data.sources import Sources, open_sources, order_of
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
from pretrain.run_folder import Run, read_settings
from pretrain.settings import TrainSettings, check_lane, check_ranks, derived, held_bytes, is_deterministic
from sharding.base.errors import UserError

log = logging.getLogger("reelscale")


def check(settings: TrainSettings, ranks: int) -> dict[str, object]:
    """Everything that can be refused before a rank starts; returns the derived quantities.

    Raises UserError for an unreachable or empty store, lanes that do not fit the ranks or are too small to
    normalise, a run to start from that is none or another network.
    """
    check_ranks(settings.lanes, ranks)
    run = Run(Path(settings.run), writes=False) if settings.run else None
    sources = open_sources(settings.data, run.versions(settings.data) if run else None)
    classes = sources.classes
    order_of(sources, settings.data, settings.seed, settings.lanes, settings.lane_batch)
    clip = settings.data.clip
    if settings.model.in_channels != clip.channels:
        what = f"clips of input {clip.input} have {clip.channels} channels, the network {settings.model.in_channels}"
        raise UserError(what, "model.in_channels", f"set model.in_channels={clip.channels}, or another data.clip.input")
    check_lane(settings, len(classes))
    quantities = derived(settings, len(classes), sources.samples, ranks)
    if run:
        run.begin(settings, classes, sources.versions, quantities)
    model = build_model(settings.model, len(classes), clip.frames, clip.crop)
    freeze(model, settings.schedule.rates)
    if settings.init and not (run and has_checkpoint(run.folder, settings.checkpoint)):
        start_from(model, settings, Path(settings.init.run), classes)
    return quantities


def sources_of(settings: TrainSettings, run: Run, world: World) -> Sources:
    """The stores, at the versions of their indexes that the run began with, or at the newest as rank 0 opens them.

    All ranks then draw from the same samples, also where a store grows meanwhile.
    """
    mine: Sources | None = None

    def opened() -> str:
        nonlocal mine
        mine = open_sources(settings.data, run.versions(settings.data))
        return json.dumps(mine.versions)

    versions = json.loads(world.broadcast_text(opened))
    return mine or open_sources(settings.data, versions)


def keep_threads(settings: TrainSettings, world: World, run: Run) -> None:
    """Have a rank that computes on its CPU do so with as many threads as the run began with, if it is deterministic.

    A convolution's sums depend on how many share them, and launchers set that number by cores and ranks.
    """
    if world.device.type != "cpu" or not is_deterministic(settings, world.device):
        return
    mine, kept = torch.get_num_threads(), world.broadcast(run.threads if world.rank == 0 else 0)
    if mine != kept:
        log.info("computing with %d threads a rank, not %d: the run began with them, and is deterministic", kept, mine)
        torch.set_num_threads(kept)


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
    if needed and os.environ.get("RANK", "0") == "0":
        PRESTARTED.start()


def start_from(model: VideoNetwork, settings: TrainSettings, source: Path, classes: list[str]) -> None:
    """Load another run's network; its classifier stays behind when its classes are not the same.

    Classes are the same by name: a classifier's rows come in the order of `classes`.

    Raises UserError for a network that computes something else than this run's, or on other input.
    """
    theirs, known = read_settings(source)
    for field in ("name", "depth", "width", "in_channels", "pool1", "midplanes", "eps"):
        _same(f"model.{field}", getattr(theirs.model, field), getattr(settings.model, field), source)
    if settings.model.name == "r2d":  # its first convolution spans the whole clip
        _same("data.clip.frames", theirs.data.clip.frames, settings.data.clip.frames, source)
    _same("data.clip.normalisation", theirs.data.clip.normalisation, settings.data.clip.normalisation, source)
    checkpoint = load_run(source)
    same = sorted(known) == sorted(classes)
    load_weights(model, checkpoint.weights, "keep" if same else "swap", str(source))
    how = "kept" if same else "new"
    if same and known != classes:
        order_classifier(model, [known.index(name) for name in classes])
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
