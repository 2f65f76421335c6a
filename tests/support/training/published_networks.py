"""Published networks computed by plain operations from their published weights, to compare ours with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.training.published_files import BLOCKS, INCEPTION, State


def _conv(x: Tensor, weight: Tensor, stride: tuple[int, ...]) -> Tensor:
    padding = tuple(size // 2 for size in weight.shape[2:])
    return (F.conv3d if weight.dim() == 5 else F.conv2d)(x, weight, None, stride, padding)


def _normalised(x: Tensor, state: State, name: str, eps: float) -> Tensor:
    mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
    return F.batch_norm(x, mean, variance, state[f"{name}.weight"], state[f"{name}.bias"], False, 0.0, eps)


def video_network(state: State, clips: Tensor, eps: float) -> Tensor:
    """torchvision's VideoResNet.forward, for clips of at least 8 frames: N C T H W → N classes."""

    def maker(x: Tensor, name: str, stride: int) -> Tensor:
        if f"{name}.0.weight" in state:
            x = _conv(x, state[f"{name}.0.weight"], (1, stride, stride))
            return _conv(_normalised(x, state, f"{name}.1", eps).relu(), state[f"{name}.3.weight"], (stride, 1, 1))
        weight = state[f"{name}.weight"]
        return _conv(x, weight, (stride if weight.shape[2] == 3 else 1, stride, stride))

    x = _normalised(_conv(clips, state["stem.0.weight"], (1, 2, 2)), state, "stem.1", eps).relu()
    if "stem.3.weight" in state:
        x = _normalised(_conv(x, state["stem.3.weight"], (1, 1, 1)), state, "stem.4", eps).relu()
    for stage in range(1, 5):
        block = 0
        while f"layer{stage}.{block}.conv1.1.weight" in state:
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and not block else 1
            if f"{name}.conv3.0.weight" in state:
                y = _normalised(_conv(x, state[f"{name}.conv1.0.weight"], (1, 1, 1)), state, f"{name}.conv1.1", eps)
                y = _normalised(maker(y.relu(), f"{name}.conv2.0", stride), state, f"{name}.conv2.1", eps).relu()
                y = _normalised(_conv(y, state[f"{name}.conv3.0.weight"], (1, 1, 1)), state, f"{name}.conv3.1", eps)
                time = stride
            else:
                y = _normalised(maker(x, f"{name}.conv1.0", stride), state, f"{name}.conv1.1", eps).relu()
                y = _normalised(maker(y, f"{name}.conv2.0", 1), state, f"{name}.conv2.1", eps)
                whole = state.get(f"{name}.conv1.0.weight")
                time = 1 if whole is not None and whole.shape[2] == 1 else stride
            if f"{name}.downsample.0.weight" in state:
                x = _conv(x, state[f"{name}.downsample.0.weight"], (time, stride, stride))
                x = _normalised(x, state, f"{name}.downsample.1", eps)
            x, block = (x + y).relu(), block + 1
    return F.linear(x.mean((2, 3, 4)), state["fc.weight"], state["fc.bias"])


def image_network(state: State, images: Tensor, eps: float = 1e-5) -> tuple[Tensor, Tensor]:
    """torchvision's 2D ResNet.forward: N 3 H W → activations of layer4 N D H' W', and logits N classes."""
    x = _normalised(_conv(images, state["conv1.weight"], (2, 2)), state, "bn1", eps).relu()
    x = F.max_pool2d(x, 3, 2, 1)
    for stage in range(1, 5):
        block = 0
        while f"layer{stage}.{block}.conv1.weight" in state:
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and not block else 1
            count = 3 if f"{name}.conv3.weight" in state else 2
            y = x
            for number in range(1, count + 1):
                step = stride if number == count - 1 else 1  # the 3×3 of a bottleneck, the first of a basic block
                y = _conv(y, state[f"{name}.conv{number}.weight"], (step, step))
                y = _normalised(y, state, f"{name}.bn{number}", eps)
                y = y.relu() if number < count else y
            if f"{name}.downsample.0.weight" in state:
                x = _conv(x, state[f"{name}.downsample.0.weight"], (stride, stride))
                x = _normalised(x, state, f"{name}.downsample.1", eps)
            x, block = (x + y).relu(), block + 1
    return x, F.linear(x.mean((2, 3)), state["fc.weight"], state["fc.bias"])


