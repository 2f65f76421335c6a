"""Opens a trained network with all that its user must know: a run's, one of its checkpoints, or an export."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pretrain.checkpoints.checkpoint import Checkpoint, load_checkpoint
from pretrain.checkpoints.checkpoint_manifest import MANIFEST
from pretrain.checkpoints.checkpointer import Checkpointer
from pretrain.checkpoints.folder import DamagedCheckpoint, manifest_in, require_sound
from pretrain.conversion.export_file import is_export, read_export
from pretrain.conversion.file_kind import kind_of
from pretrain.conversion.import_export import NO_STORE
from pretrain.data.views.views import ClipSettings
from pretrain.engine.autotune.choose import evaluation_compute_path
from pretrain.models.network import VideoNetwork
from pretrain.models.weights import load_weights
from pretrain.models.zoo import ModelSettings, build_model
from pretrain.run_folder import read_settings
from pretrain.run_settings import SETTINGS, read_settings_file
from sharding.base.errors import UserError
from sharding.base.user_paths import expanded
from sharding.format.index import HEAD

_NUMBERED = re.compile(r"class-(\d{3,})")
_KINDS = "a run's folder, one of its checkpoints (RUN/checkpoints/step-…), or what `reelscale export` wrote"


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network, its clips, its classes in the order of its outputs, and its weights by name.

    `where`: as it was named; `step`: of its training, None of an export. `run`: the folder of its run, where there is
    one, and `compute_path`: the run's setting. `stored`: by which settings of `shard` the videos were stored that it
    learned from, and `store`: where they lie; None where this is not known.
    """

    where: str
    model: ModelSettings
    clip: ClipSettings
    classes: list[str]
    weights: Mapping[str, Tensor]
    step: int | None
    run: Path | None = None
    compute_path: str = "auto"
    stored: dict[str, Any] | None = None
    store: str | None = None

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return f"the network of {self.where}" + ("" if self.step is None else f", step {self.step}")

    @property
    def is_numbered(self) -> bool:
        """Whether its classes have no names but those that an import makes up of their numbers."""
        matches = (_NUMBERED.fullmatch(name) for name in self.classes)
        return all(match and int(match[1]) == number for number, match in enumerate(matches))

    def network(self) -> VideoNetwork:
        """The network in evaluation mode, on the device of this process. Raises UserError for another's weights."""
        return loaded_network(
            self.model, len(self.classes), self.clip, self.weights, self.where, self.run, self.compute_path
        )


def open_network(weights: str) -> TrainedNetwork:
    """The network in a run's folder (the newest checkpoint's), in a checkpoint's folder, or in an export.

    Raises UserError for anything else, saying what it is where that can be told, and for damaged files.
    """
    path = expanded(weights)
    if (path / SETTINGS).is_file():
        network = _of_run(path, Checkpointer(path).load_weights_only(), weights)
    elif (path / MANIFEST).is_file():
        network = _of_run(path.absolute().parents[1], _checkpoint(path), weights)
    elif path.is_file():
        network = _of_file(path, weights)
    else:
        raise _not_weights(path, weights)
    require_channels(network.model, network.clip, weights)
    return network


def loaded_network(
    model: ModelSettings,
    classes: int,
    clip: ClipSettings,
    weights: Mapping[str, Tensor],
    where: str,
    run: Path | None,
    compute_path: str,
) -> VideoNetwork:
    """A network with these weights in evaluation mode, on the device of this process.

    It computes as its `run` did on such a device, or as the setting `compute_path` says. Raises UserError for weights
    of another network, which came from `where`.
    """
    network = build_model(model, classes, clip.frames, clip.crop)
    load_weights(network, weights, "keep", where)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if run is not None:
        network.use(evaluation_compute_path(run, compute_path, device))
    return network.to(device).eval()


def require_channels(model: ModelSettings, clip: ClipSettings, where: str) -> None:
    """Raises UserError for a network that takes other channels than its clips have."""
    if model.in_channels != clip.channels:
        what = f"the network takes {model.in_channels} channels, and its clips have {clip.channels}"
        raise UserError(what, where, "take a network with the clips that it was trained on")


def _of_run(run: Path, checkpoint: Checkpoint, where: str) -> TrainedNetwork:
    train, classes = read_settings(run)
    store = None if train.data.store == NO_STORE else train.data.store
    return TrainedNetwork(
        where,
        train.model,
        train.data.clip,
        classes,
        checkpoint.weights,
        checkpoint.step,
        run,
        train.engine.compute_path,
        read_settings_file(run).stored,
        store,
    )


def _checkpoint(folder: Path) -> Checkpoint:
    try:
        require_sound(folder, manifest_in(folder).id)
    except (DamagedCheckpoint, ValueError) as error:
        raise UserError(f"the checkpoint is damaged: {error}", str(folder), "name another one, or the run") from error
    return load_checkpoint(folder, optimizer=False)


def _of_file(path: Path, where: str) -> TrainedNetwork:
    if path.name in ("model.safetensors", "average.safetensors", MANIFEST) and (path.parent / MANIFEST).is_file():
        raise UserError("this is one of a checkpoint's files", where, f"name the checkpoint's folder, {path.parent}")
    if not is_export(path):
        kind_of(path)  # says what it is instead, where that is plain
        remedy = f"make a run of them first (reelscale import {where} RUN), and name that one; or give {_KINDS}"
        raise UserError("these are no weights that say what network they are of", where, remedy)
    export = read_export(path)
    store = export.provenance.get("store")
    return TrainedNetwork(
        where,
        export.model,
        export.clip,
        export.classes,
        export.state,
        None,
        stored=export.stored,
        store=store if isinstance(store, str) else None,
    )


def _not_weights(path: Path, where: str) -> UserError:
    if "://" in where:
        return UserError("weights are not read from a URL", where, f"copy them here, and give {_KINDS}")
    if (path / HEAD).is_file():
        return UserError("this is a store, and no network", where, f"give {_KINDS}; then the videos")
    if (path / "checkpoints").is_dir():
        return UserError(f"not a run's folder: {SETTINGS} is missing", where, f"restore it, or give {_KINDS}")
    what = "a folder without a network" if path.is_dir() else "there is no such file or folder"
    return UserError(what, where, f"give {_KINDS}")
