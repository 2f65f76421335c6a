"""Identifies the network of a state dict: from its tensors' names and shapes to the network's settings."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from pretrain.models.convolutions import FORMS, Form, Kind, StemKind, midplanes
from pretrain.models.inception import MIXED
from pretrain.models.resnet import DEPTHS, Depth
from pretrain.models.zoo import ModelSettings
from sharding.base.errors import UserError
from sharding.base.settings import validate

Shapes = Mapping[str, tuple[int, ...]]
Maker = Literal["pytorch", "caffe2"]

_RESNETS = re.compile(r"(layer[1-4]\.(?:0|[1-9]\d*))\.conv[123]\.[01]\..+")
_BRANCHES = ("b0", "b1a", "b1b", "b2a", "b2b", "b3b")
_WIDTHS = (1 / 64, 8)  # the least and the greatest of the zoo

# The planes at width 1 of what lies under a prefix.
_I3DS = {"Conv3d_1a_7x7": 64, "Conv3d_2b_1x1": 64, "Conv3d_2c_3x3": 192} | {
    f"Mixed_{name}.{branch}": planes
    for name, published in MIXED.items()
    for branch, planes in zip(_BRANCHES, published, strict=True)
}
_P3DS = ("conv1", "spatial", "temporal")
_C3DS = {"conv1": 64, "conv2": 128, "conv3": 256, "conv4": 512, "conv5": 512, "fc6": 4096, "fc7": 4096}


@dataclass(frozen=True)
class Recognised:
    """A network found in a file. `frames` and `size` of a clip are given where the weights fit no others."""

    settings: ModelSettings
    classes: int
    frames: int | None = None
    size: int | None = None


def recognise(shapes: Shapes, where: str, maker: Maker = "pytorch") -> Recognised:
    """The network that tensors of these names and shapes are of; the names are those of our state dicts.

    The names are torchvision's for the ResNets and pytorch-i3d's for I3D; P3D, S3D, LSTM and fused3d have our own. What
    no shape tells:

    - BN's eps. torchvision's three networks have 1e-5: R(2+1)D with mid-planes per block (which nobody else
      publishes), and R3D-18 and MC3-18 from PyTorch. All others have Caffe2's and kinetics-i3d's 1e-3.
    - pool1. No published video network has it.
    - A 2D network whose first kernel spans three frames is MC2, not an R2D for clips of three frames.
    - The clip of a C3D: 16 frames, of 112² pixels where it fits.

    Most of the tensors decide, so that one which is missing or misshapen is left for `check_weights` to name.
    Raises UserError for other names, and for depths and forms that are not in the zoo.
    """
    looked = _NamedShapes(shapes, where)
    if any(map(_RESNETS.fullmatch, shapes)):
        return _p3d(looked) if "layer1.0.spatial" in looked.under else _resnet(looked, maker)
    if any(f"{unit}.{part}" in looked.under for unit in _I3DS for part in ("conv3d", "bn")):
        return _inception(looked)
    if "stem.flow" in looked.under:
        streams = {f"conv{name[6]}.rgb.{name}": planes for name, planes in _I3DS.items() if name.startswith("Mixed")}
        return Recognised(looked.settings({"name": "fused3d", "width": looked.width(streams)}), looked.classes("fc", 2))
    if {"fc6", "fc7", "fc8"} & looked.under.keys() and any(f"conv{group}.0" in looked.under for group in range(1, 6)):
        return _c3d(looked)
    some = ", ".join(list(shapes)[:4]) or "none at all"
    raise UserError(
        f"the tensors' names are of no network that is known here ({some}, …)",
        where,
        "give weights of torchvision's video ResNets, ig65m-pytorch, VMZ, pytorch-i3d, or an export of ours",
    )


class _NamedShapes:
    """Shapes that say what is missing when it is asked for. `under`: those below each prefix of a name."""

    def __init__(self, shapes: Shapes, where: str) -> None:
        self.shapes, self.where = shapes, where
        self.under: defaultdict[str, list[tuple[int, ...]]] = defaultdict(list)
        for name, shape in shapes.items():
            parts = name.split(".")
            for length in range(1, len(parts)):
                self.under[".".join(parts[:length])].append(shape)

    def shape(self, name: str, axes: int | None = None) -> tuple[int, ...]:
        shape = self.shapes.get(name)
        if shape is None:
            raise self.unknown(f"the tensor {name} is missing")
        if not shape or 0 in shape or len(shape) != (axes or len(shape)):
            wanted = f"{axes} axes are" if axes else "more is"
            raise self.unknown(f"the tensor {name} has the shape {shape}, and {wanted} expected")
        return shape

    def classes(self, classifier: str, axes: int | None = None) -> int:
        """Those of the classifier's weight, or of its bias where the weight is missing."""
        bias = self.outputs(classifier) if f"{classifier}.weight" not in self.shapes else None
        return bias or self.shape(f"{classifier}.weight", axes)[0]

    def kernel(self, name: str) -> tuple[int, ...] | None:
        """The shape of a convolution's weight, if it is there and has one."""
        found = self.shapes.get(name, ())
        return found if len(found) == 5 and 0 not in found else None

    def channels(self, name: str) -> int:
        """The channels of the clips, of the first convolution's weight; RGB's where it does not tell."""
        kernel = self.kernel(name)
        return kernel[1] if kernel else 3

    def outputs(self, prefix: str) -> int | None:
        """The planes that most tensors under the prefix have."""
        counts = Counter(shape[0] for shape in self.under.get(prefix, ()) if shape and shape[0])
        return counts.most_common(1)[0][0] if counts else None

    def width(self, bases: Mapping[str, int]) -> float:
        """The width, from the planes under each prefix and those it has at width 1."""
        planes_by_base = [(base, planes) for prefix, base in bases.items() if (planes := self.outputs(prefix))]
        if not planes_by_base:
            raise self.unknown(f"no tensor tells the width: all under {', '.join(list(bases)[:4])}, … are missing")
        if width := _width(planes_by_base):
            return width
        base, planes = planes_by_base[-1]
        raise self.unknown(f"the planes are those of width {planes / base:.3g}, and the zoo's are 1/64 to 8")

    def unknown(self, what: str) -> UserError:
        return UserError(what, self.where, "give whole weights of a network of the zoo (reelscale models)")

    def settings(self, tree: dict[str, Any]) -> ModelSettings:
        return validate(ModelSettings, tree, self.where)


