"""Triton kernels for training's batch normalisation, addition and ReLU over rows, M C: each streams its memory once.

Forward: moments, then apply. Backward: slopes (the sums of the gradients of bias and weight, and the gradient of what
was added), then inner (the gradient of the rows). Sums are float32, taken about the first row so that a mean far from
zero costs no precision, and added in an order that is a function of the shape alone: no atomics, the same bits every
time.

Rows are read as a flat array in blocks whose columns repeat after lcm(BLOCK, C) places: every load is a whole block
of neighbours though C is no power of two, and as a program's channels never change, their scales stay in registers.

Nothing is assumed of where weights, biases and running sums begin: under DeepSpeed they are views into flat buffers,
at any multiple of four bytes. Their arguments are never specialised by alignment; Triton looks at the rows' addresses
at every launch. Gradients handed out are tensors of their own.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from pretrain.models.compute.row_launch import Launch, launch, processors

_FOLDED = 512  # rows of partial sums that one program adds up; more are added in two rounds
_CHANNELS = 32  # of a program that adds up partial sums


def moments(rows: Tensor, precision: torch.dtype) -> Tensor:
    """Mean and biased variance of each channel of rows M C: [2, C], summed in float32, given in `precision`."""
    sums = _partial_moments(rows).sum(1)
    first = rows[0].float()
    mean, square = sums / len(rows)
    return torch.stack([first + mean, (square - mean.square()).clamp(min=0)]).to(precision)


def statistics(rows: Tensor, weight: Tensor, bias: Tensor, eps: float, pending: Tensor | None) -> Tensor:
    """What `apply` and `inner` take, float32 [4, C]: mean, 1 / deviation, weight / deviation and bias of each channel.

    weight, bias: float32 [c], c ≤ C; the channels beyond are padding, whose scale and bias are 0. To `pending`,
    float32 [2, c], the mean and the unbiased variance are added.
    """
    count, channels = rows.shape
    sums = _folded(_partial_moments(rows))
    result = torch.empty(4, channels, device=rows.device)
    _statistics[(-(-channels // _CHANNELS),)](
        sums, rows, weight, bias, result, result if pending is None else pending, count, sums.shape[1], channels,
        len(weight), eps, PENDING=pending is not None, TILE=64, CHANNELS=_CHANNELS, num_warps=4,
    )  # fmt: skip
    return result


def apply(rows: Tensor, statistics: Tensor, added: Tensor | None, relu: bool) -> Tensor:
    """relu((rows - mean) × scale + bias + added), M C in the rows' type; statistics as from `statistics`."""
    output = torch.empty_like(rows)
    how = _launch(rows, "apply")
    _apply[(how.columns, how.groups)](
        rows, rows if added is None else added, output, statistics, rows.numel(), rows.shape[1], how.columns, how.rows,
        ADD=added is not None, RELU=relu, UNROLLED=how.unrolled, BLOCK=how.block, num_warps=how.warps,
    )  # fmt: skip
    return output


