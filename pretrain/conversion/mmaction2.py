"""mmaction2's networks: which are the zoo's under other names, and in what the others differ."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from sharding.base.errors import UserError

_MODULES = re.compile(r"(?:layer[1-4]\.\d+\.)?(?:conv\d[ab]?|downsample)\.(?:conv|bn)\..+")
_IN_2D = {"conv": ("conv{}", "downsample.0"), "bn": ("bn{}", "downsample.1")}


def is_mmaction2s(state: Mapping[str, Tensor]) -> bool:
    """Whether the convolutions and BNs lie in `ConvModule`s, as in mmaction2's own backbones (`conv1.conv.weight`)."""
    return any(map(_MODULES.fullmatch, state))


def from_mmaction2(state: Mapping[str, Tensor], where: str) -> dict[str, Tensor]:
    """mmaction2's 2D ResNet (TSN) under torchvision's names, which it equals.

    Its video networks are others than the zoo's, by mmaction/models/backbones/{resnet2plus1d,resnet3d,c3d}.py and
    common/conv2plus1d.py at 4d6c934. Raises UserError for them that says in what they differ.
    """
    if not any(value.dim() == 5 for value in state.values()):
        return {_name_in_2d(name): value for name, value in state.items()}
    raise UserError(
        f"the network is {_differing(state)}",
        where,
        "give weights of VMZ or ig65m-pytorch (the paper's R(2+1)D) or torchvision's, or train one (reelscale models)",
    )


def _name_in_2d(name: str) -> str:
    before, kind, rest = re.fullmatch(r"(.*?)(?:\.(conv|bn))?(\.[^.]+)", name).groups()  # type: ignore[union-attr]
    if kind is None or not _MODULES.fullmatch(name):
        return name
    block, _, layer = before.rpartition(".")
    numbered, shortcut = _IN_2D[kind]
    ours = shortcut if layer == "downsample" else numbered.format(layer.removeprefix("conv"))
    return f"{block}.{ours}{rest}" if block else f"{ours}{rest}"


def _differing(state: Mapping[str, Tensor]) -> str:
    if "conv1a.conv.weight" in state:
        norms = "" if any(name.startswith("conv1a.bn.") for name in state) else "has no batch normalisation and "
        return f"mmaction2's C3D, which {norms}pads its last pooling (fc6 takes 8192 values where VMZ's takes 4608)"
    stem = state.get("conv1.conv.conv_s.weight")
    if stem is None:
        return (
            "mmaction2's ResNet3d, which pools after its stem and, by its config, along time; what it strides along "
            "time no weight tells"
        )
    shortcuts = [name for name in state if name.endswith("downsample.conv.conv_s.weight")]
    parts = [f"its stem has {stem.shape[0]} mid-planes, where the paper's and VMZ's have 45"]
    if shortcuts:
        parts.append(
            f"its shortcuts are (2+1)D convolutions, with batch normalisation and a ReLU between ({shortcuts[0]}), "
            "where the paper's are one 1×1×1 convolution"
        )
    parts.append("it pools after the stem; the batch normalisations within its convolutions have another eps (1e-5)")
    return f"mmaction2's R(2+1)D, which is another one than the paper's: {'; '.join(parts)}"
