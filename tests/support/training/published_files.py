"""Published weights made up: the names and shapes of the published files, random values, and plain networks of them.

Everything here is written after the publishers' code, not after ours: torchvision/models/video/resnet.py and
models/resnet.py, ig65m-pytorch's models.py, VMZ's video_model.py and r3d_model.py, pytorch-i3d's pytorch_i3d.py.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
State = Mapping[str, Tensor]

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


def mids(inputs: int, outputs: int) -> int:
    """Conv2Plus1D's mid-planes."""
    return (inputs * outputs * 3 * 3 * 3) // (inputs * 3 * 3 + 3 * outputs)


def _norm(name: str, planes: int) -> Shapes:
    kept = {f"{name}.{key}": (planes,) for key in ("weight", "bias", "running_mean", "running_var")}
    return kept | {f"{name}.num_batches_tracked": ()}


def _makers(kind: str, name: str, inputs: int, outputs: int, middle: int) -> Shapes:
    if kind == "2+1":
        first = {f"{name}.0.weight": (middle, inputs, 1, 3, 3)} | _norm(f"{name}.1", middle)
        return first | {f"{name}.3.weight": (outputs, middle, 3, 1, 1)}
    return {f"{name}.weight": (outputs, inputs, 3 if kind == "3d" else 1, 3, 3)}


def video_shapes(
    kinds: tuple[str, str, str, str],
    depth: int = 18,
    classes: int = 400,
    planes: int = 64,
    middle: str = "block",
    bottlenecks: bool = False,
    channels: int = 3,
    stem: int = 45,
) -> Shapes:
    """torchvision's VideoResNet; `middle="conv"` as ig65m-pytorch and VMZ have it."""
    if kinds[0] == "2+1":
        shapes: Shapes = {"stem.0.weight": (stem, channels, 1, 7, 7)} | _norm("stem.1", stem)
        shapes |= {"stem.3.weight": (planes, stem, 3, 1, 1)} | _norm("stem.4", planes)
    else:
        shapes = {"stem.0.weight": (planes, channels, 3, 7, 7)} | _norm("stem.1", planes)
    inputs, expansion = planes, 4 if bottlenecks else 1
    for stage, (kind, blocks) in enumerate(zip(kinds, BLOCKS[depth], strict=True)):
        base = planes * 2**stage
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            per_block = mids(inputs, base)
            if bottlenecks:
                own = mids(base, base) if middle == "conv" else per_block
                shapes |= {f"{name}.conv1.0.weight": (base, inputs, 1, 1, 1)} | _norm(f"{name}.conv1.1", base)
                shapes |= _makers(kind, f"{name}.conv2.0", base, base, own) | _norm(f"{name}.conv2.1", base)
                shapes |= {f"{name}.conv3.0.weight": (base * 4, base, 1, 1, 1)} | _norm(f"{name}.conv3.1", base * 4)
            else:
                second = mids(base, base) if middle == "conv" else per_block
                shapes |= _makers(kind, f"{name}.conv1.0", inputs, base, per_block) | _norm(f"{name}.conv1.1", base)
                shapes |= _makers(kind, f"{name}.conv2.0", base, base, second) | _norm(f"{name}.conv2.1", base)
            if inputs != base * expansion or (stage and not block):
                outputs = base * expansion
                shapes |= {f"{name}.downsample.0.weight": (outputs, inputs, 1, 1, 1)}
                shapes |= _norm(f"{name}.downsample.1", outputs)
            inputs = base * expansion
    return shapes | {"fc.weight": (classes, inputs), "fc.bias": (classes,)}


