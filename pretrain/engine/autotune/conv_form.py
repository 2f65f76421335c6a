"""Which convolutions of a network are faster as 2D ones on the device it is on: each kind of layer timed once."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from pretrain.engine.precision import HALF_DTYPES, Precision, autocast
from pretrain.models.compute.compute_path import COMPUTE_PATHS, Convolution, Factored
from pretrain.models.network import VideoNetwork

log = logging.getLogger("reelscale")

_CYCLES = 20_000_000  # about 10 ms of a GPU: what is sent meanwhile then runs without waiting for the host
Channels = tuple[int, int]  # of the input and of the output


@dataclass
class ConvolutionKind:
    """Convolutions of one shape: a layer, what it is given (N C T H W, on the meta device), and all their names.

    channels: as the compute path pads them. first: the network's first layer, whose input learns nothing.
    """

    layer: Convolution
    input: Tensor
    channels: Channels
    first: bool
    names: list[str] = field(default_factory=list)

    @property
    def cost(self) -> float:
        """Multiply-accumulates of all these layers, but for what their strides leave out."""
        stride = math.prod(self.layer.stride)
        return (
            len(self.names) * self.input.numel() * self.layer.out_channels * math.prod(self.layer.kernel_size) / stride
        )


def planar_layers(
    model: VideoNetwork,
    clips: Tensor,
    precision: Precision,
    multiple: int = 1,
    seconds: float | None = None,
    repeats: int = 4,
) -> frozenset[str]:
    """The names of the convolutions that are faster as 2D ones, forward and both gradients, for such clips, N C T H W.

    On a compute path that pads mid-planes to a `multiple`. The most expensive ones are timed first, until `seconds` are
    over; of the others the first layer, of whose few channels a 3D one makes little, is taken to be faster as a 2D one.
    """
    begin = time.perf_counter()
    kinds = sorted(_kinds(model, clips, precision, multiple), key=lambda kind: -kind.cost)
    planar: set[str] = set()
    timed = 0
    with cudnn_heuristics_only(clips.device):
        for kind in kinds:
            in_time = seconds is None or time.perf_counter() - begin < seconds
            timed += in_time
            if _faster_planar(kind, clips.device, precision, repeats) if in_time else kind.first:
                planar |= set(kind.names)
    if timed < len(kinds):
        log.info("of %d kinds of convolutions %d were timed as 2D and 3D ones", len(kinds), timed)
    return frozenset(planar)


def _kinds(model: VideoNetwork, clips: Tensor, precision: Precision, multiple: int) -> list[ConvolutionKind]:
    """The kinds of convolutions that have a 2D form, in the network's order."""
    network = copy.deepcopy(model).to(clips.device).eval()
    channels = _padded(network, multiple)
    kinds: dict[tuple[object, ...], ConvolutionKind] = {}
    for number, (name, (layer, input)) in enumerate(_inputs(network, clips, precision).items()):
        if not layer.flat:
            continue
        sizes = channels.get(name, (layer.in_channels, layer.out_channels))
        key = (layer.kernel_size, layer.stride, sizes, input.shape[:1] + input.shape[2:], number == 0)
        kinds.setdefault(key, ConvolutionKind(layer, input, sizes, number == 0)).names.append(name)
    return list(kinds.values())


def _padded(network: VideoNetwork, multiple: int) -> dict[str, Channels]:
    """The channels of the convolutions on both sides of mid-planes, as a compute path pads them."""
    channels: dict[str, Channels] = {}
    for name, module in network.named_modules():
        if isinstance(module, Factored):
            spatial, temporal = module[0], module[3]
            assert isinstance(spatial, Convolution) and isinstance(temporal, Convolution)
            middle = spatial.out_channels + -spatial.out_channels % multiple
            channels[f"{name}.0"] = (spatial.in_channels, middle)
            channels[f"{name}.3"] = (middle, temporal.out_channels)
    return channels


