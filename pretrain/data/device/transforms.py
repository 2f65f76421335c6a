"""Resizes, crops, flips, converts and normalises stored planes to a network's input, a batch at once on the device.

All of it up to the clamp is linear, and the resize works on rows and columns apart. So every plane is resized along
its lines first, and a row of the result is then one weighted sum of rows of all planes: the resize along columns, the
colour matrix and the normalisation are its weights. Nothing is rounded to whole levels on the way.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from pretrain.data.device.tensors import DecodedBatch, FlowBatch, PairBatch, PlaneBatch
from pretrain.data.views.resample import Taps, linear_taps, stacked_taps, taps_as_matrices, taps_range
from pretrain.data.views.views import ClipSettings, View
from sharding.media.flow import LARGEST, ZERO

_KR_KB = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}
_BLOCK = 16  # columns of a product on a CPU: fewer cost more calls, more cost products with zeros


@torch.no_grad()
def network_input(batch: DecodedBatch, clip: ClipSettings, out: Tensor | None = None) -> Tensor:
    """What a network is fed: float32 [N, C, T, crop, crop], contiguous, where the batch lies.

    Pictures: planes are resized bilinearly, chroma to the same size as luma and before the crop, so that a crop may
    begin between chroma samples; converted from limited-range BT.601 or BT.709, clamped to what a screen shows, and
    normalised, (RGB / 255 - mean) / std. That is within 0.01 of 255 levels of exact arithmetic.

    Flow: (dx, dy) in pixels of the resized picture, so both grow with it, and dx of a mirrored clip is negated;
    normalised, (x - mean) / std. R(2+1)D's flow was computed of frames that had been resized, cropped and mirrored
    (ClipTransformOpticalFlow in Caffe2's caffe2/video), and its mean and std are of those pixels.

    Both: the channels of the pictures, then those of the flow.

    `out` is filled and returned where it is given: on a CPU the page faults of fresh memory take a third of the time.
    """
    mean, std = np.array(clip.normalisation.mean), np.array(clip.normalisation.std)
    factors, ranges = _factors(batch)
    factors[..., -1] -= mean
    bounds = list(zip(*((np.array(ends) - mean) / std for ends in zip(*ranges, strict=True)), strict=True))
    return _mixed(_layers(batch, clip.crop), factors / std[:, None], bounds, out)


@torch.no_grad()
def pictures(batch: PlaneBatch, clip: ClipSettings) -> Tensor:
    """What a person is shown of the batch: RGB, uint8 [N, 3, T, crop, crop], contiguous, where the batch lies."""
    shown = _mixed(_layers(batch, clip.crop), _colours(batch), [(0.0, 255.0)] * 3)
    return shown.round_().to(torch.uint8)


def _factors(batch: DecodedBatch) -> tuple[NDArray[np.float64], list[tuple[float, float]]]:
    """Each channel as a sum of the planes and 1, factors [N, C, P + 1], and the least and the most that it may be."""
    if isinstance(batch, FlowBatch):
        return _motion(batch), [(-np.inf, np.inf)] * 2
    if isinstance(batch, PlaneBatch):
        return _colours(batch) / 255.0, [(0.0, 1.0)] * 3
    (colours, of_colours), (motion, of_motion) = _factors(batch.pictures), _factors(batch.flow)
    (channels, planes), more = colours.shape[1:], motion.shape[1:]
    factors = np.zeros((len(colours), channels + more[0], planes - 1 + more[1]))
    factors[:, :channels, : planes - 1], factors[:, :channels, -1] = colours[..., :-1], colours[..., -1]
    factors[:, channels:, planes - 1 :] = motion
    return factors, of_colours + of_motion


def _colours(batch: PlaneBatch) -> NDArray[np.float64]:
    """RGB's levels as sums of the levels of y, u, v and 1: factors [N, 3, 4]."""
    mix = []
    for matrix in batch.matrices:
        kr, kb = _KR_KB[matrix]
        kg = 1.0 - kr - kb
        red, blue = 2.0 * (1.0 - kr), 2.0 * (1.0 - kb)
        mix.append([[1.0, 0.0, red], [1.0, -blue * kb / kg, -red * kr / kg], [1.0, blue, 0.0]])
    return _with_zero(np.array(mix) * [255.0 / 219.0, 255.0 / 224.0, 255.0 / 224.0], [16.0, 128.0, 128.0])


def _motion(batch: FlowBatch) -> NDArray[np.float64]:
    """dx and dy in pixels of the view as sums of the stored steps and 1: factors [N, 2, 3]."""
    mix = []
    for bound, (height, width), view in zip(batch.bounds, batch.sizes, batch.views, strict=True):
        step = bound / LARGEST
        across = step * view.size[1] / width
        mix.append([[-across if view.flip else across, 0.0], [0.0, step * view.size[0] / height]])
    return _with_zero(np.array(mix), [ZERO, ZERO])


def _with_zero(mix: NDArray[np.float64], zero: list[float]) -> NDArray[np.float64]:
    """The factors of planes whose value `zero` stands for 0, and the addend that follows."""
    return np.concatenate([mix, -(mix @ np.array(zero))[..., None]], -1)


@dataclass(frozen=True)
class _Layer:
    """Planes of one size, uint8 [N, T, P, h, w], and the taps of each clip's rows and columns."""

    planes: Tensor
    rows: list[Taps]
    columns: list[Taps]

    def only(self, clips: slice) -> "_Layer":
        return _Layer(self.planes[clips], self.rows[clips], self.columns[clips])


def _layers(batch: DecodedBatch, crop: int) -> list[_Layer]:
    if isinstance(batch, PairBatch):
        return _layers(batch.pictures, crop) + _layers(batch.flow, crop)
    if isinstance(batch, FlowBatch):
        return [_layer(batch.steps, batch.sizes, batch.origins, batch.views, crop)]
    halves = [((height + 1) // 2, (width + 1) // 2) for height, width in batch.sizes]
    origins = [(row // 2, column // 2) for row, column in batch.origins]
    return [
        _layer(batch.y.unsqueeze(2), batch.sizes, batch.origins, batch.views, crop),
        _layer(batch.uv, halves, origins, batch.views, crop),
    ]


def _layer(
    planes: Tensor, sizes: list[tuple[int, int]], origins: list[tuple[int, int]], views: list[View], crop: int
) -> _Layer:
    all_ = list(zip(sizes, origins, views, strict=True))
    rows = [linear_taps(size[0], view.size[0], view.top, crop, origin=origin[0]) for size, origin, view in all_]
    columns = [linear_taps(size[1], view.size[1], view.left, crop, view.flip, origin[1]) for size, origin, view in all_]
    return _Layer(planes, rows, columns)


def _mixed(
    layers: list[_Layer],
    factors: NDArray[np.float64],
    bounds: list[tuple[float, float]],
    out: Tensor | None = None,
) -> Tensor:
    """Sums of the planes of all layers, resized and cut, and of 1: float32 [N, C, T, crop, crop].

    `factors` [N, C, P + 1] are those of the layers' P planes and the addend, `bounds` the C channels' own.
    """
    planes, crop = layers[0].planes, len(layers[0].rows[0].index)
    clips, channels, _ = factors.shape
    if out is None:
        out = torch.empty((clips, channels, planes.shape[1], crop, crop), device=planes.device)
    if planes.device.type != "cpu":
        _mix(layers, factors, bounds, out)
    else:  # clip by clip, which a core's cache holds
        for clip in (slice(number, number + 1) for number in range(clips)):
            _mix([layer.only(clip) for layer in layers], factors[clip], bounds, out[clip])
    return out


def _mix(layers: list[_Layer], factors: NDArray[np.float64], bounds: list[tuple[float, float]], out: Tensor) -> None:
    """`_mixed` into `out`."""
    clips, _, frames, crop, _ = out.shape
    # The wanted lines of all planes, resized, and after them a line of ones, of which the addends are made.
    spans = [taps_range(layer.rows) for layer in layers]
    lines = [layer.planes[..., begin:end, :] for layer, (begin, end) in zip(layers, spans, strict=True)]
    ends = list(accumulate(math.prod(some.shape[:-1]) for some in lines))
    table = out.new_empty(ends[-1] + 1, crop)
    table[-1] = 1.0
    # The taps of a row of the first picture: lines of the table and weights, both [N, crop, taps], then for each tap
    # how many lines on that of the next picture lies, and whose plane it is.
    taps, weights = list[NDArray[np.int32]](), list[NDArray[np.float32]]()
    ahead, whose = list[int](), list[int]()
    for layer, (begin, _), some, last in zip(layers, spans, lines, ends, strict=True):
        first = last - math.prod(some.shape[:-1])
        _across(some, layer.columns, table[first:last].view(*some.shape[:-1], crop))
        index, weight = stacked_taps(layer.rows)
        count, height = some.shape[2:4]
        for plane in range(count):
            taps.append(index + (first - begin + plane * height))
            weights.append(weight)
            ahead += [count * height] * index.shape[-1]
            whose += [max(whose, default=-1) + 1] * index.shape[-1]
    taps.append(np.full((clips, crop, 1), ends[-1], np.int32))
    weights.append(np.ones((clips, crop, 1), np.float32))
    step = _on_device_of(np.array([*ahead, 0], np.int32), out)
    picture = torch.arange(clips * frames, dtype=torch.int32, device=out.device).view(clips, frames, 1, 1)
    bags = picture * step + _on_device_of(np.concatenate(taps, -1), out).unsqueeze(1)  # N T crop taps
    mix = np.concatenate(weights, -1) * factors.transpose(1, 0, 2)[:, :, None, [*whose, -1]]
    shares = _on_device_of(mix.astype(np.float32), out).unsqueeze(2)  # C N 1 crop taps
    for share, (low, high), channel in zip(shares, bounds, out.unbind(1), strict=True):
        each = share.expand(bags.shape).flatten(0, 2)
        sums = F.embedding_bag(bags.flatten(0, 2), table, mode="sum", per_sample_weights=each)
        torch.clamp(sums.view(channel.shape), low, high, out=channel)


def _across(lines: Tensor, columns: list[Taps], out: Tensor) -> None:
    """Resize lines, uint8 [N, T, P, h, w], along themselves by each clip's taps into float32 [N, T, P, h, crop].

    A CPU gathers single values slowly and multiplies matrices fast, an accelerator the other way about, and its
    products may be set to round the weights to ten bits.
    """
    if lines.device.type == "cpu":
        for clip, taps in enumerate(columns):
            _multiplied(lines[clip], taps, out[clip])
    else:
        _gathered(lines, columns, out)


def _multiplied(lines: Tensor, taps: Taps, out: Tensor) -> None:
    """One clip's lines [T, P, h, w] by products with the matrix of the taps, whose zeros are mostly left out."""
    begin, end = taps_range([taps])
    lines = lines[..., begin:end]
    if taps.copies:
        out.copy_(lines.flip(-1) if taps.mirrored else lines)
        return
    results = out.view(-1, out.shape[-1]).split(_BLOCK, 1)
    lines = lines.float().view(-1, end - begin)
    for (first, matrix), result in zip(_blocks(taps), results, strict=True):
        torch.mm(lines.narrow(1, first, len(matrix)), matrix, out=result)


@lru_cache(1024)  # ten kilobytes each
def _blocks(taps: Taps) -> list[tuple[int, Tensor]]:
    return [(first, torch.from_numpy(matrix)) for first, matrix in taps_as_matrices(taps, _BLOCK)]


def _gathered(lines: Tensor, columns: list[Taps], out: Tensor) -> None:
    """All clips' lines, tap by tap."""
    index, weights = (_on_device_of(each, out) for each in stacked_taps(columns))  # N crop K
    for tap in range(index.shape[-1]):
        taken = lines.gather(-1, index[:, None, None, None, :, tap].long().expand(out.shape))
        share = weights[:, None, None, None, :, tap]
        if tap == 0:
            torch.mul(taken, share, out=out)
        else:
            out += taken * share


def _on_device_of(array: NDArray[np.int32] | NDArray[np.float32], beside: Tensor) -> Tensor:
    """On the device; the host waits for no copy to a GPU."""
    there = torch.from_numpy(array)
    return there.pin_memory().to(beside.device, non_blocking=True) if beside.is_cuda else there.to(beside.device)
