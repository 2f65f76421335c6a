"""The result of autotuning a network's compute path: kept in the run's folder, and for other runs in a cache folder."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator
from torch import nn

from pretrain.engine.precision import MicroStep, Precision
from pretrain.models.compute.compute_path import COMPUTE_PATHS, ComputePath
from sharding.base.atomic import atomic_write_text
from sharding.base.environment import cache_folder

log = logging.getLogger("reelscale")

_FILE = "compute_path.json"
_FORMER_FILE = "path.json"  # of runs written before, with the key `path`
_MEASURING = 1  # to be raised where compute paths compute, or are measured, in another way


class AutotuneResult(BaseModel):
    """What was measured, and where."""

    model_config = ConfigDict(extra="forbid")

    compute_path: Annotated[str, Field(description="the fastest of those that did not fail")]
    planar: Annotated[
        list[str], Field(description="of a planar compute path, the convolutions that are faster as 2D ones")
    ]
    recomputed: Annotated[int, Field(description="first groups of layers computed twice, so that the clips fit")]
    device: str
    batch: Annotated[int, Field(description="clips that are computed at once")]
    precision: Precision
    clips_per_second: dict[str, float]
    failed: Annotated[list[str], Field(description="paths that do not run here, or not in training")] = []
    made_by: Annotated[str, Field(description="the libraries that computed, see `library_versions`")] = ""
    key: Annotated[
        str, Field(description="by which it is in the cache folder, see `result_key`; empty if it is not")
    ] = ""

    @model_validator(mode="before")
    @classmethod
    def _former_name(cls, values: Any) -> Any:
        """Results written before have `path` in the place of `compute_path`."""
        if isinstance(values, dict) and "path" in values and "compute_path" not in values:
            return {"compute_path" if name == "path" else name: value for name, value in values.items()}
        return values

    @field_validator("compute_path")
    @classmethod
    def _is_of_this_version(cls, name: str) -> str:
        if name and name not in COMPUTE_PATHS:
            raise ValueError(f"there is no compute path {name}")
        return name

    def by_name(self, name: str) -> ComputePath:
        """The compute path of this name, planar where that was measured to be faster."""
        compute_path = replace(COMPUTE_PATHS[name], recomputed=self.recomputed)
        return replace(compute_path, planar=frozenset(self.planar)) if compute_path.planar else compute_path

    def without(self, names: list[str]) -> AutotuneResult:
        """The result with these compute paths failed, and the fastest of the others chosen; "" where none is left."""
        failed = list(dict.fromkeys([*self.failed, *names]))
        left = {name: rate for name, rate in self.clips_per_second.items() if name not in failed}
        return self.model_copy(update={"failed": failed, "compute_path": max(left, key=left.__getitem__, default="")})


def read_result(folder: Path) -> AutotuneResult | None:
    """The result that lies in a run's folder; None where there is none, or none that this version can read."""
    file = folder / _FILE
    try:
        return AutotuneResult.model_validate_json((file if file.exists() else folder / _FORMER_FILE).read_bytes())
    except (OSError, ValueError):  # pydantic's is a ValueError, too
        return None


def write_result(folder: Path, measured: AutotuneResult) -> None:
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
        log.debug("what was measured of the compute paths is not kept for other runs: %s", error)


def read_cached_result(key: str) -> AutotuneResult | None:
    """What another run has kept by this key; None where none has, or nothing that can be read."""
    try:
        result = AutotuneResult.model_validate_json((cache_folder() / f"{key}.json").read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # pydantic's is a ValueError, too
        log.debug("what was measured of the compute paths by other runs cannot be read: %s", error)
        return None
    return result if result.key == key else None


def result_key(model: nn.Module, training: MicroStep, device: str, recomputed: int | None, engine: str) -> str:
    """A hash of all that decides which compute path is the fastest, and whether it runs.

    The network's layers and weights (their shapes, and which learn), the micro-step, the device's name, the versions
    of libraries; `recomputed` as asked for; `engine`: its settings, as a text.
    """
    weights = [(name, tuple(value.shape), value.requires_grad) for name, value in model.named_parameters()]
    words = [str(model), weights, asdict(training), device, library_versions(), recomputed, engine]
    return hashlib.sha256(json.dumps(words).encode()).hexdigest()[:32]


def library_versions() -> str:
    """The versions of what computes: torch, cuDNN and Triton; and of the measuring itself."""
    triton = next((found for name in ("triton", "pytorch-triton") if (found := _version(name))), "none")
    return f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, Triton {triton}, measuring {_MEASURING}"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
