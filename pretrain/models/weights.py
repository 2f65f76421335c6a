"""Loads weights into a network, all of them or all but the classifier, and checks that they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

from pretrain.models.network import VideoNetwork
from sharding.base.errors import UserError

_SHOWN = 8
Head = Literal["keep", "swap"]


def load_weights(
    model: VideoNetwork, state: Mapping[str, Tensor], head: Head, source: str = "the given weights"
) -> None:
    """Copy `state`, named as `model.state_dict()` is, into the network, in the network's precision and place.

    With `head="swap"` the classifier in `state` is left out, whatever its shape, and the network keeps its
    own. A state without `num_batches_tracked` is complete. `source` names the weights in the error.

    Raises UserError naming the missing, unexpected and mismatched tensors; the network is then unchanged.
    """
    check_weights(model, state, head, source)
    wanted = model.state_dict()
    with torch.no_grad():
        for name, value in state.items():
            if head == "keep" or not name.startswith(f"{model.head}."):
                wanted[name].copy_(value)


def order_classifier(model: VideoNetwork, rows: Sequence[int]) -> None:
    """Give the classifier's rows, one for each class, another order: row i is what row `rows[i]` was."""
    with torch.no_grad():
        for value in model.get_submodule(model.head).state_dict().values():
            value.copy_(value[list(rows)])


def check_weights(
    model: VideoNetwork,
    state: Mapping[str, Tensor],
    head: Head,
    source: str = "the given weights",
    remedy: str | None = None,
) -> None:
    """Raises UserError unless `load_weights` would use every tensor of `state` once and leave none without one.

    `remedy` is for callers whose users do not choose the network.
    """
    classifier = f"{model.head}."
    offered = {name: value for name, value in state.items() if head == "keep" or not name.startswith(classifier)}
    wanted = {
        name: value for name, value in model.state_dict().items() if head == "keep" or not name.startswith(classifier)
    }
    problems = tensor_differences(offered, wanted)
    if problems:
        raise UserError(
            what="the weights are not this network's: " + "; ".join(problems),
            where=source,
            remedy=remedy
            or "give the form, depth, width and number of classes the weights were made with"
            + ("" if head == "swap" else ", or swap the head if only the classes differ"),
        )


def tensor_differences(offered: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """How tensors differ from those that a network wants, in words: by name and shape, and how many; [] if not."""
    missing = [name for name in wanted if name not in offered and not name.endswith("num_batches_tracked")]
    unexpected = [name for name in offered if name not in wanted]
    mismatched = [
        f"{name} {tuple(offered[name].shape)} for {tuple(tensor.shape)}"
        for name, tensor in wanted.items()
        if name in offered and offered[name].shape != tensor.shape
    ]
    problems = {"missing": missing, "unexpected": unexpected, "of another shape": mismatched}
    return [f"{len(names)} {problem} ({first_names(names)})" for problem, names in problems.items() if names]


def first_names(names: Sequence[str]) -> str:
    """The first of the names, for a message, and how many more there are."""
    shown = ", ".join(names[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown}, and {len(names) - _SHOWN} more"
