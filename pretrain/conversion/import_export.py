"""`reelscale export` and `reelscale import`: a run's network to one file, and a file of weights to a run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from pretrain.checkpoints.checkpoint import Checkpoint
from pretrain.checkpoints.checkpointer import Checkpointer
from pretrain.conversion.export_file import Export, is_export, read_export, write_export
from pretrain.conversion.published import Published, meta_network, read_published
from pretrain.data.sources import DataSettings
from pretrain.data.views.views import ClipSettings, Normalisation
from pretrain.models.count import parameters
from pretrain.models.weights import check_weights, first_names
from pretrain.models.zoo import ModelSettings
from pretrain.run_folder import Run, read_settings
from pretrain.run_settings import SETTINGS, read_settings_file
from pretrain.settings import TrainSettings
from sharding.base.atomic import atomic_folder, sha256_of
from sharding.base.errors import UserError
from sharding.base.text import read_json, read_text
from sharding.base.user_paths import require_writable
from sharding.corpora.entries.labels import class_name

NO_STORE = "(none: the weights were imported)"
_PROVENANCE = "provenance.json"
_AGAIN = "restore the file, or import the weights again"
_I3D_FLOW = Normalisation(mean=(0.0, 0.0), std=(20.0, 20.0))  # cut at 20 pixels, to [-1, 1]
_HALF = Normalisation(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))  # RGB to [-1, 1], as kinetics-i3d's
_IMAGENET = Normalisation(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))  # torchvision's 2D networks'


def export_run(run: Path, file: Path) -> dict[str, Any]:
    """Write the run's newest network to one safetensors file; returns what it says of itself.

    Raises UserError for a folder that is no run or has no checkpoint, and for a file that cannot be written.
    """
    run = run.absolute()
    settings, classes = read_settings(run)
    checkpoint = Checkpointer(run).load_weights_only()
    clip = settings.data.clip
    check_weights(
        meta_network(settings.model, len(classes), clip.frames, clip.crop), checkpoint.weights, "keep", str(run)
    )
    if (run / _PROVENANCE).exists():
        path = run / _PROVENANCE
        imported = read_json(path.read_bytes(), dict[str, Any], f"the run's {_PROVENANCE}", str(path), _AGAIN)
        provenance: dict[str, Any] = {"imported": imported}
    else:
        index = read_settings_file(run).began_with(str(run / SETTINGS))["index"]
        source = {"run": run.name, "step": checkpoint.step, "store": settings.data.store, "index": index}
        provenance = {**source, "init": settings.init and settings.init.run}
    stored = read_settings_file(run).stored
    export = Export(settings.model, classes, clip, provenance, checkpoint.weights, stored)
    write_export(file, export)
    return {"file": str(file), "bytes": file.stat().st_size, "step": checkpoint.step, **_described(export)}


def import_run(
    file: Path, run: Path, classes: Path | None = None, inflate: str | None = None, frames: int | None = None
) -> dict[str, Any]:
    """Make a run's folder of a file of weights (`read_published`) or an export; returns what was made of it.

    The run has one checkpoint, at step 0, and no store. `classes` is a file of class names, one a line; without
    it an export keeps its own and other weights get class-000, class-001, ….

    Raises UserError for a file that is not weights of the zoo's networks, names that are not as many as the
    network's classes, and a run that is there already.
    """
    run = run.absolute()
    if os.path.lexists(run) and not (run.is_dir() and not any(run.iterdir())):
        raise UserError("there is something already", str(run), "name a new folder for the imported run")
    require_writable(run, str(run))
    if frames is not None and frames < 1:
        raise UserError(f"a clip of {frames} frames is none", "frames", "give at least 1 frame")
    export, notes = _exported(file, frames) if is_export(file) and not inflate else _published(file, inflate, frames)
    names = read_classes(classes, len(export.classes)) if classes else export.classes
    model = meta_network(export.model, len(names), export.clip.frames, export.clip.crop)
    check_weights(model, export.state, "keep", str(file))
    settings = TrainSettings(data=DataSettings(store=NO_STORE, clip=export.clip), model=export.model)
    derived = {"classes": len(names), "parameters": parameters(model)}
    try:
        with atomic_folder(run) as folder:
            Run(folder, writes=True).begin(settings, names, [], derived, export.stored)
            (folder / _PROVENANCE).write_text(json.dumps(export.provenance, indent=1))
            checkpointer = Checkpointer(folder)
            checkpointer.begin_attempt()
            checkpointer.commit(Checkpoint(0, export.state, {}, {}, {"step": 0}))
    except OSError as error:
        raise UserError(f"the run cannot be written: {error}", str(run), "name a folder that can be written") from error
    return {"run": str(run), **_described(export), "class_names": _naming(classes, export), "notes": notes}


def read_classes(file: Path, count: int) -> list[str]:
    """The class names of a file, one a line, in the network's order. Raises UserError unless they are `count`."""
    try:
        names = [class_name(line) for line in read_text(file, str(file), "file of class names").split("\n")]
    except FileNotFoundError as error:
        raise UserError(f"the class names cannot be read: {error}", str(file), "give a text file") from error
    names = [name for name in names if name]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice or len(names) != count:
        what = f"{twice[0]!r} is there twice" if twice else f"{len(names)} class names for a network of {count} classes"
        raise UserError(what, str(file), f"give {count} different names, one a line, in the network's order")
    return names