def image_shapes(depth: int, classes: int = 1000, planes: int = 64) -> Shapes:
    """torchvision's 2D ResNet."""
    shapes: Shapes = {"conv1.weight": (planes, 3, 7, 7)} | _norm("bn1", planes)
    inputs, bottlenecks = planes, depth >= 50
    for stage, blocks in enumerate(BLOCKS[depth]):
        base = planes * 2**stage
        outputs = base * 4 if bottlenecks else base
        for block in range(blocks):
            name = f"layer{stage + 1}.{block}"
            kernels = [(base, inputs, 1, 1), (base, base, 3, 3), (outputs, base, 1, 1)]
            if not bottlenecks:
                kernels = [(base, inputs, 3, 3), (base, base, 3, 3)]
            for number, kernel in enumerate(kernels, start=1):
                shapes |= {f"{name}.conv{number}.weight": kernel} | _norm(f"{name}.bn{number}", kernel[0])
            if inputs != outputs or (stage and not block):
                shapes |= {f"{name}.downsample.0.weight": (outputs, inputs, 1, 1)}
                shapes |= _norm(f"{name}.downsample.1", outputs)
            inputs = outputs
    return shapes | {"fc.weight": (classes, inputs), "fc.bias": (classes,)}


INCEPTION = {
    "Mixed_3b": (64, 96, 128, 16, 32, 32), "Mixed_3c": (128, 128, 192, 32, 96, 64),
    "Mixed_4b": (192, 96, 208, 16, 48, 64), "Mixed_4c": (160, 112, 224, 24, 64, 64),
    "Mixed_4d": (128, 128, 256, 24, 64, 64), "Mixed_4e": (112, 144, 288, 32, 64, 64),
    "Mixed_4f": (256, 160, 320, 32, 128, 128), "Mixed_5b": (256, 160, 320, 32, 128, 128),
    "Mixed_5c": (384, 192, 384, 48, 128, 128),
}  # fmt: skip


