"""A step's verdict, which stays on the device: whether its gradients are finite, by their norm, and what follows."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from pretrain.engine.distributed import World

_LITTLE = 1e-6  # DeepSpeed's, and torch's: a norm clipped to itself


class Judge:
    """Judges each step on the device, and has the optimizer leave out one that is not finite.

    A fused optimizer of torch's reads `found_inf` and `grad_scale` there, as `torch.amp.GradScaler` hands them to it
    (2.11 to 2.13): it leaves weights, state and its count of steps as they are to the bit where `found_inf` is 1, and
    divides the gradients by `grad_scale` otherwise. So the host sends a whole step without waiting for its norm.
    """

    def __init__(self, optimizer: Any, zero: int, world: World, clip: float, scale: Callable[[], float]) -> None:
        """`optimizer`: as DeepSpeed gave it. `scale`: what the gradients are multiplied by when they are judged."""
        self._optimizer, self._zero, self._world, self._clip, self._scale = optimizer, zero, world, clip, scale
        self._inner = optimizer.optimizer if zero else optimizer
        self.verdict = torch.tensor([1.0, math.nan], device=world.device)
        # DeepSpeed (0.19) asks for the norm in the midst of its step, waits until it is known to be finite, and leaves
        # the step out otherwise. It is handed a sound number of the host's instead, and takes every step. Its own
        # function makes a tensor of a Python number for each group of parameters, which waits as well.
        if zero in (1, 2):
            optimizer.scaled_global_norm = self._shared_norm
        elif zero == 3:
            optimizer._get_norm_groups = lambda: [self._shared_norm()]

    def _shared_norm(self, norm_type: int = 2) -> float:
        """Judge what ZeRO has left of the gradients on this rank, in the lists that its optimizer takes them from."""
        self.judge([part for group in self._optimizer.averaged_gradients.values() for part in group])
        return 0.0

    @torch.no_grad()
    def judge(self, gradients: list[Tensor]) -> None:
        """Judge the coming step of the optimizer. Under ZeRO each rank has a part of the gradients: a collective."""
        # torch's private way (2.11 to 2.13) to the norms of many tensors by few kernels, as its clip_grad_norm_ goes.
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients, dtype=torch.float32)))
        if self._zero:
            square = norm.square()
            self._world.sum_(square)
            norm = square.sqrt()
        # Without ZeRO nobody else takes the loss scale out.
        scale, left = self._scale(), 1.0 if self._zero else self._scale()
        norm = norm / scale
        finite = norm.isfinite()
        self.verdict = torch.stack([finite.float(), torch.where(finite, norm, math.inf)])
        found_inf, divisor = 1.0 - self.verdict[0], None
        if self._clip:
            divisor = ((norm + _LITTLE) / self._clip).clamp(min=1.0) * left
        elif left != 1:
            divisor = torch.full_like(norm, left)
        self._inner.found_inf, self._inner.grad_scale = found_inf, divisor


class _Judged(torch.optim.Optimizer):
    """torch's plain optimizers with what the fused ones do about `found_inf` and `grad_scale`, for a CPU.

    The fused ones round the last few numbers of a tensor otherwise there, so that the bits of a step would depend on
    how ZeRO shares the weights out.
    """

    found_inf: Tensor | None = None
    grad_scale: Tensor | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """A step, unless `found_inf` is 1: it lies in the host's own memory."""
        found_inf, grad_scale = self.found_inf, self.grad_scale
        assert found_inf is not None, "not judged"
        if found_inf.numpy():
            return None
        if grad_scale is not None:
            for group in self.param_groups:
                for weight in group["params"]:
                    if weight.grad is not None:
                        weight.grad.div_(grad_scale)
        self.found_inf = self.grad_scale = None  # torch's plain functions (2.11 to 2.13) refuse them
        step = super().step
        try:
            # What torch (2.11 to 2.13) wraps it in loads its compiler, for more than a second, and restores the grad
            # mode, which is off here.
            return step.__wrapped__(self, closure)  # type: ignore[attr-defined]
        finally:
            self.found_inf, self.grad_scale = found_inf, grad_scale  # ZeRO takes a step for each group of weights


class _SGD(_Judged, torch.optim.SGD):
    pass


class _AdamW(_Judged, torch.optim.AdamW):
    pass


def sgd(groups: list[dict[str, Any]], device: torch.device, momentum: float, nesterov: bool) -> torch.optim.SGD:
    """torch's SGD, which takes a `Judge`'s verdict; the learning rate is set before each step."""
    options: dict[str, Any] = {"lr": 1.0, "momentum": momentum, "nesterov": nesterov and momentum > 0}
    return _SGD(groups, **options) if device.type == "cpu" else torch.optim.SGD(groups, **options, fused=True)


def adamw(
    groups: list[dict[str, Any]], device: torch.device, betas: tuple[float, float], eps: float
) -> torch.optim.AdamW:
    """torch's AdamW, which takes a `Judge`'s verdict; the learning rate is set before each step."""
    options: dict[str, Any] = {"lr": 1.0, "betas": betas, "eps": eps}
    return _AdamW(groups, **options) if device.type == "cpu" else torch.optim.AdamW(groups, **options, fused=True)


@torch.no_grad()
def gradients_of(weights: Iterable[Tensor]) -> list[Tensor]:
    """The gradients of weights, where they have some, each in the order of memory of its weight.

    torch's fused optimizers go through both in the order of memory, and refuse, or do not see, that it differs.
    """
    gradients = []
    for weight in weights:
        if weight.grad is None:
            continue
        strides = zip(weight.shape, weight.stride(), weight.grad.stride(), strict=True)
        if any(size > 1 and ours != theirs for size, ours, theirs in strides):
            weight.grad = torch.empty_like(weight).copy_(weight.grad)
        gradients.append(weight.grad)
    return gradients
