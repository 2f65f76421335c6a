"""The forms: which convolution a network has where, and how each convolution is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from pretrain.models.compute.batchnorm import LaneBatchNorm
from pretrain.models.compute.compute_path import Convolution, Factored

Kind = Literal["3d", "2d", "(2+1)d", "3d+1"]
StemKind = Literal["3d", "2d", "(2+1)d", "3d+1", "folded"]
Stride = tuple[int, int]  # along time, along height and width


@dataclass(frozen=True)
class Form:
    """Where a network has which convolution: its stem, and its stages conv2_x to conv5_x."""

    stem: StemKind
    stages: tuple[Kind, Kind, Kind, Kind]


def _mixed(stem: StemKind, threed: range) -> Form:
    """3D convolutions in the stages conv{n}_x for n in `threed`, 2D ones in the others."""
    conv2, conv3, conv4, conv5 = ("3d" if stage in threed else "2d" for stage in range(2, 6))
    return Form(stem, (conv2, conv3, conv4, conv5))  # type: ignore[arg-type]


FORMS: dict[str, Form] = {
    "r2d": _mixed("folded", range(0)),
    "fr2d": _mixed("2d", range(0)),
    "r3d": _mixed("3d", range(2, 6)),
    **{f"mc{first}": _mixed("3d", range(2, first)) for first in range(2, 6)},
    **{f"rmc{first}": _mixed("2d", range(first, 6)) for first in range(2, 6)},
    "r2plus1d": Form("(2+1)d", ("(2+1)d", "(2+1)d", "(2+1)d", "(2+1)d")),
    "r3drelu": Form("3d+1", ("3d+1", "3d+1", "3d+1", "3d+1")),
}
"""The forms of the R(2+1)D paper (arXiv 1711.11248, table 1, section 3) and a control, by the names used everywhere.

The paper gives two reasons for R(2+1)D against R3D: twice the nonlinearities, and space and time apart. `r3drelu` has
the first without the second: each 3×3×3 convolution is one to M planes, batch normalisation, a ReLU, and a 1×1×1 one,
with the M that keeps the parameters. So it has as many convolutions, normalisations and ReLUs as R(2+1)D: at depth 18
34 ReLUs where R3D has 17. A second ReLU without a convolution before it would add none that counts: of one channel
alone, normalised between, max(0, a·max(0, x) + b) has one kink for every a above 0, as max(0, x) has.
"""


def midplanes(inputs: int, outputs: int, time: int = 3, space: int = 3) -> int:
    """The M that gives a (2+1)D convolution the parameters of the t×d×d one it replaces (R(2+1)D, 3.5)."""
    return time * space**2 * inputs * outputs // (space**2 * inputs + time * outputs)


def inner_planes(inputs: int, outputs: int, space: int = 3) -> int:
    """The M for which 3×d×d to M planes and 1×1×1 to the outputs have the parameters of 3×d×d to the outputs."""
    return max(1, 3 * space**2 * inputs * outputs // (3 * space**2 * inputs + outputs))


def temporal_strides(form: Form, frames: int) -> tuple[int, int, int, int]:
    """The stride along time of conv2_x to conv5_x for clips of `frames` frames.

    Stages that see time halve it at conv3, conv4 and conv5; 2D stages never do. The halving at conv4 is left
    out under 4 frames and that at conv5 under 8, so that a clip of any length is legal.
    """
    fewest = (None, 1, 4, 8)  # conv2 never strides
    conv2, conv3, conv4, conv5 = (
        2 if kind != "2d" and least is not None and frames >= least else 1
        for kind, least in zip(form.stages, fewest, strict=True)
    )
    return conv2, conv3, conv4, conv5


def conv3d(
    inputs: int,
    outputs: int,
    kernel: tuple[int, int, int],
    stride: Stride = (1, 1),
    padding: tuple[int, int, int] | None = None,
    bias: bool = False,
) -> Convolution:
    """A convolution t×d×d, strided alike along height and width; padded by half its kernel unless told."""
    time, space = stride
    half = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2) if padding is None else padding
    return Convolution(inputs, outputs, kernel, stride=(time, space, space), padding=half, bias=bias)


def _factored(inputs: int, middle: int, outputs: int, size: int, stride: Stride) -> list[nn.Module]:
    """A (2+1)D convolution: spatial, BN with its ReLU (whose place in the published names stays), temporal."""
    time, space = stride
    return [
        conv3d(inputs, middle, (1, size, size), (1, space)),
        LaneBatchNorm(middle, relu=True),
        nn.Identity(),
        conv3d(middle, outputs, (3, 1, 1), (time, 1)),
    ]


def _with_inner_relu(inputs: int, outputs: int, size: int, stride: Stride) -> list[nn.Module]:
    """A 3×d×d convolution, BN with its ReLU, a 1×1×1 one; placed as those of a (2+1)D convolution are."""
    inner = inner_planes(inputs, outputs, size)
    return [
        conv3d(inputs, inner, (3, size, size), stride),
        LaneBatchNorm(inner, relu=True),
        nn.Identity(),
        conv3d(inner, outputs, (1, 1, 1)),
    ]


def convolution(kind: Kind, inputs: int, outputs: int, stride: Stride, middle: int | None = None) -> nn.Module:
    """A 3×3×3 convolution of this kind, without its BN: N inputs T H W → N outputs ⌈T/t⌉ ⌈H/s⌉ ⌈W/s⌉.

    `middle` gives a (2+1)D one other mid-planes than `midplanes`. A 2D one strides time where it is asked to.
    """
    if kind == "(2+1)d":
        return Factored(*_factored(inputs, middle or midplanes(inputs, outputs), outputs, 3, stride))
    if kind == "3d+1":
        return Factored(*_with_inner_relu(inputs, outputs, 3, stride))
    return conv3d(inputs, outputs, (3 if kind == "3d" else 1, 3, 3), stride)


def stem(kind: StemKind, inputs: int, outputs: int, width: float, frames: int) -> nn.Sequential:
    """The first layers, with their BN and ReLU: N inputs T H W → N outputs T ⌈H/2⌉ ⌈W/2⌉ (T 1 where folded).

    The (2+1)D stem has 45 mid-planes by decree (the formula would give 83), scaled by the width. A folded one
    turns all `frames` frames into channels at once.
    """
    chain = Factored if kind in ("(2+1)d", "3d+1") else nn.Sequential
    makers: dict[StemKind, Callable[[], list[nn.Module]]] = {
        "(2+1)d": lambda: _factored(inputs, round(45 * width), outputs, 7, (1, 2)),
        "3d+1": lambda: _with_inner_relu(inputs, outputs, 7, (1, 2)),
        "3d": lambda: [conv3d(inputs, outputs, (3, 7, 7), (1, 2))],
        "2d": lambda: [conv3d(inputs, outputs, (1, 7, 7), (1, 2))],
        "folded": lambda: [conv3d(inputs, outputs, (frames, 7, 7), (1, 2), padding=(0, 3, 3))],
    }
    return chain(*makers[kind](), LaneBatchNorm(outputs, relu=True))
