"""Chooses the compute path of a run: the fastest as measured on its machine, kept in the run's folder."""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from pretrain.engine.autotune.benchmark import AutotuneListener, is_out_of_memory, measure
from pretrain.engine.autotune.conv_form import planar_layers
from pretrain.engine.autotune.isolated import NetworkSpec, autotune_in_child
from pretrain.engine.autotune.process import PRESTARTED, CannotStart
from pretrain.engine.autotune.record import (
    AutotuneResult,
    library_versions,
    read_cached_result,
    read_result,
    result_key,
    write_result,
)
from pretrain.engine.deepspeed_import import import_deepspeed
from pretrain.engine.distributed import World
from pretrain.engine.precision import MicroStep
from pretrain.models.compute.batchnorm import synchronise
from pretrain.models.compute.compute_path import COMPUTE_PATHS, ON_CPU, ON_GPU, ComputePath
from pretrain.models.count import macs
from pretrain.models.network import VideoNetwork
from sharding.base.environment import cache_folder
from sharding.base.errors import UserError

log = logging.getLogger("reelscale")

_MACS_ON_CPU = 2e9  # of the clips measured with: enough to tell compute paths apart, and over in seconds
SECONDS_ON_GPU = 10.0  # that measuring may take there, and a third of it for layers one by one


def choose_compute_path(
    folder: Path,
    model: VideoNetwork,
    training: MicroStep,
    world: World,
    recomputed: int | None = None,
    spec: NetworkSpec | None = None,
) -> ComputePath:
    """The fastest compute path for a micro-step, the same on every rank of the run.

    Rank 0 measures once and keeps what it saw in the run's folder, so that a run that goes on takes the same compute
    path on the same kind of device; on a GPU also in the cache folder, for other runs of such a network. `recomputed`:
    as asked for, or as much as needed. `spec`: what a child process measures by on a GPU, instead of this one. Raises
    UserError for clips that do not fit into the device's memory.
    """
    device = world.device

    def result_json() -> str:
        result = read_result(folder)
        if result is None or not _still_holds(result, training, device, recomputed):
            failed = result.failed if result and _same_place(result, device) else []
            result = _found_anew(model, training, device, recomputed, spec, failed)
            write_result(folder, result)
        return result.model_dump_json()

    chosen = AutotuneResult.model_validate_json(world.broadcast_text(result_json))
    PRESTARTED.end()
    return chosen.by_name(chosen.compute_path)


def exclude_compute_path(folder: Path, world: World) -> str:
    """Note that the run's compute path failed; the name of the next one, the same on every rank.

    `choose_compute_path` then takes it.
    "" where none is known to run: those that were not measured yet are next. Raises RuntimeError if there are none.
    """

    def noted() -> str:
        result = read_result(folder)
        assert result is not None
        rest = result.without([result.compute_path])
        write_result(folder, rest)
        return (
            f"{result.compute_path} {rest.compute_path} {bool(set(candidate_names(world.device)) - set(rest.failed)):d}"
        )

    failed, following, left = world.broadcast_text(noted).split(" ")
    if world.rank == 0:
        log.warning("the compute path %s is left out: it fails in training; next is %s", failed, following or "none")
    if left == "0":
        raise RuntimeError("no compute path trains this network on this device; the warnings above say why")
    return following


def autotune(
    model: VideoNetwork,
    training: MicroStep,
    device: torch.device,
    names: Sequence[str] = (),
    recomputed: int | None = None,
    listener: AutotuneListener | None = None,
    planar: Sequence[str] | None = None,
    fewest: int = 0,
) -> AutotuneResult:
    """Measure the fastest compute path on this device for a micro-step (on a CPU of fewer clips, which take long).

    Of `names`, or of all that are worth a try on such a device. `listener` is told each result as it comes. `planar`:
    the convolutions that are faster as 2D ones, if that is known. `fewest`: groups that are recomputed at the least.
    Raises UserError for clips that do not fit.
    """
    batch, precision = training.batch, training.precision
    names = names or candidate_names(device)
    if training.joint_batch_norm:  # as training computes it, with no other rank to wait for
        model = copy.deepcopy(model)
        synchronise(model, lambda row: row[None])
    tried, deadline = batch, None
    if device.type == "cpu":
        tried = max(min(2, batch), min(batch, int(_MACS_ON_CPU / macs(model, *training.clip[1:]))))
    else:
        deadline = time.perf_counter() + SECONDS_ON_GPU
    clips = random_clips(tried, training.clip)
    multiple = max((COMPUTE_PATHS[name].multiple for name in names if COMPUTE_PATHS[name].planar), default=1)
    for groups in range(fewest, len(model.stages) + 1) if recomputed is None else [recomputed]:
        try:
            if planar is None:
                (listener or AutotuneListener()).begins("timing 2D and 3D convolutions")
                seconds = None if deadline is None else SECONDS_ON_GPU / 3
                planar = sorted(planar_layers(model, clips.to(device), precision, multiple, seconds))
            (listener or AutotuneListener()).decided(planar, groups)
            result = AutotuneResult(
                compute_path="",
                planar=list(planar),
                recomputed=groups,
                device=device_name(device),
                batch=batch,
                precision=precision,
                clips_per_second={},
                made_by=library_versions(),
            )
            compute_paths = {name: result.by_name(name) for name in names}
            taken = measure(
                model, clips.to(device), precision, compute_paths, held=training.held, listener=listener,
                deadline=deadline, graph=training.graph,
            )  # fmt: skip
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            log.warning("%d clips do not fit into memory with %d groups of layers computed twice", batch, groups)
            continue
        rates = {name: tried / seconds for name, seconds in taken.items()}
        return result.model_copy(update={"clips_per_second": rates}).without([])
    raise lane_too_large(training, recomputed is not None and recomputed < len(model.stages))


