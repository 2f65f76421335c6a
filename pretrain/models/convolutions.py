"""The forms: which convolution a network has where, and how each convolution is built."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import nn

from pretrain.models.batchnorm import LaneBatchNorm

Kind = Literal["(2+1)d"]
Stride = tuple[int, int]  # along time, along height and width


@dataclass(frozen=True)
class Form:
    """Where a network has which convolution: its stem, and its stages conv2_x to conv5_x."""

    stem: Kind
    stages: tuple[Kind, Kind, Kind, Kind]


FORMS: dict[str, Form] = {
    "r2plus1d": Form(stem="(2+1)d", stages=("(2+1)d", "(2+1)d", "(2+1)d", "(2+1)d")),
}


def midplanes(inputs: int, outputs: int, time: int = 3, space: int = 3) -> int:
    """The M that gives a (2+1)D convolution the parameters of the t×d×d one it replaces (R(2+1)D, 3.5)."""
    return time * space**2 * inputs * outputs // (space**2 * inputs + time * outputs)


def temporal_strides(form: Form, frames: int) -> tuple[int, int, int, int]:
    """The stride along time of conv2_x to conv5_x for clips of `frames` frames.

    Stages that see time halve it at conv3, conv4 and conv5; the halving at conv4 is left out under 4 frames
    and that at conv5 under 8, so that a clip of any length is legal.
    """
    fewest = (None, 1, 4, 8)  # conv2 never strides
    halved = (least is not None and frames >= least for least in fewest)
    conv2, conv3, conv4, conv5 = (2 if halve else 1 for halve in halved)
    return conv2, conv3, conv4, conv5


def _factored(inputs: int, outputs: int, stride: Stride) -> nn.Module:
    """A (2+1)D 3×3×3 convolution: spatial, BN, ReLU, temporal; its mid-planes are its own, not a block's."""
    time, space = stride
    middle = midplanes(inputs, outputs)
    return nn.Sequential(
        nn.Conv3d(inputs, middle, (1, 3, 3), stride=(1, space, space), padding=(0, 1, 1), bias=False),
        LaneBatchNorm(middle),
        nn.ReLU(inplace=True),
        nn.Conv3d(middle, outputs, (3, 1, 1), stride=(time, 1, 1), padding=(1, 0, 0), bias=False),
    )


def _factored_stem(inputs: int, outputs: int, width: float) -> nn.Sequential:
    """The (2+1)D stem; its mid-planes are 45 by decree (the formula would give 83), scaled by the width."""
    middle = round(45 * width)
    return nn.Sequential(
        nn.Conv3d(inputs, middle, (1, 7, 7), stride=(1, 2, 2), padding=(0, 3, 3), bias=False),
        LaneBatchNorm(middle),
        nn.ReLU(inplace=True),
        nn.Conv3d(middle, outputs, (3, 1, 1), padding=(1, 0, 0), bias=False),
        LaneBatchNorm(outputs),
        nn.ReLU(inplace=True),
    )


_CONVOLUTIONS: dict[Kind, Callable[[int, int, Stride], nn.Module]] = {"(2+1)d": _factored}
_STEMS: dict[Kind, Callable[[int, int, float], nn.Sequential]] = {"(2+1)d": _factored_stem}


def convolution(kind: Kind, inputs: int, outputs: int, stride: Stride) -> nn.Module:
    """A 3×3×3 convolution of this kind, without its BN: N inputs T H W → N outputs ⌈T/t⌉ ⌈H/s⌉ ⌈W/s⌉."""
    return _CONVOLUTIONS[kind](inputs, outputs, stride)


def stem(kind: Kind, inputs: int, outputs: int, width: float) -> nn.Sequential:
    """The first layers of a network, with their BN and ReLU: N inputs T H W → N outputs T ⌈H/2⌉ ⌈W/2⌉."""
    return _STEMS[kind](inputs, outputs, width)