def clip_settings_of(weights: Published) -> ClipSettings:
    """The clip that the authors of these weights fed them and its normalisation, where the weights do not tell.

    64 frames of 224² pixels for I3D, 16 of 224² for an inflated ImageNet ResNet, 16 of 112² for the others; optical
    flow where the network takes two channels, pictures with it where it takes five. How many frames a ResNet was
    trained on (8 and 32 are common) no weight tells.
    """
    seen_as = {2: "flow", 5: "rgb+flow"}.get(weights.settings.in_channels, "rgb")
    flow = seen_as == "flow"
    settings: dict[str, Any] = {"input": seen_as}
    if weights.settings.name == "i3d":
        seen = _I3D_FLOW if flow else _HALF
        settings |= {"frames": weights.frames or 64, "resize": (256, 340), "crop": 224, "normalisation": seen}
    elif weights.flat:
        settings |= {"frames": weights.frames or 16, "resize": (256, 340), "crop": 224}
        settings |= {"normalisation": _IMAGENET} if seen_as == "rgb" else {}
    else:
        size = weights.size or 112
        resize = (round(size * 128 / 112), round(size * 171 / 112))
        settings |= {"frames": weights.frames or 16, "resize": resize, "crop": size}
    return ClipSettings.model_validate(settings)


def _published(file: Path, inflate: str | None, frames: int | None) -> tuple[Export, list[str]]:
    """A file of published weights as an export, and notes for its user."""
    weights = read_published(file, inflate, frames)
    provenance = {
        "file": file.name,
        "sha256": sha256_of(file),
        "inflated": weights.flat,
        "set_aside": weights.set_aside,
    }
    digits = max(3, len(str(weights.classes - 1)))
    classes = [f"class-{number:0{digits}d}" for number in range(weights.classes)]
    clip = clip_settings_of(weights)
    notes = weights.notes + _notes(weights.settings)
    if weights.frames is None:
        notes.append(f"the weights do not tell the clips' length; {clip.frames} frames are assumed (--frames)")
    if weights.set_aside:
        notes.append(f"set aside: {first_names(weights.set_aside)}")
    return Export(weights.settings, classes, clip, provenance, weights.state), notes


def _exported(file: Path, frames: int | None) -> tuple[Export, list[str]]:
    export = read_export(file)
    if export.model.name == "r2d" and frames not in (None, export.clip.frames):
        raise UserError(
            f"this R2D takes clips of {export.clip.frames} frames, and no others", str(file), "leave --frames out"
        )
    clip = export.clip.model_copy(update={"frames": frames}) if frames else export.clip
    provenance = {"file": file.name, "sha256": sha256_of(file), "export": export.provenance}
    return Export(export.model, export.classes, clip, provenance, export.state, export.stored), _notes(export.model)


def _notes(settings: ModelSettings) -> list[str]:
    if settings.in_channels == 2:
        return ["the network takes optical flow: stored by `shard` with flow={}, else computed as videos are decoded"]
    if settings.in_channels not in (3, 5):
        channels = "3 (RGB), 2 (optical flow) or 5 (both)"
        return [f"the network takes {settings.in_channels} channels; clips have {channels}"]
    return []


def _described(export: Export) -> dict[str, Any]:
    given = export.model.model_dump(mode="json", exclude_defaults=True)
    return {
        "model": {"name": export.model.name, **given},
        "classes": len(export.classes),
        "parameters": parameters(meta_network(export.model, len(export.classes), export.clip.frames, export.clip.crop)),
        "clip": export.clip.model_dump(mode="json"),
        "normalisation": export.normalisation,
    }


def _naming(classes: Path | None, export: Export) -> str:
    if classes:
        return str(classes)
    return "the export's" if "export" in export.provenance else f"{export.classes[0]} … (none were given: --classes)"
