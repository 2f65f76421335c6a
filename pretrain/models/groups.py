"""Parameter groups: which weights decay."""

from __future__ import annotations

from typing import Any

from torch import nn


def weight_decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Optimizer groups: convolution and FC weights and BN scales decay, biases do not (VMZ's rule).

    Frozen parameters are in neither; a group with nothing in it is left out.
    """
    trained = [(name, value) for name, value in model.named_parameters() if value.requires_grad]
    biases = [value for name, value in trained if name.split(".")[-1] == "bias"]
    others = [value for name, value in trained if name.split(".")[-1] != "bias"]
    groups: list[dict[str, Any]] = [
        {"params": others, "weight_decay": weight_decay},
        {"params": biases, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]
