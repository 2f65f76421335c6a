"""Micro-steps by a CUDA graph: when it is captured, when it is replayed, and when it is thrown away."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pretrain.engine.capture import Capture
from pretrain.engine.deepspeed_config import EngineSettings
from pretrain.engine.device_lost import is_device_lost
from pretrain.engine.distributed import World
from pretrain.models.compute.batchnorm import LaneBatchNorm
from pretrain.models.network import LaneDropout, VideoNetwork

log = logging.getLogger("reelscale")

_TO_CAPTURE = timedelta(minutes=10)  # one rank's kernels, and what a library tries out, later than another's


class GraphedFeatures:
    """A network's features by CUDA graphs of its forward and backward pass, where it is trained.

    The first micro-step is captured, and those after it replay it as long as it holds good (`_Terms`); one that it
    does not hold good for is captured anew. A pass without gradients, or of a network in evaluation mode, computes
    without a graph and leaves it as it is. What cannot be captured, on any rank, computes without a graph for good;
    the log says why, once. Calls are collectives where a capture is made: every rank's micro-steps must be alike.

    A replay does what the pass would have done, to the bit: batch statistics are added up on the device, and their
    lanes counted; weights get gradients of their own. But each pass's backward must come before the next forward.
    """

    def __init__(self, network: VideoNetwork, world: World, capture: Capture) -> None:
        """`capture`: `capture_for(device)`, or what stands in for it."""
        self._network, self._world, self._capture = network, world, capture
        self._graph: _Graph | None = None
        self._given_up = False

    def __call__(self, clips: Tensor) -> Tensor:
        """The features of clips N C T H W, as `VideoNetwork.features_by_compute_path` gives them."""
        if self._given_up or not (torch.is_grad_enabled() and self._network.training) or clips.requires_grad:
            return self._network.features_by_compute_path(clips)
        if self._graph is None or not self._graph.terms.hold(clips):
            self.discard()
            self._graph = self._captured(clips)
            if self._graph is None:
                self._given_up = True
                return self._network.features_by_compute_path(clips)
        return self._graph(clips)

    @property
    def input_buffer(self) -> Tensor | None:
        """What the graph computes from, N C T H W, None without a graph: clips that lie in it need not be copied.

        It may be written to once the last pass's backward was sent to the device, on the stream of the passes.
        """
        return None if self._graph is None else self._graph.input

    def discard(self) -> None:
        """Throw the graph away, if there is one, and give its memory back."""
        if self._graph is not None:
            self._graph.release()
            self._graph = None

    def close(self) -> None:
        """As `discard`, and the network's passes are computed without graphs from now on."""
        self.discard()
        self._network.graphed_features = None

    def _captured(self, clips: Tensor) -> _Graph | None:
        """The graph, on all ranks or on none: weights' gradients come in another order by it, which ZeRO sums in."""
        graph, reason, level = None, "another rank could not capture them", logging.INFO
        try:
            with _unmoved(self._network, clips.device), _no_dropout(self._network):
                graph = _Graph(self._network, clips, self._capture)
        except _CannotCapture as error:
            reason = str(error)
        except Exception as error:
            if is_device_lost(error):
                raise
            reason, level = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}", logging.WARNING
        if self._on_all_ranks(graph is not None):
            if self._world.rank == 0:
                log.info("the network's passes over clips %s are replayed by a CUDA graph", tuple(clips.shape))
            return graph
        if graph is not None:
            graph.release()
        if self._world.rank == 0 or level == logging.WARNING:
            log.log(level, "the network's passes run without a CUDA graph: %s", reason)
        return None

    def _on_all_ranks(self, well: bool) -> bool:
        """Agreed by the hosts: a device on which the capture failed may compute no more."""
        with self._world.host_maximum(_TO_CAPTURE) as highest:
            return highest(int(not well)) == 0


