"""What a network costs: its parameters, its multiply-accumulates, its memory a clip."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call

from pretrain.models.batchnorm import LaneBatchNorm
from pretrain.models.network import VideoNetwork
from pretrain.models.paths import unpadded


def parameters(model: nn.Module) -> int:
    """All parameters: convolutions, classifier with its bias, BN scales and biases."""
    return sum(value.numel() for value in model.parameters())


def conv_fc_parameters(model: nn.Module) -> int:
    """Convolution and FC weights alone, which is what the R(2+1)D paper publishes as parameters."""
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Conv3d | nn.Linear))


def macs(model: nn.Module, frames: int, height: int, width: int) -> int:
    """Multiply-accumulates of the convolutions and the classifier for one clip (published as "FLOPs")."""
    total = 0
    for module, output in _outputs(model, frames, height, width):
        if isinstance(module, nn.Conv3d):
            total += output.numel() * module.in_channels // module.groups * math.prod(module.kernel_size)
        elif isinstance(module, nn.Linear):
            total += output.numel() * module.in_features
    return total


def activations(model: nn.Module, frames: int, height: int, width: int) -> int:
    """Values that the convolutions and the fully connected layers put out for one clip."""
    outputs = _outputs(model, frames, height, width)
    return sum(output.numel() for module, output in outputs if isinstance(module, nn.Conv3d | nn.Linear))


def activation_bytes(model: VideoNetwork, frames: int, size: int, bytes_per_value: int = 4, recomputed: int = 0) -> int:
    """About how many bytes one clip of `size` × `size` pixels keeps on the device for its backward pass.

    The convolutions' outputs (BN needs its input) and the ReLUs', and the clip itself; of the first `recomputed`
    groups of layers what each puts out, and everything of the one that is computed again. Workspaces, gradients
    and the allocator's rounding come on top.
    """
    groups = [{leaf for name in names for leaf in model.get_submodule(name).modules()} for names in model.stages]
    own, last = [0] * (len(groups) + 1), [0] * (len(groups) + 1)  # the classifier's layers come after the groups
    for leaf, output in _outputs(model, frames, size, size):
        number = next((number for number, group in enumerate(groups) if leaf in group), len(groups))
        last[number] = output.numel()
        if isinstance(leaf, nn.Conv3d | nn.ReLU) or (isinstance(leaf, LaneBatchNorm) and leaf.relu):
            own[number] += output.numel()
    held = sum(last[:recomputed]) + sum(own[recomputed:])
    again = [sum(last[:number]) + own[number] for number in range(min(recomputed, len(groups)))]
    return (max(held, *again, 0) + _in_channels(model) * frames * size * size) * bytes_per_value


def _in_channels(model: nn.Module) -> int:
    return next(module.in_channels for module in model.modules() if isinstance(module, nn.Conv3d))


def _outputs(model: nn.Module, frames: int, height: int, width: int) -> list[tuple[nn.Module, Tensor]]:
    """Each leaf module with its output for one clip, in order; on the meta device: shapes, no arithmetic."""
    seen: list[tuple[nn.Module, Tensor]] = []
    leaves = [module for module in model.modules() if not any(module.children())]
    hooks = [leaf.register_forward_hook(lambda leaf, _, output: seen.append((leaf, output))) for leaf in leaves]
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    shapes = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    precision = next(model.parameters()).dtype
    clip = torch.empty(1, _in_channels(model), frames, height, width, dtype=precision, device="meta")
    try:
        with _evaluating(model), unpadded(model), torch.no_grad():
            functional_call(model, shapes, (clip,))
    finally:
        for hook in hooks:
            hook.remove()
    return seen


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a while, and then each module's own mode again."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
