"""Weights of 2D networks, inflated along time into video networks (arXiv 1705.07750, section 2.4.2)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

from pretrain.models.convolutions import FORMS
from pretrain.models.network import VideoNetwork
from sharding.base.errors import UserError

INFLATABLE: tuple[str, ...] = (*(name for name in FORMS if name not in ("r2plus1d", "r3drelu")), "i3d")
"""The networks whose convolutions are whole 2D or 3D kernels, one for each of the 2D network's."""

_STEM = {"conv1": "stem.0", "bn1": "stem.1"}
_IN_BLOCK = re.compile(r"(layer\d\.\d+)\.(conv|bn)(\d)\.(.+)")


def inflate(weight: Tensor, frames: int) -> Tensor:
    """A 2D kernel O I H W → O I frames H W: repeated along time, divided by `frames`.

    Where all the frames under it are the same, it gives what the 2D kernel gives on one of them.
    """
    if weight.dim() != 4 or frames < 1:
        raise ValueError(f"inflate takes a kernel O I H W and at least 1 frame, not {tuple(weight.shape)} and {frames}")
    return weight.unsqueeze(2).repeat(1, 1, frames, 1, 1) / frames


def is_flat(state: Mapping[str, Tensor]) -> bool:
    """Whether the tensors are a 2D network's, named as torchvision's ResNets or as I3D with kernels of 4 axes."""
    return any(state[name].dim() == 4 for name in ("conv1.weight", "Conv3d_1a_7x7.conv3d.weight") if name in state)


def named_as_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A 2D network's tensors under the names of our state dicts, its kernels still O I H W.

    The 2D ResNets' names are torchvision's: conv1, bn1, layerL.B.conv1 and bn1, …, fc. Others stay as they are.
    """
    return {_name(name): value for name, value in state.items()}


def inflated(state: Mapping[str, Tensor], model: VideoNetwork) -> dict[str, Tensor]:
    """A 2D network's tensors (`is_flat`) as a video network's, for `load_weights`.

    Each kernel is inflated to the frames that the network's own spans. A clip of one repeated frame then gives
    the 2D network's activations wherever no kernel has reached the zeros before the first and after the last
    frame: everywhere in R2D and f-R2D, which have no such zeros, and in the others in the middle of a clip that
    is longer than what their layers see of time. Its max pooling of 2D weights asks for `pool1`.

    Raises UserError for a (2+1)D network.
    """
    wanted = model.state_dict()
    if "stem.3.weight" in wanted:
        raise UserError(
            "2D weights cannot be inflated into r2plus1d: each of its convolutions is two, with batch normalisation "
            "and a ReLU between, and the 2D network has nothing to fill the second with",
            "inflate",
            f"inflate into one of {', '.join(INFLATABLE)}",
        )
    ours = named_as_ours(state)
    return {
        name: inflate(value, wanted[name].shape[2]) if value.dim() == 4 and _is_kernel(wanted.get(name)) else value
        for name, value in ours.items()
    }


def _is_kernel(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.dim() == 5


def _name(name: str) -> str:
    first, _, rest = name.partition(".")
    if first in _STEM:
        return f"{_STEM[first]}.{rest}"
    if found := _IN_BLOCK.fullmatch(name):
        block, kind, number, rest = found.groups()
        return f"{block}.conv{number}.{0 if kind == 'conv' else 1}.{rest}"
    return name