def slopes(
    gradient: Tensor, rows: Tensor, output: Tensor | None, statistics: Tensor, relu: bool, channels: int
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """The gradients of bias and weight, float32 [channels] each, both for all C channels, [2, C], and what passed.

    gradient, rows: M C. output: what `apply` gave, where something was added before the ReLU: its sign is not to be
    had from the rows alone. What then passed the ReLU, M C, is the gradient of what was added; None without an output.
    """
    how = _launch(rows, "slopes")
    sums = torch.empty(2, how.partial, rows.shape[1], device=rows.device)
    passed = None if output is None else torch.empty_like(gradient)
    _slopes[(how.columns, how.groups)](
        gradient, rows, rows if output is None else output, statistics, sums, gradient if passed is None else passed,
        rows.numel(), rows.shape[1], how.columns, how.rows,
        ADDED=output is not None, RELU=relu, UNROLLED=how.unrolled, BLOCK=how.block, num_warps=how.warps,
    )  # fmt: skip
    sums = _folded(sums)
    of_bias, of_weight = (torch.empty(channels, device=rows.device) for _ in range(2))
    both = torch.empty(2, rows.shape[1], device=rows.device)
    _slope_sums[(-(-rows.shape[1] // _CHANNELS),)](
        sums, of_bias, of_weight, both, sums.shape[1], rows.shape[1], channels,
        TILE=64, CHANNELS=_CHANNELS, num_warps=4,
    )  # fmt: skip
    return of_bias, of_weight, both, passed


def inner(gradient: Tensor, rows: Tensor, statistics: Tensor, slopes: Tensor, count: int, relu: bool) -> Tensor:
    """The gradient of the rows, M C in their type.

    gradient: M C, still to pass the `relu`, by the sign of the normalised rows. slopes: the gradients of bias and
    weight, float32 [2, C], summed over `count` rows.
    """
    result = torch.empty_like(rows)
    how = _launch(rows, "inner")
    _inner[(how.columns, how.groups)](
        gradient, rows, statistics, slopes, result, 1.0 / count, rows.numel(), rows.shape[1], how.columns, how.rows,
        RELU=relu, UNROLLED=how.unrolled, BLOCK=how.block, num_warps=how.warps,
    )  # fmt: skip
    return result


def _launch(rows: Tensor, kernel: str) -> Launch:
    return launch(rows.shape[0], rows.shape[1], kernel, processors(rows.device))


def _partial_moments(rows: Tensor) -> Tensor:
    how = _launch(rows, "moments")
    sums = torch.empty(2, how.partial, rows.shape[1], device=rows.device)
    _moments[(how.columns, how.groups)](
        rows, sums, rows.numel(), rows.shape[1], how.columns, how.rows,
        UNROLLED=how.unrolled, BLOCK=how.block, num_warps=how.warps,
    )  # fmt: skip
    return sums


def _folded(sums: Tensor) -> Tensor:  # 2 R C → 2 ⌈R / 256⌉ C where R is large
    _, partial, channels = sums.shape
    if partial <= _FOLDED:
        return sums
    each = _FOLDED // 2
    splits = -(-partial // each)
    folded = torch.empty(2, splits, channels, device=sums.device)
    _fold[(-(-channels // _CHANNELS), splits, 2)](
        sums, folded, partial, channels, EACH=each, TILE=64, CHANNELS=_CHANNELS, num_warps=4
    )
    return folded


@triton.jit(do_not_specialize=["channels", "columns", "each"])
def _moments(rows, sums, total, channels, columns, each, UNROLLED: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Sums of (x - first row) and of its square: [2, groups, columns × BLOCK] of rows' `total` numbers."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    group = tl.program_id(1).to(tl.int64)
    width = (columns * BLOCK).to(tl.int64)
    first = tl.load(rows + column % channels).to(tl.float32)[None, :]
    one = tl.zeros([UNROLLED, BLOCK], tl.float32)
    two = tl.zeros([UNROLLED, BLOCK], tl.float32)
    row = group * each + tl.arange(0, UNROLLED)
    for _ in range(0, each, UNROLLED):
        place = row[:, None] * width + column[None, :]
        inside = place < total
        apart = tl.load(rows + place, mask=inside, other=0.0).to(tl.float32) - first
        apart = tl.where(inside, apart, 0.0)
        one += apart
        two += apart * apart
        row += UNROLLED
    tl.store(sums + group * width + column, tl.sum(one, 0))
    tl.store(sums + (tl.num_programs(1) + group) * width + column, tl.sum(two, 0))


@triton.jit(do_not_specialize=["channels", "columns", "each"])
def _slopes(  # type: ignore[no-untyped-def]
    gradient, rows, output, statistics, sums, passed, total, channels, columns, each,
    ADDED: tl.constexpr, RELU: tl.constexpr, UNROLLED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Sums of the gradient behind the ReLU, and of it times the normalised x: [2, groups, columns × BLOCK].

    Where something was added the gradient behind the ReLU is kept in `passed`: `_inner` then reads it alone.
    """
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    group = tl.program_id(1).to(tl.int64)
    width = (columns * BLOCK).to(tl.int64)
    channel = column % channels
    mean = tl.load(statistics + channel)[None, :]
    rate = tl.load(statistics + channels + channel)[None, :]
    scale = tl.load(statistics + 2 * channels + channel)[None, :]
    bias = tl.load(statistics + 3 * channels + channel)[None, :]
    one = tl.zeros([UNROLLED, BLOCK], tl.float32)
    two = tl.zeros([UNROLLED, BLOCK], tl.float32)
    row = group * each + tl.arange(0, UNROLLED)
    for _ in range(0, each, UNROLLED):
        place = row[:, None] * width + column[None, :]
        inside = place < total
        slope = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
        apart = tl.load(rows + place, mask=inside, other=0.0).to(tl.float32) - mean
        if RELU:
            if ADDED:  # noqa: SIM108
                before = tl.load(output + place, mask=inside, other=0.0).to(tl.float32)
            else:
                before = apart * scale + bias
            slope = tl.where(before <= 0, 0.0, slope)
        if ADDED:
            tl.store(passed + place, slope.to(passed.dtype.element_ty), mask=inside)
        product = slope * (apart * rate)
        one += slope
        two += tl.where(inside, product, 0.0)  # beyond the end apart is no number where the mean is none
        row += UNROLLED
    tl.store(sums + group * width + column, tl.sum(one, 0))
    tl.store(sums + (tl.num_programs(1) + group) * width + column, tl.sum(two, 0))


@triton.jit(do_not_specialize=["partial"])
def _fold(sums, folded, partial, channels, EACH: tl.constexpr, TILE: tl.constexpr, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """[2, partial, channels] → [2, splits, channels], `EACH` of the partial sums added up by each program."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    split, which = tl.program_id(1), tl.program_id(2).to(tl.int64)
    total = tl.zeros([TILE, CHANNELS], tl.float32)
    for begin in range(0, EACH, TILE):
        row = split * EACH + begin + tl.arange(0, TILE)
        inside = (row < partial)[:, None] & (channel < channels)[None, :]
        place = (which * partial + row)[:, None] * channels + channel[None, :]
        total += tl.load(sums + place, mask=inside, other=0.0)
    place = (which * tl.num_programs(1) + split) * channels + channel
    tl.store(folded + place, tl.sum(total, 0), mask=channel < channels)


@triton.jit
def _summed(sums, channel, partial, channels, TILE: tl.constexpr, CHANNELS: tl.constexpr):  # type: ignore[no-untyped-def]
    """The two sums of each of these channels, of [2, partial, channels]."""
    one = tl.zeros([TILE, CHANNELS], tl.float32)
    two = tl.zeros([TILE, CHANNELS], tl.float32)
    row = tl.arange(0, TILE)
    for _ in range(0, partial, TILE):
        inside = (row < partial)[:, None] & (channel < channels)[None, :]
        place = row[:, None] * channels + channel[None, :]
        one += tl.load(sums + place, mask=inside, other=0.0)
        two += tl.load(sums + partial * channels + place, mask=inside, other=0.0)
        row += TILE
    return tl.sum(one, 0), tl.sum(two, 0)


@triton.jit(
    do_not_specialize=["count", "partial", "real", "eps"],
    do_not_specialize_on_alignment=["rows", "weight", "bias", "pending"],
)
def _statistics(  # type: ignore[no-untyped-def]
    sums, rows, weight, bias, statistics, pending, count, partial, channels, real, eps,
    PENDING: tl.constexpr, TILE: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """[4, channels] of what `_moments` left, and what is pending moved on, of which [2, real] channels are kept."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    inside, kept = channel < channels, channel < real
    one, two = _summed(sums, channel, partial, channels, TILE, CHANNELS)
    count = count.to(tl.float32)
    apart = one / count
    mean = tl.load(rows + channel, mask=inside, other=0.0).to(tl.float32) + apart
    variance = two / count - apart * apart
    variance = tl.where(variance < 0, 0.0, variance)
    rate = 1.0 / tl.sqrt(variance + eps)
    scale = tl.load(weight + channel, mask=kept, other=0.0) * rate
    tl.store(statistics + channel, mean, mask=inside)
    tl.store(statistics + channels + channel, rate, mask=inside)
    tl.store(statistics + 2 * channels + channel, scale, mask=inside)
    tl.store(statistics + 3 * channels + channel, tl.load(bias + channel, mask=kept, other=0.0), mask=inside)
    if PENDING:
        unbiased = variance * (count / tl.maximum(count - 1.0, 1.0))
        tl.store(pending + channel, tl.load(pending + channel, mask=kept, other=0.0) + mean, mask=kept)
        more = pending + real + channel
        tl.store(more, tl.load(more, mask=kept, other=0.0) + unbiased, mask=kept)


@triton.jit(do_not_specialize=["partial", "real"])
def _slope_sums(  # type: ignore[no-untyped-def]
    sums, of_bias, of_weight, both, partial, channels, real, TILE: tl.constexpr, CHANNELS: tl.constexpr
):
    """What `_slopes` left, added up: each gradient's [real] channels, and [2, channels]."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)
    one, two = _summed(sums, channel, partial, channels, TILE, CHANNELS)
    tl.store(of_bias + channel, one, mask=channel < real)
    tl.store(of_weight + channel, two, mask=channel < real)
    tl.store(both + channel, one, mask=channel < channels)
    tl.store(both + channels + channel, two, mask=channel < channels)


@triton.jit(do_not_specialize=["channels", "columns", "each"])
def _apply(  # type: ignore[no-untyped-def]
    rows, added, output, statistics, total, channels, columns, each,
    ADD: tl.constexpr, RELU: tl.constexpr, UNROLLED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    width = (columns * BLOCK).to(tl.int64)
    channel = column % channels
    mean = tl.load(statistics + channel)[None, :]
    scale = tl.load(statistics + 2 * channels + channel)[None, :]
    bias = tl.load(statistics + 3 * channels + channel)[None, :]
    row = tl.program_id(1).to(tl.int64) * each + tl.arange(0, UNROLLED)
    for _ in range(0, each, UNROLLED):
        place = row[:, None] * width + column[None, :]
        inside = place < total
        value = (tl.load(rows + place, mask=inside, other=0.0).to(tl.float32) - mean) * scale + bias
        if ADD:
            value += tl.load(added + place, mask=inside, other=0.0).to(tl.float32)
        if RELU:
            value = tl.where(value <= 0, 0.0, value)  # what is no number stays none
        tl.store(output + place, value.to(output.dtype.element_ty), mask=inside)
        row += UNROLLED


@triton.jit(do_not_specialize=["share", "channels", "columns", "each"])
def _inner(  # type: ignore[no-untyped-def]
    gradient, rows, statistics, slopes, of_rows, share, total, channels, columns, each,
    RELU: tl.constexpr, UNROLLED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """`share`: what one row is of all those that the slopes were summed over."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    width = (columns * BLOCK).to(tl.int64)
    channel = column % channels
    mean = tl.load(statistics + channel)[None, :]
    rate = tl.load(statistics + channels + channel)
    scale = tl.load(statistics + 2 * channels + channel)[None, :]
    bias = tl.load(statistics + 3 * channels + channel)[None, :]
    level = (tl.load(slopes + channel) * share)[None, :]
    tilt = (tl.load(slopes + channels + channel) * share * rate)[None, :]
    row = tl.program_id(1).to(tl.int64) * each + tl.arange(0, UNROLLED)
    for _ in range(0, each, UNROLLED):
        place = row[:, None] * width + column[None, :]
        inside = place < total
        slope = tl.load(gradient + place, mask=inside, other=0.0).to(tl.float32)
        apart = tl.load(rows + place, mask=inside, other=0.0).to(tl.float32) - mean
        if RELU:
            slope = tl.where(apart * scale + bias <= 0, 0.0, slope)
        value = (slope - level - apart * tilt) * scale
        tl.store(of_rows + place, value.to(of_rows.dtype.element_ty), mask=inside)
        row += UNROLLED
