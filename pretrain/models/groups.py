"""Parameter groups: which weights decay, and which learn faster, slower or not at all, by the network's parts.

The parts of a network are `stem`, `conv2` to `conv5` and `head`, the classifier (C3D has `fc6` and `fc7` before it, the
LSTM over frames `lstm`, fused3d `fusion`).
Rates are factors by part; a part without one learns at 1. `stages` stands for all parts between stem and head,
behind any that is named itself. VMZ-pt's layer groups are {stem: 0, stages: 0.01, head: 1} of a rate of 0.1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from torch import nn

from pretrain.models.compute.batchnorm import LaneBatchNorm
from pretrain.models.network import VideoNetwork
from sharding.base.errors import UserError

_STAGES = "stages"


def parameter_groups(model: nn.Module, weight_decay: float, rates: Mapping[str, float]) -> list[dict[str, Any]]:
    """Optimizer groups, each with `params`, `weight_decay` and `scale`, the factor on the scheduled learning rate.

    Convolution and FC weights and BN scales decay, biases do not (VMZ's rule). Parameters that are frozen, or whose
    part has the rate 0, are in no group; a group with nothing in it is left out.
    Raises UserError for a part that the network has not, a rate that is none, and where nothing would learn.
    """
    scale = _scales(model, rates)
    groups: dict[tuple[float, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or not scale[name]:
            continue
        decays = name.split(".")[-1] != "bias"
        made = {"params": [], "weight_decay": weight_decay if decays else 0.0, "scale": scale[name]}
        groups.setdefault((scale[name], decays), made)["params"].append(parameter)
    if not groups:
        raise _nothing_learns()
    return list(groups.values())


def freeze(model: nn.Module, rates: Mapping[str, float]) -> None:
    """Let the parts of rate 0 be as they are: no gradients, and their batch normalisation in evaluation for good.

    The layers before the first that learns then keep nothing for a backward pass. Raises UserError as
    `parameter_groups` does.
    """
    scales = _scales(model, rates)
    if not any(scales.values()):  # before a backward pass that would find nothing to do
        raise _nothing_learns()
    frozen = {name for name, scale in scales.items() if not scale}
    for name, parameter in model.named_parameters():
        if name in frozen:
            parameter.requires_grad_(False)
    for name, layer in model.named_modules():
        if isinstance(layer, LaneBatchNorm) and f"{name}.weight" in frozen:
            layer.frozen = True
            layer.eval()


def _nothing_learns() -> UserError:
    return UserError("no part of the network would learn", "schedule.rates", "give a part a rate above 0")


def _scales(model: nn.Module, rates: Mapping[str, float]) -> dict[str, float]:
    """The factor of every parameter, by its name."""
    parts = {**model.parts, "head": (model.head,)} if isinstance(model, VideoNetwork) else {}
    for name, rate in rates.items():
        if name not in (*parts, _STAGES):
            known = ", ".join([*parts, f"{_STAGES} (all between stem and head)"])
            raise UserError(f"{name}: the network has no such part", "schedule.rates", f"its parts are {known}")
        if not 0 <= rate < math.inf:
            raise UserError(f"{name}: {rate} is no rate", "schedule.rates", "give 0, which freezes the part, or more")
    by_layer = {
        layer: rates.get(part, 1.0 if part in ("stem", "head") else rates.get(_STAGES, 1.0))
        for part, layers in parts.items()
        for layer in layers
    }
    names = [name for name, _ in model.named_parameters()]
    return {name: by_layer[name.split(".")[0]] if by_layer else 1.0 for name in names}
