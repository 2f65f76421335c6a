"""What was measured of a network's paths, kept with the run, and for other runs of its kind in a cache folder."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
from dataclasses import asdict, replace
from pathlib import Path as FilePath
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator
from torch import nn

from pretrain.engine.precision import Pass, Precision
from pretrain.models.compute.compute_path import PATHS, Path
from sharding.base.atomic import atomic_write_text
from sharding.base.environment import cache_folder

log = logging.getLogger("reelscale")

_FILE = "path.json"
_MEASURING = 1  # to be raised where paths compute, or are measured, in another way


class Measured(BaseModel):
    """What was measured, and where."""

    model_config = ConfigDict(extra="forbid")

    path: Annotated[str, Field(description="the fastest of those that did not fail")]
    planar: Annotated[list[str], Field(description="of a planar path, the convolutions that are faster as 2D ones")]
    recomputed: Annotated[int, Field(description="first groups of layers computed twice, so that the clips fit")]
    device: str
    batch: Annotated[int, Field(description="clips that are computed at once")]
    precision: Precision
    clips_per_second: dict[str, float]
    failed: Annotated[list[str], Field(description="paths that do not run here, or not in training")] = []
    made_by: Annotated[str, Field(description="the libraries that computed, see `libraries`")] = ""
    key: Annotated[str, Field(description="by which it is in the cache folder, see `key_of`; empty if it is not")] = ""

    @field_validator("path")
    @classmethod
    def _is_of_this_version(cls, name: str) -> str:
        if name and name not in PATHS:
            raise ValueError(f"there is no path {name}")
        return name

    def by_name(self, name: str) -> Path:
        """The path of this name, planar where that was measured to be faster."""
        path = replace(PATHS[name], recomputed=self.recomputed)
        return replace(path, planar=frozenset(self.planar)) if path.planar else path

    def without(self, names: list[str]) -> Measured:
        """The same with these paths failed, and the fastest of the others as the path; "" where none is left."""
        failed = list(dict.fromkeys([*self.failed, *names]))
        left = {name: rate for name, rate in self.clips_per_second.items() if name not in failed}
        return self.model_copy(update={"failed": failed, "path": max(left, key=left.__getitem__, default="")})


def kept(folder: FilePath) -> Measured | None:
    """What a run has kept in its folder; None where it has nothing, or nothing that this version can read."""
    try:
        return Measured.model_validate_json((folder / _FILE).read_bytes())
    except (OSError, ValueError):  # pydantic's is a ValueError, too
        return None


def keep(folder: FilePath, measured: Measured) -> None:
    """Keep it in the run's folder, and in the cache folder if it has a key."""
    text = measured.model_dump_json(indent=1)
    atomic_write_text(folder / _FILE, text)
    if not measured.key:
        return
    place = cache_folder() / f"{measured.key}.json"
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_text(place, text)
    except OSError as error:
        log.debug("what was measured of the paths is not kept for other runs: %s", error)


def cached(key: str) -> Measured | None:
    """What another run has kept by this key; None where none has, or nothing that can be read."""
    try:
        found = Measured.model_validate_json((cache_folder() / f"{key}.json").read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # pydantic's is a ValueError, too
        log.debug("what was measured of the paths by other runs cannot be read: %s", error)
        return None
    return found if found.key == key else None


def key_of(model: nn.Module, training: Pass, device: str, recomputed: int | None, engine: str) -> str:
    """A hash of all that decides which path is the fastest, and whether it runs.

    The network's layers and weights (their shapes, and which learn), the pass, the device's name, the libraries;
    `recomputed` as asked for; `engine`: its settings, as a text.
    """
    weights = [(name, tuple(value.shape), value.requires_grad) for name, value in model.named_parameters()]
    words = [str(model), weights, asdict(training), device, libraries(), recomputed, engine]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:32]


def libraries() -> str:
    """The versions of what computes: torch, cuDNN and Triton; and of the measuring itself."""
    triton = next((found for name in ("triton", "pytorch-triton") if (found := _version(name))), "none")
    return f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, Triton {triton}, measuring {_MEASURING}"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