def _width(planes_at_one: Sequence[tuple[int, int]]) -> float | None:
    """The width of the zoo at which most of the planes at width 1 become those found beside them.

    Of all such widths a power of two, else one of the fewest decimals.
    """
    least, most = _WIDTHS

    def agreeing(width: float) -> int:
        return (
            sum(max(1, round(base * width)) == planes for base, planes in planes_at_one)
            if least <= width <= most
            else 0
        )

    edges = sorted({*_WIDTHS, *((planes + side) / base for base, planes in planes_at_one for side in (-0.5, 0.5))})
    points = [*edges, *((low + high) / 2 for low, high in pairwise(edges))]
    best = max(map(agreeing, points))
    if not best:
        return None
    fitting = [point for point in points if agreeing(point) == best]
    powers = [2.0**exponent for exponent in range(-6, 4)]
    decimals = (round(point, digits) for digits in range(17) for point in fitting)
    return next(width for width in (*powers, *decimals, *fitting) if agreeing(width) == best)


def _resnet(looked: _NamedShapes, maker: Maker) -> Recognised:
    blocks = _blocks(looked)
    bottlenecks = 2 * sum(f"{block}.conv3" in looked.under for block in blocks) > len(blocks)
    depth = _depth(looked, blocks, bottlenecks)
    name, frames = _form(looked, _votes(looked, blocks, bottlenecks))
    width = looked.width(_planes_of_resnets(blocks, name))
    channels = looked.channels("stem.0.weight")
    tree: dict[str, Any] = {"name": name, "depth": depth, "width": width, "in_channels": channels}
    if name == "r2plus1d":
        tree["midplanes"] = _midplanes(looked, width, DEPTHS[depth].expansion or 1)
    torchvisions = tree.get("midplanes") == "block" or (name in ("r3d", "mc3") and depth == 18 and maker == "pytorch")
    tree["eps"] = 1e-5 if torchvisions else 1e-3
    return Recognised(looked.settings(tree), looked.classes("fc", 2), frames)


