"""Figures that were measured, read from JSON files: what `make bench-…` and `reelscale bench-loader --json` write.

A file is a JSON object, and its key "measured" a list of figures, each an object with

    figure      its name, one of NAMES
    value       a number
    device      the GPU's name as its driver gives it, of figures of a GPU
    precision   bf16, fp16 or fp32, of figures of a GPU
    gmacs       multiply-accumulates of a clip's forward pass / 1e9, of clips/s of a GPU
    frames      stored frames that a clip spans, of what a loader does
    bytes       bytes that one was of, of a checkpoint's pause
    remote      whether it was read from an object store, of what a loader does

and only what belongs to it. What else is in the file is the benchmark's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from pretrain.engine.mfu import listed_peak
from pretrain.planning.compute import flops_per_clip
from pretrain.planning.figure import number
from pretrain.planning.reading import KEY_FRAME_EVERY
from sharding.base.errors import UserError

Name = Literal[
    "training_clips_per_second",  # of a GPU: a whole training step
    "network_clips_per_second",  # of a GPU: the network alone, as the engine takes its step
    "clips_per_core_second",  # of a loader, read and decoded, a CPU second of its workers
    "bytes_per_clip",  # that a loader read
    "range_cpu_seconds",  # of a ranged read from an object store
    "checkpoint_pause_seconds",  # that training stood still for a checkpoint
    "start_seconds",  # from the command to the first step
]


class MeasuredFigure(pydantic.BaseModel):
    """One figure of a file; see the module's head."""

    model_config = pydantic.ConfigDict(frozen=True, allow_inf_nan=False)

    figure: Name
    value: Annotated[float, pydantic.Field(ge=0)]
    device: str = ""
    precision: str = ""
    gmacs: Annotated[float | None, pydantic.Field(gt=0)] = None
    frames: Annotated[int | None, pydantic.Field(gt=0)] = None
    bytes: Annotated[float | None, pydantic.Field(gt=0)] = None
    remote: bool = False

    def tree(self) -> dict[str, Any]:
        """It as it stands in a file."""
        return self.model_dump(exclude_defaults=True)


class _MeasuredFile(pydantic.BaseModel):
    measured: list[MeasuredFigure] = []


@dataclass(frozen=True)
class Measured:
    """The figures of all files, each with its file's name; `silent`: files that hold none."""

    figures: list[tuple[str, MeasuredFigure]] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)

    def of(self, *names: Name) -> Iterable[tuple[str, MeasuredFigure]]:
        """The figures of these names, the first name's first."""
        return (entry for name in names for entry in self.figures if entry[1].figure == name)


@dataclass(frozen=True)
class ClipRate:
    """Clips/s of a GPU for a plan; `is_training`: a whole step's, not its network's alone; `how`: where it is from."""

    rate: float
    is_training: bool
    how: str


def read_measured(paths: Sequence[str]) -> Measured:
    """The figures of these files. Raises UserError for one that is not there or is damaged."""
    result = Measured()
    for path in paths:
        figures = _figures(path)
        result.figures.extend((path, figure) for figure in figures)
        if not figures:
            result.silent.append(path)
    return result


def _figures(path: str) -> list[MeasuredFigure]:
    remedy = "give a file that `make bench-models`, bench-train, bench-store or `reelscale bench-loader --json` wrote"
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8"))
        return _MeasuredFile.model_validate(tree).measured if isinstance(tree, dict) else []
    except FileNotFoundError:
        raise UserError("there is no such measured file", path, remedy) from None
    except (OSError, ValueError) as error:
        said = str(error)
        if isinstance(error, pydantic.ValidationError):
            first = error.errors(include_url=False)[0]
            said = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
        raise UserError(f"a measured file cannot be read: {said}", path, remedy) from error


def gpu_named(measured: Measured) -> str:
    """The name of the first GPU with a data sheet that something was measured on; "" for none."""
    return next((figure.device for _, figure in measured.figures if listed_peak(figure.device)), "")


def clip_rate(measured: Measured, gpu: str, half: bool, macs: float) -> ClipRate | None:
    """Clips/s of such a GPU for a network of so many multiply-accumulates a clip, training measured before network.

    What was measured of another network or clip holds for the same share of the GPU's peak; so does what was measured
    on another GPU with a data sheet. None where nothing was.
    """
    peak = _peak(gpu, half)
    candidates = []
    for path, figure in measured.of("training_clips_per_second", "network_clips_per_second"):
        own_peak = _peak(figure.device, half)
        if figure.gmacs is None or own_peak is None or (figure.precision != "fp32") != half or not figure.value:
            continue
        other_gpu = own_peak != peak
        apart = abs(figure.gmacs * 1e9 / macs - 1)
        order = (other_gpu, figure.figure != "training_clips_per_second", apart)
        candidates.append((order, path, figure, own_peak))
    if not candidates:
        return None
    (other_gpu, not_training, apart), path, figure, own_peak = min(candidates, key=lambda candidate: candidate[0])
    assert figure.gmacs is not None
    share = figure.value * flops_per_clip(figure.gmacs * 1e9) / own_peak
    how = f"measured: {path}, {figure.device}, {figure.value:.4g} clips/s of {figure.gmacs:.4g} GMACs"
    if other_gpu and peak is not None:
        rate, how = peak * share / flops_per_clip(macs), f"{how}; the same MFU, {100 * share:.3g} %, of {gpu}"
    elif apart > 0.005:
        rate = figure.value * figure.gmacs * 1e9 / macs
        how = f"{how}; by GMACs: {figure.value:.4g} × {figure.gmacs:.4g} / {macs / 1e9:.4g}"
    else:
        rate = figure.value
    return ClipRate(rate, not not_training, how)


def _peak(gpu: str, half: bool) -> float | None:
    peak = listed_peak(gpu)
    return None if peak is None else (peak.half if half else peak.tf32)


def by_frames(measured: Measured, name: Name, span: int) -> tuple[float, str, bool] | None:
    """(value a clip of `span` frames, where it is from, whether of an object store) of a loader's figure; None: none.

    One of clips of another length is scaled by their frames.
    """
    entries = [entry for entry in measured.of(name) if entry[1].frames]
    if not entries:
        return None
    path, figure = min(entries, key=lambda entry: abs((entry[1].frames or 1) - span))
    assert figure.frames
    if name == "clips_per_core_second":
        value = figure.value * figure.frames / span
    else:
        value = figure.value * (span + KEY_FRAME_EVERY) / (figure.frames + KEY_FRAME_EVERY)
    how = f"measured: {path}"
    if figure.frames != span:
        how += f", {number(figure.value)} at {figure.frames} frames; by frames"
    return value, how, figure.remote