def random_clips(batch: int, clip: Sequence[int]) -> torch.Tensor:
    """So many clips of shape C T H W, of normally distributed numbers, the same at every call: N C T H W."""
    return torch.randn(batch, *clip, generator=torch.Generator().manual_seed(0))


def lane_too_large(training: MicroStep, more: bool) -> UserError:
    """The mistake of clips that do not fit into memory; `more`: of the activations, more could be computed twice."""
    frames, side = training.clip[1], training.clip[2]
    return UserError(
        f"a lane of {training.batch} clips of {frames} frames of {side}² pixels does not fit into this device's memory",
        "lane_batch, engine.recomputed" if more else "lane_batch",
        "set fewer clips a lane (and as many more lanes, for the same batch)"
        + (", or engine.recomputed=5 (activations computed twice)" if more else ""),
    )


def evaluation_compute_path(folder: Path, wanted: str, device: torch.device) -> ComputePath:
    """The compute path that a run took on such a device, or was told to; the default where it ran on another."""
    result = read_result(folder)
    if wanted != "auto":
        return COMPUTE_PATHS[wanted]
    if result is None or result.device != device_name(device) or result.compute_path not in COMPUTE_PATHS:
        return VideoNetwork.compute_path
    return result.by_name(result.compute_path)


def candidate_names(device: torch.device) -> list[str]:
    """The names of the compute paths that are measured on such a device."""
    return list(ON_CPU if device.type == "cpu" else ON_GPU)


def device_name(device: torch.device) -> str:
    """The GPU's as its driver says it, or cpu."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _found_anew(
    model: VideoNetwork,
    training: MicroStep,
    device: torch.device,
    recomputed: int | None,
    spec: NetworkSpec | None,
    failed: Sequence[str],
) -> AutotuneResult:
    """Of the cache folder, else as measured now, but for the compute paths that have failed."""
    key = ""
    if device.type != "cpu":  # whose choices hang on what else it computes, and are made in seconds
        engine = spec.engine.model_dump_json() if spec else ""
        key = result_key(model, training, device_name(device), recomputed, engine)
        cached = read_cached_result(key)
        cached = cached.without(list(failed)) if cached else None
        if cached and _still_holds(cached, training, device, recomputed):
            failed_there = f"; {', '.join(cached.failed)} failed" if cached.failed else ""
            where = cache_folder() / f"{key}.json"
            log.info(
                "compute path %s, as measured on such a device (%s): %s%s",
                cached.compute_path,
                where,
                _rates(cached),
                failed_there,
            )
            return cached
    names = [name for name in candidate_names(device) if name not in failed]
    if not names:
        raise RuntimeError(
            "no compute path trains this network on this device; the run's compute_path.json names those that failed"
        )
    begin = time.perf_counter()
    log.info("measuring the compute paths %s", ", ".join(names))
    result = None
    if spec is not None and device.type != "cpu":
        try:
            result = autotune_in_child(
                spec, training, device, names, recomputed, meanwhile=lambda: import_deepspeed(device)
            )
        except CannotStart as error:
            log.info("the compute paths are measured in this process: none beside it can (%s)", error)
    if result is None:
        result = autotune(model, training, device, names, recomputed)
    log.info(
        "compute path %s, measured in %.1f s: %s", result.compute_path, time.perf_counter() - begin, _rates(result)
    )
    return result.without(list(failed)).model_copy(update={"key": key})


def _rates(result: AutotuneResult) -> str:
    return ", ".join(f"{name} {rate:.3g}" for name, rate in result.clips_per_second.items()) + " clips/s"


def _still_holds(result: AutotuneResult, training: MicroStep, device: torch.device, recomputed: int | None) -> bool:
    return (
        _same_place(result, device)
        and (result.batch, result.precision) == (training.batch, training.precision)
        and result.compute_path in candidate_names(device)
        and result.compute_path not in result.failed
        and recomputed in (None, result.recomputed)
    )


def _same_place(result: AutotuneResult, device: torch.device) -> bool:
    return (result.device, result.made_by) == (device_name(device), library_versions())
