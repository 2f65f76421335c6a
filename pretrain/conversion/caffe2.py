"""VMZ's Caffe2 weights: a blob's name to the tensor's name in our networks."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from itertools import product

from pretrain.models.weights import first_names
from sharding.base.errors import UserError

Shapes = Mapping[str, tuple[int, ...]]

_STATISTICS = {"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var"}
_SIMPLE = {"w": "weight", "b": "bias"}
_SOLVERS = re.compile(r".*_momentum|lr|model_iter")
_COMPONENT = re.compile(r"comp_(0|[1-9]\d*)_(conv|spatbn)_([123])(_middle)?_(w|s|b|rm|riv)")
_SHORTCUT = re.compile(r"shortcut_projection_(0|[1-9]\d*)_(?:(spatbn)_)?(w|s|b|rm|riv)")
_STEM = re.compile(r"conv1(_middle)?_(?:(spatbn_relu)_)?(w|s|b|rm|riv)")
_CLASSIFIER = re.compile(r"(last_out_L\d+)_(w|b)")
_C3D = re.compile(r"(conv\d)([ab])_(?:(bn)_)?(w|s|b|rm|riv)")
_C3D_FC = re.compile(r"(fc[67])_(w|b)")


def is_solvers(blob: str) -> bool:
    """Whether the blob is the solver's and none of the network: `*_momentum`, `lr` and `model_iter`."""
    return _SOLVERS.fullmatch(blob) is not None


def names_from_caffe2(blobs: Shapes, where: str) -> dict[str, str]:
    """Each blob's name → the tensor's name in our state dicts, for the ResNets of every form and C3D.

    The blobs are named as VMZ's builders name them (c2/lib/models/r3d_model.py, c3d_model.py,
    lib/models/builder/video_model.py): block `i` of all stages together, its convolutions counted from 1, in
    basic blocks and bottlenecks alike. `_riv` holds a variance, whatever its name says.

    Raises UserError naming the blobs that are no part of such a network.
    """
    rename = _renamer(blobs, where)
    names = {blob: rename(blob) for blob in blobs}
    taken = Counter(names.values())
    unknown = [blob for blob, name in names.items() if name is None or taken[name] > 1]
    if unknown:
        raise UserError(
            f"{len(unknown)} blobs have no place of their own in a network of the zoo ({first_names(unknown)})",
            where,
            "give the weights of one of VMZ's R(2+1)D, R3D, R2D, MC, rMC or C3D networks",
        )
    return {blob: name for blob, name in names.items() if name is not None}


def blobs_of(names: Collection[str], blobs: Shapes, where: str) -> dict[str, str]:
    """Names of tensors in our state dicts → of the blobs they would have beside `blobs`, where they have one."""
    rename = _renamer(blobs, where)
    found = {rename(blob): blob for blob in _all_blobs(blobs)}
    return {name: found[name] for name in names if name in found}


def _all_blobs(blobs: Shapes) -> Iterator[str]:
    """The blobs that a network of these blobs' blocks and classes can have."""
    blocks = {found[1] for found in map(_COMPONENT.fullmatch, blobs) if found}
    classifiers = {found[1] for found in map(_CLASSIFIER.fullmatch, blobs) if found}
    convolutions = {f"conv1{middle}": f"conv1{middle}_spatbn_relu" for middle in ("_middle", "")}
    convolutions |= {f"shortcut_projection_{block}": f"shortcut_projection_{block}_spatbn" for block in blocks}
    for block, number, middle in product(blocks, "123", ("", "_middle")):
        convolutions[f"comp_{block}_conv_{number}{middle}"] = f"comp_{block}_spatbn_{number}{middle}"
    convolutions |= {f"conv{group}{letter}": f"conv{group}{letter}_bn" for group, letter in product("12345", "ab")}
    for convolution, norm in convolutions.items():
        yield from (f"{convolution}_{what}" for what in _SIMPLE)
        yield from (f"{norm}_{what}" for what in _STATISTICS)
    for layer, what in product(("fc6", "fc7", *classifiers), _SIMPLE):
        yield f"{layer}_{what}"


