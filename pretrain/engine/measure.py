"""What a network's paths take on the device it is on: seconds, and whether each computes what it should."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Mapping

import torch
from torch import Tensor

from pretrain.engine.precision import Precision, autocast
from pretrain.models.network import VideoNetwork, seed_dropout
from pretrain.models.paths import PATHS, Convolution, Path

log = logging.getLogger("reelscale")

_BUDGET = 300.0  # seconds after which no further path is begun on a GPU, where some compile
_ERROR = 0.02  # relative, of the logits: as much as any sound path may differ, whatever its fellows do


def planar_layers(model: VideoNetwork, clips: Tensor, precision: Precision, repeats: int = 4) -> frozenset[str]:
    """The names of the convolutions that are faster as 2D ones, forward and backward, for such clips, N C T H W."""
    decided: dict[tuple[object, ...], bool] = {}
    planar = set()
    for number, (name, (layer, given)) in enumerate(_inputs(model, clips, precision).items()):
        if not layer.flat:
            continue
        kind = (layer.kernel_size, layer.stride, layer.in_channels, layer.out_channels, given.shape)
        if kind not in decided:
            decided[kind] = _faster_planar(layer, given, number > 0, precision, repeats)
        if decided[kind]:
            planar.add(name)
    return frozenset(planar)


def measure(
    model: VideoNetwork,
    clips: Tensor,
    precision: Precision,
    paths: Mapping[str, Path],
    repeats: int = 3,
    held: int = 0,
) -> dict[str, float]:
    """Seconds of a training pass over `clips`, N C T H W, by each path: the best of `repeats`.

    `held`: bytes that training holds there, see `Pass`.

    A path that does not run here (out of memory, no compiler), or whose logits are far from those of the plain
    network in fp32 (a broken kernel), is left out with a warning. The network stays as it is.
    Raises torch.OutOfMemoryError if no path is left and memory was short for one, RuntimeError for other reasons.
    """
    # On a busy CPU only what is timed in turn compares; a GPU has no room for several copies.
    groups = [list(paths)] if clips.device.type == "cpu" else [[name] for name in paths]
    reserve = _held(clips.device, held)
    exact = _exact_logits(model, clips)
    short = False
    seconds: dict[str, float] = {}
    errors: dict[str, float] = {}
    begin = time.perf_counter()
    for group in groups:
        if seconds and clips.device.type == "cuda" and time.perf_counter() - begin > _BUDGET:
            log.warning("not measured, for want of time: the path %s", ", ".join(group))
            continue
        mine = {name: paths[name] for name in group}
        short |= _time_in_turn(model, clips, precision, mine, repeats, exact, seconds, errors)
        if clips.device.type == "cuda":
            torch.cuda.empty_cache()
    bound = max(_ERROR, 4 * min((error for error in errors.values() if math.isfinite(error)), default=0.0))
    for name, error in errors.items():
        if not error <= bound:
            log.warning("the path %s computes wrongly here: its logits are off by %.2g of their size", name, error)
            del seconds[name]
    del reserve
    if not seconds and short:
        raise torch.OutOfMemoryError("no path has the memory to run")
    if not seconds:
        raise RuntimeError("no path runs this network on this device; the warnings above say why")
    return seconds


def dry_pass(model: VideoNetwork, clips: Tensor, precision: Precision, held: int = 0) -> None:
    """Forward and backward of clips, N C T H W, beside the bytes that training holds; gradients stay.

    Raises what `is_out_of_memory` knows where it does not fit.
    """
    reserve = _held(clips.device, held)
    was_training = model.training
    seed_dropout(model.train(), [0], clips.device)
    with autocast(clips.device, precision):
        logits = model(clips)
    logits.float().square().mean().backward()
    _wait(clips.device)
    model.train(was_training)
    del reserve


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device's memory was too small; cuDNN says it in its own words while it tries its algorithms."""
    told = ("unable to find an engine", "ALLOC_FAILED", "can't allocate memory")
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in told)


def _inputs(model: VideoNetwork, clips: Tensor, precision: Precision) -> dict[str, tuple[Convolution, Tensor]]:
    """Each convolution, by name and in order, with what it is given (on the meta device)."""
    found: dict[str, tuple[Convolution, Tensor]] = {}
    network = copy.deepcopy(model).to(clips.device).eval()
    network.use(PATHS["channels-last"])
    hooks = [
        module.register_forward_pre_hook(
            lambda module, given, name=name: found.update({name: (module, given[0].to("meta"))})
        )
        for name, module in network.named_modules()
        if isinstance(module, Convolution)
    ]
    with torch.no_grad(), autocast(clips.device, precision):
        network(clips)
    for hook in hooks:
        hook.remove()
    return found


def _faster_planar(layer: Convolution, given: Tensor, needs_gradient: bool, precision: Precision, repeats: int) -> bool:
    device = layer.weight.device
    layer = copy.deepcopy(layer)
    x = torch.randn(given.shape, dtype=given.dtype, device=device).contiguous(memory_format=torch.channels_last_3d)
    x.requires_grad_(needs_gradient)
    best = {True: float("inf"), False: float("inf")}
    for number in range(repeats + 1):
        for planar in best:
            layer.planar = planar
            layer.zero_grad(set_to_none=True)
            _wait(device)
            begin = time.perf_counter()
            with autocast(device, precision):
                y = layer(x)
            if y.requires_grad:  # not a frozen layer before which none learns
                y.backward(y.detach())
            _wait(device)
            if number:
                best[planar] = min(best[planar], time.perf_counter() - begin)
            x.grad = None
    return best[True] < best[False]


def _held(device: torch.device, held: int) -> Tensor | None:
    """So many bytes of a GPU's memory; a CPU's is not taken before it is written to."""
    return torch.empty(held, dtype=torch.uint8, device=device) if device.type == "cuda" else None


def _exact_logits(model: VideoNetwork, clips: Tensor) -> Tensor | None:
    """What the plain network in fp32 makes of the clips; None where it has not the memory, or makes nothing of them."""
    try:
        plain = copy.deepcopy(model).to(clips.device).train()
        plain.use(PATHS["plain"])
        seed_dropout(plain, [0], clips.device)
        with torch.no_grad():
            logits = plain(clips).double()
        return logits if 0 < float(logits.norm()) < float("inf") else None  # of a network that diverged
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        log.info("the paths' logits are not compared with fp32's, which needs more memory than there is")
        return None


def _time_in_turn(
    model: VideoNetwork,
    clips: Tensor,
    precision: Precision,
    paths: Mapping[str, Path],
    repeats: int,
    exact: Tensor | None,
    seconds: dict[str, float],
    errors: dict[str, float],
) -> bool:
    """Enters what it saw in `seconds` and `errors`; whether memory was short for a path."""
    short = False
    copies: dict[str, VideoNetwork] = {}
    for number in range(repeats + 1):
        for name, path in paths.items():
            try:
                if number == 0:
                    copies[name] = copy.deepcopy(model).to(clips.device).train()
                    copies[name].use(path)
                if name in copies:
                    taken, logits = _pass(copies[name], clips, precision)
                    seconds[name] = min(seconds[name], taken) if number > 1 else taken
                    if number == 0 and exact is not None:
                        errors[name] = float((logits.double() - exact).norm() / exact.norm())
            except Exception as error:
                log.warning("the path %s does not run here: %s", name, str(error).partition("\n")[0])
                short |= is_out_of_memory(error)
                for known in (copies, seconds, errors):
                    known.pop(name, None)  # type: ignore[attr-defined]
    return short


def _pass(network: VideoNetwork, clips: Tensor, precision: Precision) -> tuple[float, Tensor]:
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