def vmz_network(blobs: State, clips: Tensor, depth: int) -> Tensor:
    """VMZ's create_r3d of a 2.5d or 3d ResNet, in testing: N C T H W (at least 8 frames) → N classes."""

    def norm(x: Tensor, name: str) -> Tensor:  # _riv is passed as the variance, as the published files have it
        mean, variance = blobs[f"{name}_rm"], blobs[f"{name}_riv"]
        return F.batch_norm(x, mean, variance, blobs[f"{name}_s"], blobs[f"{name}_b"], False, 0.0, 1e-3)

    def convolution(x: Tensor, component: int, index: int, stride: int) -> Tensor:
        name, bn = f"comp_{component}_conv_{index}", f"comp_{component}_spatbn_{index}"
        if f"{name}_middle_w" in blobs:
            x = _conv(x, blobs[f"{name}_middle_w"], (1, stride, stride))
            return norm(_conv(norm(x, f"{bn}_middle").relu(), blobs[f"{name}_w"], (stride, 1, 1)), bn)
        return norm(_conv(x, blobs[f"{name}_w"], (stride, stride, stride)), bn)

    x = clips
    if "conv1_middle_w" in blobs:
        x = norm(_conv(x, blobs["conv1_middle_w"], (1, 2, 2)), "conv1_middle_spatbn_relu").relu()
        x = norm(_conv(x, blobs["conv1_w"], (1, 1, 1)), "conv1_spatbn_relu").relu()
    else:
        x = norm(_conv(x, blobs["conv1_w"], (1, 2, 2)), "conv1_spatbn_relu").relu()
    component = 0
    for stage, blocks in enumerate(BLOCKS[depth]):
        for block in range(blocks):
            stride = 2 if stage and not block else 1
            if depth <= 18 or depth == 34:
                y = convolution(convolution(x, component, 1, stride).relu(), component, 2, 1)
            else:
                y = convolution(convolution(x, component, 1, 1).relu(), component, 2, stride).relu()
                y = convolution(y, component, 3, 1)
            name = f"shortcut_projection_{component}"
            if f"{name}_w" in blobs:
                x = norm(_conv(x, blobs[f"{name}_w"], (stride, stride, stride)), f"{name}_spatbn")
            x, component = (x + y).relu(), component + 1
    classes = next(name.removesuffix("_w") for name in blobs if name.startswith("last_out_L") and name.endswith("_w"))
    return F.linear(x.mean((2, 3, 4)), blobs[f"{classes}_w"], blobs[f"{classes}_b"])


def _same(x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """pytorch-i3d's compute_pad."""
    sides: list[int] = []
    for size, k, s in zip(x.shape[2:], kernel, stride, strict=True):
        pad = max(k - s, 0) if size % s == 0 else max(k - size % s, 0)
        sides = [pad // 2, pad - pad // 2, *sides]
    return F.pad(x, sides)


def inception(state: State, x: Tensor) -> Tensor:
    """InceptionI3d up to Mixed_5c, over clips N C T H W or, with kernels without time, images N C H W."""
    axes = x.dim() - 2
    pool = F.max_pool3d if axes == 3 else F.max_pool2d

    def unit(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight, steps = state[f"{name}.conv3d.weight"], (stride,) * axes
        x = _same(x, tuple(weight.shape[2:]), steps)
        x = (F.conv3d if axes == 3 else F.conv2d)(x, weight, None, steps)
        return _normalised(x, state, f"{name}.bn", 1e-3).relu()

    def pooled(x: Tensor, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
        return pool(_same(x, kernel[-axes:], stride[-axes:]), kernel[-axes:], stride[-axes:])

    x = pooled(unit(x, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
    x = pooled(unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3"), (1, 3, 3), (1, 2, 2))
    for name in INCEPTION:
        if name == "Mixed_4b":
            x = pooled(x, (3, 3, 3), (2, 2, 2))
        if name == "Mixed_5b":
            x = pooled(x, (2, 2, 2), (2, 2, 2))
        branches = [unit(x, f"{name}.b0"), unit(unit(x, f"{name}.b1a"), f"{name}.b1b")]
        branches += [unit(unit(x, f"{name}.b2a"), f"{name}.b2b")]
        branches += [unit(pooled(x, (3, 3, 3), (1, 1, 1)), f"{name}.b3b")]
        x = torch.cat(branches, 1)
    return x


def i3d_network(state: State, clips: Tensor) -> Tensor:
    """InceptionI3d.forward for clips of 224² pixels, its logits averaged over time: N C T 224 224 → N classes."""
    x = F.avg_pool3d(inception(state, clips), (2, 7, 7), 1)
    return F.conv3d(x, state["logits.conv3d.weight"], state["logits.conv3d.bias"]).mean((2, 3, 4))
