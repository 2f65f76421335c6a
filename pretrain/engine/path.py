"""Which path a run computes by: the fastest as measured on its machine, kept with the run."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path as FilePath
from typing import Annotated

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pretrain.engine.measure import dry_pass, is_out_of_memory, measure, planar_layers
from pretrain.engine.precision import Pass, Precision
from pretrain.engine.world import World
from pretrain.models.batchnorm import discard_statistics, synchronise
from pretrain.models.count import macs
from pretrain.models.network import VideoNetwork
from pretrain.models.paths import ON_CPU, PATHS, Path
from sharding.errors import UserError

log = logging.getLogger("reelscale")

_FILE = "path.json"
_MACS_ON_CPU = 2e9  # of the clips measured with: enough to tell paths apart, and over in seconds


class Measured(BaseModel):
    """What was measured, and where."""

    model_config = ConfigDict(extra="forbid")

    path: Annotated[str, Field(description="the fastest")]
    planar: Annotated[list[str], Field(description="of a planar path, the convolutions that are faster as 2D ones")]
    recomputed: Annotated[int, Field(description="first groups of layers computed twice, so that the clips fit")]
    device: str
    batch: Annotated[int, Field(description="clips that are computed at once")]
    precision: Precision
    clips_per_second: dict[str, float]

    def by_name(self, name: str) -> Path:
        """The path of this name, planar where that was measured to be faster."""
        path = replace(PATHS[name], recomputed=self.recomputed)
        return replace(path, planar=frozenset(self.planar)) if path.planar else path


def run_path(
    folder: FilePath, model: VideoNetwork, training: Pass, world: World, recomputed: int | None = None
) -> Path:
    """The fastest path for a pass of training, the same on every rank of the run.

    Rank 0 measures once and keeps what it saw in the run's folder, so that a run that goes on takes the same path
    on the same kind of device. `recomputed`: as asked for, or as much as needed.
    Raises UserError for clips that do not fit into the device's memory.
    """

    def known() -> str:
        kept = _kept(folder)
        wanted = (_device_name(world.device), training.batch, training.precision)
        if (
            kept is None
            or (kept.device, kept.batch, kept.precision) != wanted
            or kept.path not in worth_trying(world.device)
            or recomputed not in (None, kept.recomputed)
        ):
            kept = measured(model, training, world.device, recomputed=recomputed)
            (folder / _FILE).write_text(kept.model_dump_json(indent=1))
            told = ", ".join(f"{name} {rate:.3g}" for name, rate in kept.clips_per_second.items())
            log.info("path %s, of clips/s by path: %s", kept.path, told)
        return kept.model_dump_json()

    chosen = Measured.model_validate_json(world.share(known))
    return chosen.by_name(chosen.path)


def fits(model: VideoNetwork, training: Pass, device: torch.device) -> None:
    """A dry batch, forward and backward, so that what is compiled is compiled now.

    The network is as before. Raises UserError for clips that do not fit into the device's memory.
    """
    try:
        dry_pass(model, _noise(training.batch, training.clip).to(device), training.precision, training.held)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise _too_large(training, model.path.recomputed < len(model.stages)) from None
    finally:
        model.zero_grad(set_to_none=True)
        discard_statistics(model)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def measured(
    model: VideoNetwork,
    training: Pass,
    device: torch.device,
    names: Sequence[str] = (),
    recomputed: int | None = None,
) -> Measured:
    """The fastest path on this device for a pass of training (on a CPU for fewer clips, where they take long).

    Of `names`, or of all that are worth a try on such a device. Raises UserError for clips that do not fit.
    """
    batch, precision = training.batch, training.precision
    if training.together:  # as training computes it, with no other rank to wait for
        model = copy.deepcopy(model)
        synchronise(model, lambda row: row[None])
    tried = batch
    if device.type == "cpu":
        tried = max(min(2, batch), min(batch, int(_MACS_ON_CPU / macs(model, *training.clip[1:]))))
    clips = _noise(tried, training.clip)
    where = _device_name(device)
    for groups in range(len(model.stages) + 1) if recomputed is None else [recomputed]:
        try:
            planar = sorted(planar_layers(model, clips.to(device), precision))
            found = Measured(
                path="",
                planar=planar,
                recomputed=groups,
                device=where,
                batch=batch,
                precision=precision,
                clips_per_second={},
            )
            paths = {name: found.by_name(name) for name in names or worth_trying(device)}
            seconds = measure(model, clips.to(device), precision, paths, held=training.held)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.warning("%d clips do not fit into memory with %d groups of layers computed twice", batch, groups)
            continue
        rates = {name: tried / taken for name, taken in seconds.items()}
        return found.model_copy(update={"path": max(rates, key=rates.__getitem__), "clips_per_second": rates})
    raise _too_large(training, recomputed is not None)


def _noise(batch: int, clip: Sequence[int]) -> torch.Tensor:
    return torch.randn(batch, *clip, generator=torch.Generator().manual_seed(0))


def _too_large(training: Pass, more_could_be_recomputed: bool) -> UserError:
    frames, side = training.clip[1], training.clip[2]
    return UserError(
        f"a lane of {training.batch} clips of {frames} frames of {side}² pixels does not fit into this device's memory",
        "lane_batch, engine.recomputed" if more_could_be_recomputed else "lane_batch",
        "set fewer clips a lane (and as many more lanes, for the same batch)"
        + (", or engine.recomputed=5 (activations computed twice)" if more_could_be_recomputed else ""),
    )


def evaluation_path(folder: FilePath, wanted: str, device: torch.device) -> Path:
    """The path that a run took on such a device, or was told to; the default where it ran on another."""
    kept = _kept(folder)
    if wanted != "auto":
        return PATHS[wanted]
    if kept is None or kept.device != _device_name(device) or kept.path not in PATHS:
        return VideoNetwork.path
    return kept.by_name(kept.path)


def worth_trying(device: torch.device) -> list[str]:
    """The names of the paths that are measured on such a device."""
    return list(ON_CPU if device.type == "cpu" else PATHS)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _kept(folder: FilePath) -> Measured | None:
    try:
        return Measured.model_validate(json.loads((folder / _FILE).read_text()))
    except (OSError, ValueError, ValidationError):
        return None
