"""The functions of `row_kernels` in torch's own operations: for devices without Triton, and for double precision.

The functions are those of `row_kernels` by name, arguments and results, which are of the weights' type here.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def moments(rows: Tensor, precision: torch.dtype) -> Tensor:
    """Mean and biased variance of each channel of rows M C: [2, C] in `precision`."""
    first = rows[0].to(precision)
    apart = rows - first  # about the first row: a mean far from zero costs no precision
    mean = apart.mean(0)
    return torch.stack([first + mean, (apart.square().mean(0) - mean.square()).clamp(min=0)])


def statistics(rows: Tensor, weight: Tensor, bias: Tensor, eps: float, pending: Tensor | None) -> Tensor:
    """Mean, 1 / deviation, weight / deviation and bias of each channel, [4, C]; `pending` is moved on in place."""
    found = moments(rows, weight.dtype)
    add_to(pending, found, len(rows))
    return scales(found, weight, bias, eps)


def scales(moments: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Of moments [2, C], weight and bias [c] (0 in the channels beyond): as `statistics`."""
    zeros = moments.shape[1] - len(weight)
    mean, variance = moments
    rate = (variance + eps).rsqrt()
    return torch.stack([mean, rate, F.pad(weight, (0, zeros)) * rate, F.pad(bias, (0, zeros))])


def add_to(pending: Tensor | None, moments: Tensor, count: Tensor | int) -> None:
    """Add the mean and the unbiased variance of moments [2, C] of `count` rows to pending [2, c], c ≤ C."""
    if pending is None:
        return
    real = pending.shape[1]
    pending[0] += moments[0, :real]
    pending[1] += moments[1, :real] * (count / (count - 1 + (count == 1)))


def apply(rows: Tensor, statistics: Tensor, added: Tensor | None, relu: bool) -> Tensor:
    """relu((rows - mean) × scale + bias + added), M C in the rows' type."""
    output = _before_relu(rows, statistics)
    if added is not None:
        output = output + added
    return (output.relu() if relu else output).to(rows.dtype)


def slopes(
    gradient: Tensor, rows: Tensor, output: Tensor | None, statistics: Tensor, relu: bool, channels: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients of bias and weight, [channels] each, both for all C channels, [2, C], and what passed the ReLU."""
    passed = _through_relu(gradient, rows, output, statistics, relu)
    mean, rate = statistics[:2]
    both = torch.stack([passed.sum(0), (passed * (rows - mean) * rate).sum(0)])
    of_added = None if output is None else passed.to(gradient.dtype)
    return both[0, :channels].clone(), both[1, :channels].clone(), both, of_added


def inner(gradient: Tensor, rows: Tensor, statistics: Tensor, slopes: Tensor, count: int, relu: bool) -> Tensor:
    """The gradient of the rows, M C in their type."""
    passed = _through_relu(gradient, rows, None, statistics, relu)
    mean, rate, scale = statistics[:3]
    level, tilt = slopes / count
    of_rows: Tensor = (passed - level - (rows - mean) * (rate * tilt)) * scale
    return of_rows.to(rows.dtype)


def _through_relu(gradient: Tensor, rows: Tensor, output: Tensor | None, statistics: Tensor, relu: bool) -> Tensor:
    wide = gradient.to(statistics.dtype)
    if not relu:
        return wide
    return torch.where((_before_relu(rows, statistics) if output is None else output) <= 0, 0.0, wide)


def _before_relu(rows: Tensor, statistics: Tensor) -> Tensor:
    mean, _, scale, bias = statistics
    normalised: Tensor = (rows - mean) * scale + bias  # rows in half precision are widened by the mean
    return normalised
