"""All weights of a network's convolutions in half precision by one call, where autocast makes one a layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from pretrain.models.paths import Convolution, autocast_type


@contextmanager
def cast_at_once(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside the `with`, the model's convolutions compute with weights that were cast together, as autocast says.

    Nothing is cast outside of autocast, nor where a weight is not here whole, as under ZeRO 3.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, Convolution)]
    weights = [layer.weight for layer in layers]
    whole = all(weight.dim() == 5 and weight.dtype == torch.float32 for weight in weights)
    half = autocast_type(device)
    if half is None or not whole:
        yield
        return
    for layer, weight in zip(layers, cast(weights, half), strict=True):
        layer.cast = weight
    try:
        yield
    finally:
        for layer in layers:
            layer.cast = None


def cast(weights: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """The weights, float32 of any shapes, in half precision; gradients come back in float32."""
    found: tuple[Tensor, ...] = _Cast.apply(dtype, *weights)  # type: ignore[no-untyped-call]
    return found


class _Cast(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(_copied(weights, dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        known = iter(_copied([gradient for gradient in gradients if gradient is not None], torch.float32))
        return None, *(None if gradient is None else next(known) for gradient in gradients)


def _copied(tensors: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Copies of their own, each where the allocator begins one, in the same order of memory."""
    copies = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    if copies:
        torch._foreach_copy_(copies, list(tensors))
    return copies
