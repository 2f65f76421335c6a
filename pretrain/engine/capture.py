"""Captures a forward and its backward pass as two CUDA graphs, and replays them on the same memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Protocol

import torch
from torch import Tensor

_WARM_UPS = 3  # cuDNN's trials, Triton's compiling and all that is allocated once happen in the first
_BROKEN: list[torch.cuda.CUDAGraph] = []


class Captured(Protocol):
    """A forward pass and its backward pass that can be computed again and again, each time into the same memory.

    output: what `forward` computed last. gradients: what `backward` computed last, one for each of the weights that
    the capture was given, laid out as the weight is, None for a weight that they do not use.
    """

    output: Tensor
    gradients: Sequence[Tensor | None]

    def forward(self) -> None:
        """Compute the output of what the function's inputs and the weights hold now."""

    def backward(self, gradient: Tensor) -> None:
        """Compute the gradients of the last `forward`, of which the output's is `gradient`. Once for each."""

    def release(self) -> None:
        """Give the memory back; nothing is computed any more."""


Capture = Callable[[Callable[[], Tensor], Sequence[Tensor]], Captured]


def capture_for(device: torch.device) -> Capture | None:
    """The class that captures on such a device; None where nothing does."""
    return CudaGraphs if device.type == "cuda" else None


class CudaGraphs:
    """A function without arguments, and its backward pass to `weights`, as CUDA graphs of one memory pool.

    The function computes always the same, on the same memory; all of `weights` require a gradient. It runs a few
    times, then is captured; no `.grad` is touched, and what hangs on them (ZeRO's reductions) is not called. Raises
    whatever the function raises, and RuntimeError for what cannot be captured: then the stream is as before. No pass
    over `weights` may have been made before: autograd would have its stream wait for the captured one.
    """

    def __init__(self, function: Callable[[], Tensor], weights: Sequence[Tensor]) -> None:
        _warm_up(function, weights)
        pool = torch.cuda.graph_pool_handle()
        self._forward = torch.cuda.CUDAGraph()
        self._backward: torch.cuda.CUDAGraph | None = None
        with _capturing(self._forward, pool):
            output = function()
        # The two graphs share the pool: what the forward pass saved for the backward pass lies in it until that is
        # captured, and nothing is allocated from it any more after that. So a replay finds what the last one left.
        self.output = output.detach()
        self.gradients: Sequence[Tensor | None] = [None] * len(weights)
        if output.requires_grad:
            self._output_gradient = torch.zeros_like(output)
            self._backward = torch.cuda.CUDAGraph()
            with _capturing(self._backward, pool):
                found = torch.autograd.grad(output, weights, self._output_gradient, allow_unused=True)
                self.gradients = [_laid_out(each, weight) for each, weight in zip(found, weights, strict=True)]

    def forward(self) -> None:
        """Replay the forward pass on the current stream."""
        self._forward.replay()

    def backward(self, gradient: Tensor) -> None:
        """Replay the backward pass on the current stream."""
        assert self._backward is not None
        self._output_gradient.copy_(gradient)
        self._backward.replay()

    def release(self) -> None:
        """Wait for the device, and give the graphs and their pool back."""
        torch.cuda.synchronize()
        self._forward.reset()
        if self._backward is not None:
            self._backward.reset()
            del self._output_gradient
        del self.output
        self.gradients = []


def _warm_up(function: Callable[[], Tensor], weights: Sequence[Tensor]) -> None:
    torch.cuda.synchronize()
    # By another stream than the default one, or autograd would have the default stream wait within the capture.
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(_WARM_UPS):
            output = function()
            if output.requires_grad:
                torch.autograd.grad(output, weights, torch.zeros_like(output), allow_unused=True)
    torch.cuda.synchronize()


@contextmanager
def _capturing(graph: torch.cuda.CUDAGraph, pool: Any) -> Iterator[None]:
    """What is sent to the device inside the `with` is captured instead, its memory taken from the pool."""
    stream = torch.cuda.current_stream()
    try:
        # Only this thread's calls are held to what a capture allows: the loader copies, and NCCL watches, by others.
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            yield
    except BaseException:
        torch.cuda.set_stream(stream)  # torch.cuda.graph leaves its own current where the capture's end fails
        _clean_up(graph, pool, stream.device_index)
        raise


def _clean_up(graph: torch.cuda.CUDAGraph, pool: Any, device: int) -> None:
    """After a capture that failed: what torch does itself only after one that ended well.

    In torch 2.11 `capture_end` raises before it tells the allocators that the capture is over (pytorch/pytorch
    #180395), and up to 2.13 at least no graph gives back the pool of a capture that failed (#190308). The allocator
    would then keep what other streams are done with, and go on asking the graph whether it captures: so the graph must
    live. The calls, private in torch 2.11 to 2.13, are those that `torch.cuda.use_mem_pool` makes at its end; one too
    many raises RuntimeError. Nor is the default generator told, which then refuses to draw; a copy of its state was
    never told of a capture.
    """
    generator = torch.cuda.default_generators[device]
    generator.graphsafe_set_state(generator.clone_state())
    try:
        graph.pool()  # it raises unless the capture ended well, as it does where what is captured ran out of memory
        graph.reset()
    except RuntimeError:
        _BROKEN.append(graph)
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(device, pool)
        with suppress(RuntimeError):
            torch._C._cuda_releasePool(device, pool)
    torch.cuda.empty_cache()


def _laid_out(gradient: Tensor | None, weight: Tensor) -> Tensor | None:
    """The gradient with the strides of its weight, as autograd lays out a `.grad`."""
    if gradient is None or gradient.stride() == weight.stride():
        return gradient
    return torch.empty_like(weight).copy_(gradient)