def enable_cuda_graph(
    model: nn.Module, settings: EngineSettings, world: World, capture: Capture | None
) -> GraphedFeatures | None:
    """Have the network's micro-steps captured from now on, where they can be; else the log says why not.

    None, and nothing said, where the settings do not ask for it or nothing captures on the device.
    """
    if capture is None or not settings.cuda_graph or not isinstance(model, VideoNetwork):
        return None
    reason = capture_obstacle(model, settings)
    if reason is not None:
        if world.rank == 0:
            log.info("the network's passes run without a CUDA graph: %s", reason)
        return None
    graphed = GraphedFeatures(model, world, capture)
    model.graphed_features = graphed
    return graphed


def capture_obstacle(network: VideoNetwork, settings: EngineSettings) -> str | None:
    """Why a micro-step of this network cannot be captured, as far as can be seen before one runs; None for nothing."""
    if settings.zero == 3:
        return "ZeRO 3 gathers weights on the way (engine.zero=2 does not)"
    if settings.deepspeed.get("flops_profiler", {}).get("enabled"):
        return "DeepSpeed's flops_profiler counts what is sent to the device one by one"
    if any(layer.gather is not None for layer in _norms(network)):
        return "batch normalisation gathers statistics from all ranks on the way"
    return None


class _CannotCapture(Exception):
    pass


class _Graph:
    """A captured micro-step, and the conditions under which it may be replayed."""

    def __init__(self, network: VideoNetwork, clips: Tensor, capture: Capture) -> None:
        self.terms = _Terms(network, clips)
        self.input = clips.detach().clone()
        norms = _norms(network)
        kind = clips.device.type
        half, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        self._counted: list[tuple[LaneBatchNorm, int]] = []
        doubles = _doubles(network)

        def function() -> Tensor:
            before = [layer.lanes for layer in norms]
            # A cast that autocast keeps for later would be of the capture's memory, or not be captured at all.
            with torch.autocast(kind, half, enabled=enabled, cache_enabled=False), _in_the_place_of_weights(doubles):
                output = network.features_by_compute_path(self.input)
            counts = [layer.lanes - old for layer, old in zip(norms, before, strict=True)]
            self._counted = [(layer, count) for layer, count in zip(norms, counts, strict=True) if count]
            return output

        trained = [value for value in network.parameters() if value.requires_grad]
        self._captured = capture(function, [double for _, _, double in doubles if double.requires_grad])
        found = zip(trained, self._captured.gradients, strict=True)
        used = [(weight, gradient) for weight, gradient in found if gradient is not None]
        self._weights = [weight for weight, _ in used]
        self._gradients = [gradient for _, gradient in used]
        self._micro_steps, self._open = 0, False

    def __call__(self, clips: Tensor) -> Tensor:
        if clips.data_ptr() != self.input.data_ptr() or clips.stride() != self.input.stride():
            self.input.copy_(clips)
        for layer, lanes in self._counted:
            layer.lanes += lanes
        logits: Tensor = _Replay.apply(self, *self._weights)  # type: ignore[no-untyped-call]
        return logits

    def forward(self) -> tuple[int, Tensor]:
        """The micro-step's number, and its features in memory of their own."""
        self._captured.forward()
        self._micro_steps, self._open = self._micro_steps + 1, True
        return self._micro_steps, self._captured.output.clone()

    def backward(self, number: int, gradient: Tensor) -> list[Tensor]:
        """The weights' gradients, each in memory of its own: autograd keeps the first lane's to add the others' to."""
        if number != self._micro_steps or not self._open:
            raise RuntimeError("a pass that a CUDA graph computes goes backward once, and before the next goes forward")
        self._open = False
        self._captured.backward(gradient)
        gradients = [torch.empty_like(weight) for weight in self._weights]
        # Private in torch 2.x, whose optimizers copy many tensors by it, too: few kernels.
        torch._foreach_copy_(gradients, self._gradients)
        return gradients

    def release(self) -> None:
        self._open = False
        self._gradients = []
        self._captured.release()


class _Replay(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, graph: _Graph, *weights: Tensor) -> Tensor:
        ctx.graph = graph
        ctx.number, output = graph.forward()
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.graph.backward(ctx.number, gradients[0])


