"""Casts the weights of all convolutions to half precision by one call, where autocast makes one call a layer.

That call is `torch._foreach_copy_`, private in torch 2.x: its optimizers copy many tensors by it, too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pretrain.models.compute.compute_path import Convolution, autocast_type


@contextmanager
def cast_at_once(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside the `with`, the model's convolutions compute with weights that were cast together, as autocast says.

    Nothing is cast outside of autocast, nor in a network that is cast itself. All weights are to be here whole.
    """
    half = autocast_type(device)
    layers = [layer for layer in model.modules() if isinstance(layer, Convolution)]
    weights = [layer.weight for layer in layers]
    if half is None or any(weight.dtype != torch.float32 for weight in weights):
        yield
        return
    for layer, weight in zip(layers, cast(weights, half), strict=True):
        layer.cast = weight
    try:
        yield
    finally:
        for layer in layers:
            layer.cast = None


def cast(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """The weights, float32 O I T H W, in half precision and, where it makes a difference, in O T H W I memory.

    That is what a convolution over N T H W C memory reads. Gradients come back in float32, in the weights' own order
    of memory; weights that want none have none.
    """
    learning = [weight for weight in weights if weight.requires_grad]
    trained = iter(_Cast.apply(dtype, *learning) if learning else ())  # type: ignore[no-untyped-call]
    frozen = iter(_laid_out([weight for weight in weights if not weight.requires_grad], dtype))
    return [next(trained if weight.requires_grad else frozen) for weight in weights]


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(_laid_out(weights, dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        present = [gradient for gradient in gradients if gradient is not None]
        copies = [torch.empty(gradient.shape, device=gradient.device) for gradient in present]
        if copies:
            torch._foreach_copy_(copies, present)
        wide = iter(copies)
        return None, *(None if gradient is None else next(wide) for gradient in gradients)


@torch.no_grad()
def _laid_out(weights: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    copies = [torch.empty_like(weight, dtype=dtype, memory_format=torch.channels_last_3d) for weight in weights]
    if copies:
        torch._foreach_copy_(copies, list(weights))
    return copies