def i3d_shapes(classes: int = 400, channels: int = 3, part: int = 1, flat: bool = False) -> Shapes:
    """pytorch-i3d's InceptionI3d, its planes divided by `part`; `flat`: kernels without time."""

    def unit(name: str, outputs: int, inputs: int, size: int) -> Shapes:
        kernel = (size, size) if flat else (size, size, size)
        return {f"{name}.conv3d.weight": (outputs, inputs, *kernel)} | _norm(f"{name}.bn", outputs)

    shapes = unit("Conv3d_1a_7x7", 64 // part, channels, 7) | unit("Conv3d_2b_1x1", 64 // part, 64 // part, 1)
    shapes |= unit("Conv3d_2c_3x3", 192 // part, 64 // part, 3)
    inputs = 192 // part
    for name, planes in INCEPTION.items():
        b0, b1a, b1b, b2a, b2b, b3b = (count // part for count in planes)
        shapes |= unit(f"{name}.b0", b0, inputs, 1)
        shapes |= unit(f"{name}.b1a", b1a, inputs, 1) | unit(f"{name}.b1b", b1b, b1a, 3)
        shapes |= unit(f"{name}.b2a", b2a, inputs, 1) | unit(f"{name}.b2b", b2b, b2a, 3)
        shapes |= unit(f"{name}.b3b", b3b, inputs, 1)
        inputs = b0 + b1b + b2b + b3b
    last = (1, 1) if flat else (1, 1, 1)
    return shapes | {"logits.conv3d.weight": (classes, inputs, *last), "logits.conv3d.bias": (classes,)}


def vmz_shapes(kind: str, depth: int, classes: int, planes: int = 64, stem: int = 45, channels: int = 3) -> Shapes:
    """VMZ's blobs of a 2.5d, 3d or 2d ResNet: VideoModelBuilder's counting of components and convolutions."""

    def norm(name: str, planes: int) -> Shapes:
        return {f"{name}_{key}": (planes,) for key in ("s", "b", "rm", "riv")}

    def convolution(component: int, index: int, inputs: int, outputs: int, size: int, factored: bool) -> Shapes:
        name, bn = f"comp_{component}_conv_{index}", f"comp_{component}_spatbn_{index}"
        if factored:
            middle = int(3 * inputs * outputs * size * size / (inputs * size * size + 3 * outputs))
            first = {f"{name}_middle_w": (middle, inputs, 1, size, size)} | norm(f"{bn}_middle", middle)
            return first | {f"{name}_w": (outputs, middle, 3, 1, 1)} | norm(bn, outputs)
        time = 1 if kind == "2d" else size
        return {f"{name}_w": (outputs, inputs, time, size, size)} | norm(bn, outputs)

    time = 1 if kind == "2d" else 3
    if kind == "2.5d":
        shapes: Shapes = {"conv1_middle_w": (stem, channels, 1, 7, 7)} | norm("conv1_middle_spatbn_relu", stem)
        shapes |= {"conv1_w": (planes, stem, 3, 1, 1)}
    else:
        shapes = {"conv1_w": (planes, channels, time, 7, 7)}
    shapes |= norm("conv1_spatbn_relu", planes)
    component, inputs, simple = 0, planes, depth <= 18 or depth == 34
    for stage, blocks in enumerate(BLOCKS[depth]):
        base = planes * 2**stage
        outputs = base if simple else base * 4
        for block in range(blocks):
            if simple:
                shapes |= convolution(component, 1, inputs, outputs, 3, kind == "2.5d")
                shapes |= convolution(component, 2, outputs, outputs, 3, kind == "2.5d")
            else:
                shapes |= convolution(component, 1, inputs, base, 1, False)
                shapes |= convolution(component, 2, base, base, 3, kind == "2.5d")
                shapes |= convolution(component, 3, base, outputs, 1, False)
            if outputs != inputs or (stage and not block):
                name = f"shortcut_projection_{component}"
                shapes |= {f"{name}_w": (outputs, inputs, 1, 1, 1)} | norm(f"{name}_spatbn", outputs)
            component, inputs = component + 1, outputs
    return shapes | {f"last_out_L{classes}_w": (classes, inputs), f"last_out_L{classes}_b": (classes,)}


def random_state(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """float32 values that keep activations of ordinary size through any depth, every statistic another."""
    draw = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif len(shape) > 1:
            state[name] = torch.randn(shape, generator=draw) * (2 / np.prod(shape[1:])) ** 0.5
        elif name.endswith(("running_var", "_riv")):
            state[name] = torch.rand(shape, generator=draw) + 0.5
        elif name.endswith(("running_mean", "_rm", "bias", "_b")):
            state[name] = torch.randn(shape, generator=draw) * 0.1
        else:
            state[name] = torch.rand(shape, generator=draw) * 0.5 + 0.5
    return state


def doubled(state: State) -> dict[str, Tensor]:
    """In float64."""
    return {name: value.double() for name, value in state.items()}


def python2_pickle(tree: dict[str, Any]) -> bytes:
    """A pickle of dicts of float32 arrays as Python 2 and numpy 1 wrote it (cPickle, protocol 2)."""
    return b"\x80\x02" + _python2(tree) + b"."


def _python2(value: Any) -> bytes:
    if isinstance(value, dict):
        return b"}(" + b"".join(_text(key) + _python2(item) for key, item in value.items()) + b"u"
    if isinstance(value, np.ndarray):
        return _python2_array(np.ascontiguousarray(value, dtype="<f4"))
    raise TypeError(type(value))


def _text(text: str) -> bytes:
    return b"U" + bytes([len(text)]) + text.encode()


def _python2_array(array: NDArray[np.float32]) -> bytes:
    shape = b"(" + b"".join(b"J" + struct.pack("<i", size) for size in array.shape) + b"t"
    empty = b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + _text("b") + b"tR"
    number = b"J" + struct.pack("<i", -1)
    kind = (
        b"cnumpy\ndtype\n(" + _text("f4") + b"K\x00K\x01tR(K\x03" + _text("<") + b"NNN" + number + number + b"K\x00tb"
    )
    raw = array.tobytes()
    return empty + b"(K\x01" + shape + kind + b"\x89" + b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
