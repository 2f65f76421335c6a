"""Times a network's compute paths on its device, and checks that each computes what it should."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from pretrain.engine.autotune.conv_form import cudnn_heuristics_only
from pretrain.engine.capture import capture_for
from pretrain.engine.cuda_graph import GraphedFeatures
from pretrain.engine.device_lost import is_device_lost
from pretrain.engine.distributed import World
from pretrain.engine.precision import Precision, autocast
from pretrain.models.compute.compute_path import COMPUTE_PATHS, ComputePath
from pretrain.models.network import VideoNetwork, seed_dropout

log = logging.getLogger("reelscale")

_ERROR = 0.02  # relative, of the logits: as much as any sound compute path may differ, whatever its fellows do


class AutotuneListener:
    """Receives what is measured, as it comes. This one ignores it; a child process sends it to its parent."""

    def begins(self, what: str, compute_path: str | None = None) -> None:
        """What is under way from now on, and by which compute path, if it is one's."""

    def decided(self, planar: Sequence[str], recomputed: int) -> None:
        """The layers that are faster planar, and how many groups are recomputed from here on."""

    def timed(self, name: str, clips_per_second: float) -> None:
        """A compute path runs, so fast."""

    def failed(self, name: str, reason: str) -> None:
        """A compute path does not run here, or computes wrongly."""


def measure(
    model: VideoNetwork,
    clips: Tensor,
    precision: Precision,
    compute_paths: Mapping[str, ComputePath],
    repeats: int = 3,
    held: int = 0,
    listener: AutotuneListener | None = None,
    deadline: float | None = None,
    graph: bool = False,
) -> dict[str, float]:
    """Seconds of a micro-step over `clips`, N C T H W, by each compute path: the best of `repeats`.

    `held`: bytes that training holds there, see `MicroStep`. `listener` is told each compute path's as it comes. After
    `deadline`, a time of `time.perf_counter`, no further compute path is begun once one is timed. `graph`: what is
    timed is a CUDA graph's replay, where the device and the network can.

    A compute path that does not run here (out of memory, no compiler), or whose logits are far from those of the plain
    network in fp32 (a broken kernel), is left out with a warning. The network stays as it is. Raises
    torch.OutOfMemoryError if no compute path is left and memory was short for one, RuntimeError for other reasons, and
    what `is_device_lost` knows as it comes.
    """
    # On a busy CPU only what is timed in turn compares; a GPU has no room for several copies, and who watches is to
    # know which compute path is under way.
    alone = listener is not None or clips.device.type != "cpu"
    groups = [[name] for name in compute_paths] if alone else [list(compute_paths)]
    listener = listener or AutotuneListener()
    reserve = _held(clips.device, held)
    exact = _exact_logits(model, clips)
    short = False
    seconds: dict[str, float] = {}
    errors: dict[str, float] = {}
    for group in groups:
        if seconds and deadline is not None and time.perf_counter() > deadline:
            log.info("not measured, for want of time: the compute path %s", ", ".join(group))
            continue
        listener.begins(f"measuring {', '.join(group)}", group[0])
        timed = {name: compute_paths[name] for name in group}
        with cudnn_heuristics_only(clips.device):
            short |= _time_in_turn(model, clips, precision, timed, repeats, exact, seconds, errors, listener, graph)
        if clips.device.type == "cuda":
            torch.cuda.empty_cache()
        for name in group:
            if name in seconds:
                log.info("compute path %s: %.3g clips/s", name, len(clips) / seconds[name])
                listener.timed(name, len(clips) / seconds[name])
    for name, wrong in _wrong_logits(model, clips, precision, exact, errors).items():
        log.warning("the compute path %s computes wrongly here: %s", name, wrong)
        listener.failed(name, wrong)
        del seconds[name]
    del reserve
    if not seconds and short:
        raise torch.OutOfMemoryError("no compute path has the memory to run")
    if not seconds:
        raise RuntimeError("no compute path runs this network on this device; the warnings above say why")
    return seconds


