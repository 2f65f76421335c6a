"""Networks on the meta device, their shapes by arithmetic: torch's own way there loads its compiler, for seconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode  # the only name under which torch 2.x has it

_aten = torch.ops.aten


class ShapesOnly(TorchDispatchMode):
    """While it holds, what a ResNet consists of is shapes alone on the meta device, its first weights, too.

    Autograd keeps for the backward pass what it does on any device. All else is left as it is.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing here is compiled; to say so to the compiler would load it."""
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """What torch calls instead of each operation."""
        by_arithmetic = _BY_ARITHMETIC.get(func)
        if by_arithmetic and args[0].is_meta:
            return by_arithmetic(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


@contextmanager
def on_meta() -> Iterator[None]:
    """What is built within lies on the meta device: it has shapes and no memory."""
    with torch.device("meta"), ShapesOnly():
        yield


def _convolution(
    input: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
    dilation: Sequence[int], transposed: bool, output_padding: Sequence[int], groups: int,
) -> Tensor:  # fmt: skip
    """N C and the sides of the output."""
    if transposed:
        raise NotImplementedError("no network here has transposed convolutions")
    sides = (
        (side + 2 * pad - step * (kernel - 1) - 1) // stride_of + 1
        for side, pad, step, kernel, stride_of in zip(
            input.shape[2:], padding, dilation, weight.shape[2:], stride, strict=True
        )
    )
    return input.new_empty((input.shape[0], weight.shape[0], *sides))


def _batch_norm(
    input: Tensor, weight: Tensor | None, bias: Tensor | None, running_mean: Tensor | None,
    running_var: Tensor | None, training: bool, momentum: float, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """The output, and the batch's means and inverse deviations, of which evaluation keeps none."""
    kept = input.shape[1] if training else 0
    statistics = input if weight is None else weight
    return input.new_empty(input.shape), statistics.new_empty(kept), statistics.new_empty(kept)


def _mean(input: Tensor, dim: Sequence[int] | None, keepdim: bool = False) -> Tensor:
    dimensions = {each % input.dim() for each in (range(input.dim()) if dim is None else dim)}
    sides = [(1 if each in dimensions else side) for each, side in enumerate(input.shape)]
    return input.new_empty([side for each, side in enumerate(sides) if keepdim or each not in dimensions])


def _addmm(bias: Tensor, left: Tensor, right: Tensor) -> Tensor:
    return left.new_empty((left.shape[0], right.shape[1]))


def _in_place(tensor: Tensor, *arguments: Any, **options: Any) -> Tensor:
    return tensor


_BY_ARITHMETIC: dict[Any, Callable[..., Any]] = {
    _aten.convolution.default: _convolution,
    _aten.native_batch_norm.default: _batch_norm,
    _aten.mean.dim: _mean,
    _aten.addmm.default: _addmm,
    _aten.add_.Tensor: _in_place,
    _aten.normal_.default: _in_place,
    _aten.uniform_.default: _in_place,
}
