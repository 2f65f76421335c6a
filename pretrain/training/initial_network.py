"""The network that a run begins with: new, another run's, or its own of a checkpoint; and its compute path."""

from __future__ import annotations

import functools
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
from pretrain.models.weights import first_names, load_weights, order_classifier, tensor_differences
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
    """Load another run's network; its classifier stays behind when its classes are not the same, or `init.head` is new.

    Classes are the same by name: a classifier's rows come in the order of `classes`.

    Raises UserError for a network that computes something else than this run's, or on other input, and for classes
    that are not the same where the classifier is to be kept, or is not trained.
    """
    theirs, their_classes = read_settings(source)
    choice = settings.init.checkpoint if settings.init else "newest"
    checkpoint = Checkpointer(source).load_weights_only(choice)
    _require_same_network(settings, theirs, checkpoint.weights, model, source)
    kept = _keeps_classifier(settings, their_classes, classes, checkpoint.weights, model, source)
    load_weights(model, checkpoint.weights, "keep" if kept else "swap", str(source))
    how = "kept" if kept else "new"
    if kept and their_classes != classes:
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


def _require_same_network(
    settings: TrainSettings, theirs: TrainSettings, weights: Mapping[str, Tensor], model: VideoNetwork, source: Path
) -> None:
    """Raises UserError where the other run's network or its input is another: by which settings, in which tensors."""
    fields = [f"model.{name}" for name in ("name", "depth", "width", "in_channels", "pool1", "midplanes", "eps")]
    if settings.model.name == "r2d":  # its first convolution spans the whole clip
        fields.append("data.clip.frames")
    fields.append("data.clip.normalisation")
    values = [(field, _setting(theirs, field), _setting(settings, field)) for field in fields]
    changed = [(field, their, our) for field, their, our in values if their != our]
    if not changed:
        return
    what = "; ".join(f"{field} is {our} here and {their} in the run to start from" for field, their, our in changed)
    tensors = tensor_differences(_without_head(weights, model), _without_head(model.state_dict(), model))
    remedy = " ".join(f"{name}={value}" for field, their, _ in changed for name, value in _overrides(field, their))
    if any(field == "model.in_channels" for field, _, _ in changed):
        remedy += f" data.clip.input={theirs.data.clip.input}"
    raise UserError(f"{what}; tensors: {'; '.join(tensors)}" if tensors else what, str(source), f"set {remedy}")


def _keeps_classifier(
    settings: TrainSettings,
    their_classes: list[str],
    classes: list[str],
    weights: Mapping[str, Tensor],
    model: VideoNetwork,
    source: Path,
) -> bool:
    """Whether the other run's classifier is kept. Raises UserError where it cannot be, or a new one would not learn."""
    wanted = settings.init.head if settings.init else "auto"
    same = sorted(their_classes) == sorted(classes)
    if wanted == "keep" and not same:
        only_theirs, only_ours = sorted({*their_classes} - {*classes}), sorted({*classes} - {*their_classes})
        what = "the classifier cannot be kept, for the classes are others"
        sides = ((only_theirs, "in the run to start from"), (only_ours, "here"))
        parts = [f"{first_names(names)} only {where}" for names, where in sides if names]
        head = f"{model.head}."
        ours = {name: tensor for name, tensor in model.state_dict().items() if name.startswith(head)}
        tensors = tensor_differences({name: of for name, of in weights.items() if name.startswith(head)}, ours)
        raise UserError("; ".join([what, *parts, *tensors]), str(source), "set init.head=new, or another data.store")
    kept = same and wanted != "new"
    if not kept and settings.schedule.rates.get("head", 1.0) == 0:
        what = "the classifier is new, and would never learn"
        remedy = "give head a rate above 0 in schedule.rates, or start from a run of these classes"
        raise UserError(what, "schedule.rates.head=0", remedy)
    return kept


def _without_head(state: Mapping[str, Tensor], model: VideoNetwork) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith(f"{model.head}.")}


def _setting(settings: TrainSettings, path: str) -> object:
    """The value of a setting by its path with dots."""
    return functools.reduce(getattr, path.split("."), settings)


def _overrides(field: str, value: object) -> list[tuple[str, object]]:
    if isinstance(value, Normalisation):
        return [(f"{field}.{name}", list(numbers)) for name, numbers in value]
    return [(field, value)]