def _wrong_logits(
    model: VideoNetwork, clips: Tensor, precision: Precision, exact: Tensor | None, errors: Mapping[str, float]
) -> dict[str, str]:
    """The compute paths whose logits are further off than rounding explains, and by how much, in words."""
    sound = [error for error in errors.values() if math.isfinite(error)]
    if len(errors) == 1 and exact is not None:  # which is no measure of itself
        sound = [_error_of_torchs_own(model, clips, precision, exact)]
    bound = max(_ERROR, 4 * min(sound, default=0.0))
    return {
        name: f"its logits are off by {error:.2g} of their size" for name, error in errors.items() if not error <= bound
    }


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device's memory was too small; cuDNN says it in its own words while it tries its algorithms."""
    messages = ("unable to find an engine", "ALLOC_FAILED", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in messages)


def _held(device: torch.device, held: int) -> Tensor | None:
    """So many bytes of a GPU's memory; a CPU's is not taken before it is written to."""
    return torch.empty(held, dtype=torch.uint8, device=device) if device.type == "cuda" else None


def _exact_logits(model: VideoNetwork, clips: Tensor) -> Tensor | None:
    """What the plain network in fp32 makes of the clips; None where it has not the memory, or makes nothing of them."""
    try:
        plain = copy.deepcopy(model).to(clips.device).train()
        plain.use(COMPUTE_PATHS["plain"])
        seed_dropout(plain, [0], clips.device)
        with torch.no_grad():
            logits = plain(clips).double()
        return logits if 0 < float(logits.norm()) < float("inf") else None  # of a network that diverged
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        log.info("the compute paths' logits are not compared with fp32's, which needs more memory than there is")
        return None


def _error_of_torchs_own(model: VideoNetwork, clips: Tensor, precision: Precision, exact: Tensor) -> float:
    """Of the logits that torch's own layers give in this precision."""
    network = copy.deepcopy(model).to(clips.device).train()
    network.use(COMPUTE_PATHS["channels-last"])
    seed_dropout(network, [0], clips.device)
    with torch.no_grad(), autocast(clips.device, precision):
        logits = network(clips).double()
    return float((logits - exact).norm() / exact.norm())


def _time_in_turn(
    model: VideoNetwork,
    clips: Tensor,
    precision: Precision,
    compute_paths: Mapping[str, ComputePath],
    repeats: int,
    exact: Tensor | None,
    seconds: dict[str, float],
    errors: dict[str, float],
    listener: AutotuneListener,
    graph: bool,
) -> bool:
    """Enters what it saw in `seconds` and `errors`; whether memory was short for a compute path."""
    short = False
    copies: dict[str, VideoNetwork] = {}
    for number in range(repeats + 1):
        for name, compute_path in compute_paths.items():
            try:
                if number == 0:
                    copies[name] = copy.deepcopy(model).to(clips.device).train()
                    copies[name].use(compute_path)
                    if graph and (capture := capture_for(clips.device)):
                        copies[name].graphed_features = GraphedFeatures(
                            copies[name], World(0, 1, clips.device), capture
                        )
                if name in copies:
                    taken, logits = _micro_step(copies[name], clips, precision)
                    seconds[name] = min(seconds[name], taken) if number > 1 else taken
                    if number == 0 and exact is not None:
                        errors[name] = float((logits.double() - exact).norm() / exact.norm())
            except Exception as error:
                if is_device_lost(error):  # no other compute path computes here, either
                    raise
                reason = str(error).partition("\n")[0]
                log.warning("the compute path %s does not run here: %s", name, reason)
                short |= is_out_of_memory(error)
                if not is_out_of_memory(error):
                    listener.failed(name, reason)
                if name in copies:
                    _ungraph(copies.pop(name))
                for figures in (seconds, errors):
                    figures.pop(name, None)
    for network in copies.values():
        _ungraph(network)
    return short


def _ungraph(network: VideoNetwork) -> None:
    """Give the memory of its graph back."""
    if isinstance(network.graphed_features, GraphedFeatures):
        network.graphed_features.discard()
    network.graphed_features = None


def _micro_step(network: VideoNetwork, clips: Tensor, precision: Precision) -> tuple[float, Tensor]:
    _wait(clips.device)
    begin = time.perf_counter()
    network.zero_grad(set_to_none=True)
    seed_dropout(network, [0], clips.device)
    with autocast(clips.device, precision):
        logits = network(clips)
    logits.float().square().mean().backward()
    _wait(clips.device)
    return time.perf_counter() - begin, logits.detach()


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