def _blocks(looked: _NamedShapes) -> Counter[str]:
    """The blocks of a ResNet, and how many tensors each has."""
    return Counter(matched[1] for matched in map(_RESNETS.fullmatch, looked.shapes) if matched)


def _p3d(looked: _NamedShapes) -> Recognised:
    blocks = _blocks(looked)
    width = looked.width({f"{block}.{layer}.1": 64 * 2 ** _stage(block) for block in blocks for layer in _P3DS})
    tree = {"name": "p3d", "depth": _depth(looked, blocks, bottlenecks=True), "width": width}
    return Recognised(
        looked.settings(tree | {"in_channels": looked.channels("stem.0.weight")}), looked.classes("fc", 2)
    )


def _inception(looked: _NamedShapes) -> Recognised:
    stem, name = "Conv3d_1a_7x7", "i3d"
    if f"{stem}.0" in looked.under:
        stem, name = f"{stem}.0", "s3d"
    elif "lstm" in looked.under:
        name = "lstm"
    tree = {"name": name, "width": looked.width(_I3DS), "in_channels": looked.channels(f"{stem}.conv3d.weight")}
    classes = looked.classes("fc", 2) if name == "lstm" else looked.classes("logits.conv3d")
    return Recognised(looked.settings(tree), classes)


def _planes_of_resnets(blocks: Mapping[str, int], name: str) -> dict[str, int]:
    """The planes at width 1 of the BNs whose planes are the stem's and the stages'."""
    stems = {"(2+1)d": {"stem.1": 45, "stem.4": 64}, "3d+1": {"stem.4": 64}}
    stem = stems.get(FORMS[name].stem, {"stem.1": 64})
    stages = {f"{block}.{layer}.1": 64 * 2 ** _stage(block) for block in blocks for layer in ("conv1", "conv2")}
    return stages | stem


def _stage(block: str) -> int:
    return int(block.partition(".")[0].removeprefix("layer")) - 1