def _inputs(network: VideoNetwork, clips: Tensor, precision: Precision) -> dict[str, tuple[Convolution, Tensor]]:
    """Each convolution, by name and in order, with what it is given (on the meta device)."""
    inputs: dict[str, tuple[Convolution, Tensor]] = {}
    network.use(COMPUTE_PATHS["channels-last"])
    hooks = [
        module.register_forward_pre_hook(
            lambda module, arguments, name=name: inputs.update({name: (module, arguments[0].to("meta"))})
        )
        for name, module in network.named_modules()
        if isinstance(module, Convolution)
    ]
    with torch.no_grad(), autocast(clips.device, precision):
        network(clips)
    for hook in hooks:
        hook.remove()
    return inputs


def _faster_planar(kind: ConvolutionKind, device: torch.device, precision: Precision, repeats: int) -> bool:
    """Whether the 2D form is faster, by the best of so many runs of each form, after one to warm up."""
    layer, x = _standing_in(kind, device, precision)
    stopwatch = _OnGpu(device) if device.type == "cuda" else _OnCpu()
    for number in range(repeats + 1):
        for planar in (True, False):
            layer.planar = planar
            layer.zero_grad(set_to_none=True)
            x.grad = None
            stopwatch.begin(planar, counts=number > 0)
            with autocast(device, precision):
                y = layer(x)
            if y.requires_grad:  # not a frozen layer before which none learns
                y.backward(y.detach())
            stopwatch.end()
    best = stopwatch.best()
    return best[True] < best[False]


def _standing_in(kind: ConvolutionKind, device: torch.device, precision: Precision) -> tuple[Convolution, Tensor]:
    """A layer of the kind as the compute path has it, and its input: in half precision, channels last, padded."""
    mould = kind.layer
    shape: Any = {"kernel_size": mould.kernel_size, "stride": mould.stride, "padding": mould.padding}
    layer = Convolution(*kind.channels, **shape, bias=mould.bias is not None, device=device)
    layer.requires_grad_(mould.weight.requires_grad)
    clips, _, *sides = kind.input.shape
    x = torch.randn(clips, kind.channels[0], *sides, device=device, dtype=kind.input.dtype)
    if (half := HALF_DTYPES[precision]) is not None and device.type == "cuda" and not kind.first:
        layer, x = layer.to(half), x.to(half)  # casts are not the convolution's
    x = x.contiguous(memory_format=torch.channels_last_3d)
    return layer, x.requires_grad_(not kind.first)


class _OnCpu:
    """Seconds by the host's clock."""

    def __init__(self) -> None:
        self._begun, self._under_way = 0.0, (False, False)
        self._best = {True: math.inf, False: math.inf}

    def begin(self, name: bool, counts: bool) -> None:
        self._under_way, self._begun = (name, counts), time.perf_counter()

    def end(self) -> None:
        taken, (name, counts) = time.perf_counter() - self._begun, self._under_way
        if counts:
            self._best[name] = min(self._best[name], taken)

    def best(self) -> dict[bool, float]:
        return self._best


class _OnGpu:
    """Milliseconds by the device's clock, for which the host waits once, at the end.

    `torch.cuda._sleep` is private (of torch 2.x; its own tests and benchmarks use it): a kernel that does nothing for
    so many cycles. What is sent behind it lies ready when it ends, and small layers are not timed by their launches.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._runs: list[tuple[bool, torch.cuda.Event, torch.cuda.Event]] = []

    def begin(self, name: bool, counts: bool) -> None:
        if counts and not self._runs:
            torch.cuda._sleep(_CYCLES)
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._last = last
        if counts:
            self._runs.append((name, first, last))
        first.record()

    def end(self) -> None:
        self._last.record()

    def best(self) -> dict[bool, float]:
        torch.cuda.synchronize(self._device)
        return {
            wanted: min(first.elapsed_time(last) for name, first, last in self._runs if name == wanted)
            for wanted in (True, False)
        }


@contextmanager
def cudnn_heuristics_only(device: torch.device) -> Iterator[None]:
    """cuDNN takes what its heuristics say, without trying all it has: that is for the compute path that is chosen."""
    before = torch.backends.cudnn.benchmark
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before