class _Terms:
    """The conditions of a captured micro-step: such clips, this compute path, and tensors that lie where they lay.

    DeepSpeed's ZeRO 1 and 2 (0.19: `_update_model_bit16_weights`) point the weights anew after every step, but to the
    same places of the buffers that they step in, and checkpoints are loaded in place. So a graph outlives both.
    """

    def __init__(self, network: VideoNetwork, clips: Tensor) -> None:
        self._network, self._modules = network, list(network.modules())
        # `_parameters` and `_buffers` (of nn.Module since torch 1.0, and in 2.x), so that a tensor put in the place of
        # another is seen, too.
        self._slots = [
            (tensors, name)
            for module in self._modules
            for tensors in (module._parameters, module._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]
        # While they are held on to, what moves cannot come to lie at the same address on one rank and not on another.
        self._memory = [tensors[name].detach() for tensors, name in self._slots]  # type: ignore[union-attr]  # none is None
        self._seen = self._look(clips)

    def hold(self, clips: Tensor) -> bool:
        """Whether a micro-step over these clips is the captured one, but for the values."""
        return self._look(clips) == self._seen

    def _look(self, clips: Tensor) -> tuple[object, ...]:
        kind = clips.device.type
        tensors: list[Any] = [slots[name] for slots, name in self._slots]
        return (
            clips.shape,
            clips.dtype,
            clips.device,
            torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind),
            self._network.compute_path,
            [module.training for module in self._modules],
            list(map(Tensor.data_ptr, tensors)),
            [tensor.requires_grad for tensor in tensors],
        )


def _norms(network: nn.Module) -> list[LaneBatchNorm]:
    return [module for module in network.modules() if isinstance(module, LaneBatchNorm)]


def _doubles(network: nn.Module) -> list[tuple[nn.Module, str, nn.Parameter]]:
    """A parameter on the memory of each weight, by the module and the name that it has there.

    A weight's own node in autograd belongs to the stream that it was first made on, and lives as long as anything of
    an earlier pass does; that stream would have to wait for the captured one, which no capture allows. A double's is
    made within the capture, and nothing hangs on it.
    """
    return [
        (module, name, nn.Parameter(weight.detach(), weight.requires_grad))
        for module in network.modules()
        for name, weight in module._parameters.items()
        if weight is not None
    ]


@contextmanager
def _in_the_place_of_weights(doubles: list[tuple[nn.Module, str, nn.Parameter]]) -> Iterator[None]:
    """Inside the `with`, modules compute with the doubles.

    Set in `nn.Module._parameters`, torch's private dictionary of a module (in 2.x): a module's attribute takes nothing
    but a parameter and would register it anew. `torch.func` does so, too.
    """
    weights = [module._parameters[name] for module, name, _ in doubles]
    for module, name, double in doubles:
        module._parameters[name] = double
    try:
        yield
    finally:
        for (module, name, _), weight in zip(doubles, weights, strict=True):
            module._parameters[name] = weight


@contextmanager
def _unmoved(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Afterwards all buffers, counts of lanes and random generators are as before, the buffers where they were."""
    buffers, layers = list(network.buffers()), _norms(network)
    values, lanes = [buffer.clone() for buffer in buffers], [layer.lanes for layer in layers]
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            torch._foreach_copy_(buffers, values)
            for layer, count in zip(layers, lanes, strict=True):
                layer.lanes = count


@contextmanager
def _no_dropout(network: nn.Module) -> Iterator[None]:
    """A dropout layer that is to draw raises instead: a replay would know nothing of the lane's own generator."""

    def refuse(layer: nn.Module, _: Any) -> None:
        assert isinstance(layer, LaneDropout)
        if layer.training and layer.p:
            raise _CannotCapture("it has dropout before its last layer")

    with ExitStack() as hooks:
        for layer in network.modules():
            if isinstance(layer, LaneDropout):
                hooks.callback(layer.register_forward_pre_hook(refuse).remove)
        yield
