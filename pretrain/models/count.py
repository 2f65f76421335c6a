"""Counts a network's parameters, multiply-accumulates and activation memory a clip."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, UntypedStorage, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call

from pretrain.models.compute.batchnorm import LaneBatchNorm
from pretrain.models.compute.compute_path import COMPUTE_PATHS, unpadded
from pretrain.models.meta_device import ShapesOnly
from pretrain.models.network import VideoNetwork


def parameters(model: nn.Module) -> int:
    """All parameters: convolutions, classifier with its bias, BN scales and biases."""
    return sum(value.numel() for value in model.parameters())


def conv_fc_parameters(model: nn.Module) -> int:
    """Convolution and FC weights alone, which is what the R(2+1)D paper publishes as parameters."""
    return sum(module.weight.numel() for module in model.modules() if isinstance(module, nn.Conv3d | nn.Linear))


def macs(model: VideoNetwork, frames: int, height: int, width: int) -> int:
    """Multiply-accumulates of the convolutions and the classifier for one clip (published as "FLOPs")."""
    total = 0
    for module, output in _outputs(model, frames, height, width):
        if isinstance(module, nn.Conv3d):
            total += output.numel() * module.in_channels // module.groups * math.prod(module.kernel_size)
        elif isinstance(module, nn.Linear):
            total += output.numel() * module.in_features
    return total


def activations(model: VideoNetwork, frames: int, height: int, width: int) -> int:
    """Values that the convolutions and the fully connected layers put out for one clip."""
    outputs = _outputs(model, frames, height, width)
    return sum(output.numel() for module, output in outputs if isinstance(module, nn.Conv3d | nn.Linear))


def fewest_values(model: VideoNetwork, frames: int, size: int) -> int:
    """Values a channel of one clip where a batch normalisation has the fewest."""
    outputs = _outputs(model, frames, size, size)
    return min(math.prod(output.shape[2:]) for module, output in outputs if isinstance(module, LaneBatchNorm))


def last_map(model: VideoNetwork, frames: int, size: int) -> tuple[int, int]:
    """Height and width of the last stage's activations of pictures of `size` × `size` pixels."""
    last = model.get_submodule(model.stages[-1][-1])
    return next(
        (output.shape[3], output.shape[4])
        for module, output in _outputs(model, frames, size, size, (last,))
        if module is last
    )


def activation_bytes(model: VideoNetwork, frames: int, size: int, half: bool = False, recomputed: int = 0) -> int:
    """How many bytes one clip of `size` × `size` pixels keeps on the device for its backward pass, at the most.

    What autograd keeps, group by group of the network's stages; of the first `recomputed` groups only what each
    puts out, and everything of the one that is computed again. `half`: in bf16, else fp32. Workspaces,
    gradients and the allocator's rounding come on top.
    """
    network = copy.deepcopy(model).to("meta", torch.bfloat16 if half else torch.float32).train()
    network.use(COMPUTE_PATHS["channels-last"])
    # `_cdata`, private in torch 2.x, is the address of the storage object: on the meta device no data pointer tells two
    # storages apart.
    counted = {value.untyped_storage()._cdata for value in network.state_dict().values()}
    kept: list[UntypedStorage] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in counted:
            counted.add(storage._cdata)
            kept.append(storage)  # alive, so that its place is not given to another
        return tensor

    clips = 2  # of one, the last layers may have a single value a channel, which cannot be normalised
    precision = next(network.parameters()).dtype
    x = torch.empty(clips, network.in_channels, frames, size, size, dtype=precision, device="meta")
    own, passed_on = [], [x.numel() * x.element_size()]  # by group: what it keeps, and what is put in
    for names in network.stages:
        first = len(kept)
        with ShapesOnly(), saved_tensors_hooks(keep, lambda tensor: tensor):
            for name in names:
                x = network.get_submodule(name)(x)
        own.append(sum(storage.nbytes() for storage in kept[first:]))
        passed_on.append(x.numel() * x.element_size())
    if not recomputed:
        return sum(own) // clips
    held = sum(passed_on[: recomputed + 1]) + sum(own[recomputed:])
    again = [sum(passed_on[: number + 1]) + own[number] for number in range(min(recomputed, len(own)))]
    return max(held, *again) // clips


def _outputs(
    model: VideoNetwork, frames: int, height: int, width: int, modules: tuple[nn.Module, ...] = ()
) -> list[tuple[nn.Module, Tensor]]:
    """Each of the modules, else each leaf, with its output for one clip, in order.

    On the meta device: shapes, no arithmetic.
    """
    seen: list[tuple[nn.Module, Tensor]] = []
    leaves = modules or [module for module in model.modules() if not any(module.children())]
    hooks = [leaf.register_forward_hook(lambda leaf, _, output: seen.append((leaf, output))) for leaf in leaves]
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    shapes = {name: tensor.detach().to("meta") for name, tensor in tensors.items()}
    precision = next(model.parameters()).dtype
    clip = torch.empty(1, model.in_channels, frames, height, width, dtype=precision, device="meta")
    try:
        with _evaluating(model), unpadded(model), ShapesOnly(), torch.no_grad():
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