def _renamer(blobs: Shapes, where: str) -> _C3dNames | _ResnetNames:
    return _C3dNames() if any(map(_C3D.fullmatch, blobs)) else _ResnetNames(blobs, where)


class _ResnetNames:
    """The names of a ResNet's blobs. Where a stage begins is where the blocks' outputs change."""

    def __init__(self, blobs: Shapes, where: str) -> None:
        self.blobs = blobs
        separated = [blob for blob, shape in blobs.items() if len(shape) == 5 and shape[1] == 1 < shape[0]]
        if any(blob.startswith("comp_") for blob in separated):
            raise UserError(
                f"the network is channel-separated ({separated[0]} has one input a group), and the zoo has none such",
                where,
                "give one of VMZ's R(2+1)D, R3D, R2D, MC, rMC or C3D networks",
            )
        self.places = self._places()

    def __call__(self, blob: str) -> str | None:
        if matched := _STEM.fullmatch(blob):
            middle, norm, what = matched.groups()
            first = 3 if not middle and self._any("conv1_middle_") else 0
            return _joined("stem", first + 1 if norm else first, norm, what)
        if matched := _COMPONENT.fullmatch(blob):
            block, layer, number, middle, what = matched.groups()
            place = self._place(block)
            return place and self._convolution(
                f"{place}.conv{number}", f"comp_{block}_{{}}_{number}_middle_", layer == "spatbn", middle, what
            )
        if matched := _SHORTCUT.fullmatch(blob):
            block, norm, what = matched.groups()
            place = self._place(block)
            return place and _joined(f"{place}.downsample", 1 if norm else 0, norm, what)
        if matched := _CLASSIFIER.fullmatch(blob):
            return f"fc.{_SIMPLE[matched[2]]}"
        return None

    def _any(self, *prefixes: str) -> bool:
        return any(blob.startswith(prefixes) for blob in self.blobs)

    def _convolution(self, prefix: str, middles: str, norm: bool, middle: str | None, what: str) -> str | None:
        if middle:
            return _joined(f"{prefix}.0", 1 if norm else 0, norm, what)
        if norm:
            return _joined(prefix, 1, norm, what)
        inner = ".3" if self._any(middles.format("conv"), middles.format("spatbn")) else ""
        return f"{prefix}.0{inner}.weight" if what == "w" else None

    def _place(self, block: str) -> str | None:
        number = int(block)
        return self.places[number] if number < len(self.places) else None

    def _places(self) -> list[str]:
        """layer1.0, layer1.1, …, layer4.2, by the number of the block."""
        places: list[str] = []
        stage = index = before = 0
        while (outputs := self._outputs(len(places))) is not None:
            stage, index = (stage, index + 1) if outputs == before else (stage + 1, 0)
            before = outputs
            places.append(f"layer{stage}.{index}")
        return places

    def _outputs(self, block: int) -> int | None:
        """The planes that most blobs of the block's last convolution have."""
        for last in (3, 2):
            own = [f"comp_{block}_conv_{last}_w", *(f"comp_{block}_spatbn_{last}_{what}" for what in _STATISTICS)]
            if counts := Counter(shape[0] for blob in own if (shape := self.blobs.get(blob))):
                return counts.most_common(1)[0][0]
        return None


class _C3dNames:
    """The names of C3D's blobs."""

    def __call__(self, blob: str) -> str | None:
        if matched := _C3D.fullmatch(blob):
            group, letter, norm, what = matched.groups()
            first = 0 if letter == "a" else 2
            if norm:
                return _joined(group, first + 1, norm, what)
            return f"{group}.{first}.{_SIMPLE[what]}" if what in _SIMPLE else None
        if matched := _C3D_FC.fullmatch(blob):
            return f"{matched[1]}.{_SIMPLE[matched[2]]}"
        if matched := _CLASSIFIER.fullmatch(blob):
            return f"fc8.{_SIMPLE[matched[2]]}"
        return None


def _joined(prefix: str, number: int, norm: object, what: str) -> str | None:
    """A convolution without bias, or a batch normalisation."""
    if norm:
        return f"{prefix}.{number}.{_STATISTICS[what]}" if what in _STATISTICS else None
    return f"{prefix}.{number}.weight" if what == "w" else None
