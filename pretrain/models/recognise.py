"""Which network a state dict is of: from its tensors' names and shapes to the network's settings."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pretrain.models.convolutions import FORMS, Kind, midplanes
from pretrain.models.resnet import DEPTHS, Depth
from pretrain.models.zoo import ModelSettings
from sharding.errors import UserError
from sharding.settings import validate

Shapes = Mapping[str, tuple[int, ...]]
Maker = Literal["pytorch", "caffe2"]


@dataclass(frozen=True)
class Recognised:
    """A network found in a file. `frames` and `size` of a clip are given where the weights fit no others."""

    settings: ModelSettings
    classes: int
    frames: int | None = None
    size: int | None = None


def recognise(shapes: Shapes, where: str, maker: Maker = "pytorch") -> Recognised:
    """The network that tensors of these names and shapes are of; the names are those of our state dicts.

    The names are torchvision's for the ResNets and pytorch-i3d's for I3D. What no shape tells:

    - BN's eps. torchvision's three networks have 1e-5: R(2+1)D with mid-planes per block (which nobody else
      publishes), and R3D-18 and MC3-18 from PyTorch. All others have Caffe2's and kinetics-i3d's 1e-3.
    - pool1. No published video network has it.
    - A 2D network whose first kernel spans three frames is MC2, not an R2D for clips of three frames.
    - The clip of a C3D: 16 frames, of 112² pixels where it fits.

    Raises UserError for other names, and for depths and forms that are not in the zoo. That every tensor is the
    network's is for `check_weights` to find.
    """
    looked = _Looked(shapes, where)
    if "stem.0.weight" in shapes:
        return _resnet(looked, maker)
    if "Conv3d_1a_7x7.conv3d.weight" in shapes:
        settings = {"name": "i3d", "width": looked.planes("Mixed_5c.b0.conv3d.weight") / 384}
        settings["in_channels"] = looked.kernel("Conv3d_1a_7x7.conv3d.weight")[1]
        return Recognised(looked.settings(settings), looked.planes("logits.conv3d.weight"))
    if "fc6.weight" in shapes and "conv1.0.weight" in shapes:
        return _c3d(looked)
    some = ", ".join(list(shapes)[:4]) or "none at all"
    raise UserError(
        f"the tensors' names are of no network that is known here ({some}, …)",
        where,
        "give weights of torchvision's video ResNets, ig65m-pytorch, VMZ, pytorch-i3d, or an export of ours",
    )


class _Looked:
    """Shapes that say what is missing when it is asked for."""

    def __init__(self, shapes: Shapes, where: str) -> None:
        self.shapes, self.where = shapes, where

    def shape(self, name: str, axes: int | None = None) -> tuple[int, ...]:
        found = self.shapes.get(name)
        if found is None:
            raise self.unknown(f"the tensor {name} is missing")
        if not found or 0 in found or len(found) != (axes or len(found)):
            wanted = f"{axes} axes are" if axes else "more is"
            raise self.unknown(f"the tensor {name} has the shape {found}, and {wanted} expected")
        return found

    def kernel(self, name: str) -> tuple[int, ...]:
        return self.shape(name, 5)

    def planes(self, name: str) -> int:
        return self.shape(name)[0]

    def unknown(self, what: str) -> UserError:
        return UserError(what, self.where, "give whole weights of a network of the zoo (reelscale models)")

    def settings(self, tree: dict[str, Any]) -> ModelSettings:
        return validate(ModelSettings, tree, self.where)


def _resnet(looked: _Looked, maker: Maker) -> Recognised:
    bottlenecks = "layer1.0.conv3.0.weight" in looked.shapes
    first = "conv2" if bottlenecks else "conv1"
    kinds = [_kind(looked, f"layer{stage}.0.{first}.0") for stage in range(1, 5)]
    depth = _depth(looked, bottlenecks)
    stem = looked.kernel("stem.0.weight")
    name, frames = _form(looked, kinds, stem[2])
    width = looked.planes("layer4.0.conv1.1.weight") / 512
    tree: dict[str, Any] = {"name": name, "depth": depth, "width": width, "in_channels": stem[1]}
    if name == "r2plus1d":
        tree["midplanes"] = _midplanes(looked)
    torchvisions = tree.get("midplanes") == "block" or (name in ("r3d", "mc3") and depth == 18 and maker == "pytorch")
    tree["eps"] = 1e-5 if torchvisions else 1e-3
    return Recognised(looked.settings(tree), looked.shape("fc.weight", 2)[0], frames)


def _depth(looked: _Looked, bottlenecks: bool) -> int:
    names = [name.split(".") for name in looked.shapes]
    counts = [len({parts[1] for parts in names if parts[0] == f"layer{stage}"}) for stage in range(1, 5)]
    expansion = None
    if bottlenecks:
        wide, narrow = looked.planes("layer1.0.conv3.0.weight"), looked.planes("layer1.0.conv1.0.weight")
        expansion = wide // narrow
    for depth, known in DEPTHS.items():
        if known == Depth((counts[0], counts[1], counts[2], counts[3]), expansion):
            return depth
    kind = f"bottlenecks of expansion {expansion}" if bottlenecks else "basic blocks"
    raise looked.unknown(f"{counts} {kind} make no network of the zoo, whose depths are {', '.join(map(str, DEPTHS))}")


def _kind(looked: _Looked, convolution: str) -> Kind:
    if f"{convolution}.0.weight" in looked.shapes:
        return "(2+1)d"
    time = looked.kernel(f"{convolution}.weight")[2]
    if time not in (1, 3):
        raise looked.unknown(f"the tensor {convolution}.weight spans {time} frames, and 1 or 3 are expected")
    return "3d" if time == 3 else "2d"


def _form(looked: _Looked, kinds: list[Kind], frames: int) -> tuple[str, int | None]:
    """The form's name, and the clip's frames where the stem folds them."""
    stem = "(2+1)d" if "stem.3.weight" in looked.shapes else {1: "2d", 3: "3d"}.get(frames, "folded")
    for name, form in FORMS.items():
        if (form.stem, list(form.stages)) == (stem, kinds):
            return name, frames if stem == "folded" else None
    raise looked.unknown(
        f"a first convolution over {frames} frames and stages of {', '.join(kinds)} make no form of the zoo"
    )


def _midplanes(looked: _Looked) -> Literal["conv", "block"]:
    """Who has counted them: seen where a block's second convolution has other inputs than the block."""
    found = looked.planes("layer2.0.conv2.0.0.weight")
    planes = looked.planes("layer2.0.conv2.1.weight")
    inputs = looked.kernel("layer2.0.conv1.0.0.weight" if "layer2.0.conv1.0.0.weight" in looked.shapes else
                           "layer2.0.conv1.0.weight")[1]  # fmt: skip
    per_block, per_conv = midplanes(inputs, planes), midplanes(planes, planes)
    return "block" if found == per_block != per_conv else "conv"


def _c3d(looked: _Looked) -> Recognised:
    inputs, planes = looked.shape("fc6.weight", 2)[1], looked.planes("conv5.2.weight")
    side = math.isqrt(inputs // planes)
    if side * side * planes != inputs or not side:
        raise looked.unknown(f"fc6.weight takes {inputs} values, and {planes} planes of a square are expected")
    tree = {"name": "c3d", "width": planes / 512, "in_channels": looked.kernel("conv1.0.weight")[1]}
    classes = looked.shape("fc8.weight", 2)[0]
    return Recognised(looked.settings(tree), classes, frames=16, size=112 if side == 3 else 32 * side)