def _depth(looked: _NamedShapes, blocks: Mapping[str, int], bottlenecks: bool) -> int:
    """By all blocks, else by those that have most of a block's tensors."""
    expansion = _expansion(looked, blocks) if bottlenecks else None
    for fewest in (1, max(blocks.values()) // 2):
        counts = Counter(_stage(block) for block, tensors in blocks.items() if tensors >= fewest)
        for depth, known in DEPTHS.items():
            if known == Depth((counts[0], counts[1], counts[2], counts[3]), expansion):
                return depth
    everything = Counter(map(_stage, blocks))
    kind = f"bottlenecks of expansion {expansion}" if bottlenecks else "basic blocks"
    raise looked.unknown(
        f"layer1 to layer4 of {[everything[stage] for stage in range(4)]} {kind} make no network of the zoo, "
        f"whose depths are {', '.join(map(str, DEPTHS))}"
    )


def _expansion(looked: _NamedShapes, blocks: Mapping[str, int]) -> int | None:
    """That of most bottlenecks."""
    pairs = [(looked.outputs(f"{block}.conv3.1"), looked.outputs(f"{block}.conv1.1")) for block in blocks]
    ratios = Counter(wide // narrow for wide, narrow in pairs if wide and narrow)
    return ratios.most_common(1)[0][0] if ratios else None


def _votes(looked: _NamedShapes, blocks: Mapping[str, int], bottlenecks: bool) -> list[Counter[Kind]]:
    """How many convolutions of each stage are of which kind."""
    votes: list[Counter[Kind]] = [Counter() for _ in range(4)]
    for block in blocks:
        for layer in ("conv2",) if bottlenecks else ("conv1", "conv2"):
            if kind := _kind(looked, f"{block}.{layer}.0"):
                votes[_stage(block)][kind] += 1
    return votes


def _kind(looked: _NamedShapes, convolution: str) -> Kind | None:
    if any(f"{convolution}.{part}" in looked.under for part in (0, 1, 3)):
        return _kind_of_two(looked, convolution)
    kernel = looked.kernel(f"{convolution}.weight")
    kinds: dict[int, Kind] = {1: "2d", 3: "3d"}
    return kinds.get(kernel[2]) if kernel else None


def _kind_of_two(looked: _NamedShapes, convolution: str) -> Literal["(2+1)d", "3d+1"]:
    """Of a convolution made of two: by whether the second sees time, else the first."""
    first, second = (looked.kernel(f"{convolution}.{part}.weight") for part in (0, 3))
    control = second[2] == 1 if second else first is not None and first[2] == 3
    return "3d+1" if control else "(2+1)d"


def _form(looked: _NamedShapes, votes: list[Counter[Kind]]) -> tuple[str, int | None]:
    """The form's name, and the clip's frames where the stem folds them.

    The form that most convolutions are of; where the stages are (2+1)D, the stem is whatever its tensors say.
    """
    stem, frames = _stem(looked)

    def fitness(form: Form) -> tuple[int, bool]:
        return sum(count[kind] for count, kind in zip(votes, form.stages, strict=True)), form.stem == stem

    name, form = max(FORMS.items(), key=lambda item: fitness(item[1]))
    foreign = any(count and not count[kind] for count, kind in zip(votes, form.stages, strict=True))
    if foreign or (stem not in (form.stem, None) and form.stem != "(2+1)d"):
        kinds = ", ".join(count.most_common(1)[0][0] if count else "nothing" for count in votes)
        first = "a (2+1)d stem (stem.3, stem.4)" if stem == "(2+1)d" else f"a stem.0.weight over {frames} frames"
        raise looked.unknown(f"{first} and stages of {kinds} make no form of the zoo")
    return name, frames if form.stem == stem == "folded" else None


def _stem(looked: _NamedShapes) -> tuple[StemKind | None, int | None]:
    """The stem's kind, None where no tensor tells, and the frames that its first convolution spans."""
    kernel = looked.kernel("stem.0.weight")
    if "stem.3" in looked.under or "stem.4" in looked.under:
        return _kind_of_two(looked, "stem"), kernel[2] if kernel else None
    if kernel is None:
        return None, None
    kinds: dict[int, StemKind] = {1: "2d", 3: "3d"}
    return kinds.get(kernel[2], "folded"), kernel[2]


def _midplanes(looked: _NamedShapes, width: float, expansion: int) -> Literal["conv", "block"]:
    """Who has counted them: seen where a block's second convolution has other inputs than the block."""
    stages = [round(64 * 2**stage * width) for stage in range(4)]
    block = conv = 0
    for stage, (before, planes) in enumerate(pairwise(stages), start=2):
        second = f"layer{stage}.0.conv2.0"
        middles = [shape[:1] for part in (0, 1) for shape in looked.under.get(f"{second}.{part}", ())]
        per_block, per_conv = midplanes(before * expansion, planes), midplanes(planes, planes)
        if per_block != per_conv:
            block, conv = block + middles.count((per_block,)), conv + middles.count((per_conv,))
    return "block" if block > conv else "conv"


def _c3d(looked: _NamedShapes) -> Recognised:
    width, size = looked.width(_C3DS), 112
    if "fc6.weight" in looked.shapes:
        inputs, planes = looked.shape("fc6.weight", 2)[1], round(512 * width)
        side = math.isqrt(inputs // planes)
        if side * side * planes != inputs or not side:
            raise looked.unknown(f"fc6.weight takes {inputs} values, and {planes} planes of a square are expected")
        size = 112 if side == 3 else 32 * side
    tree = {"name": "c3d", "width": width, "in_channels": looked.channels("conv1.0.weight")}
    return Recognised(looked.settings(tree), looked.classes("fc8", 2), frames=16, size=size)
