"""What the networks of the zoo cost, for `reelscale models`."""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import Field

from pretrain.models.convolutions import FORMS
from pretrain.models.count import activations, conv_fc_parameters, macs, parameters
from pretrain.models.zoo import NAMES, ModelSettings, build_model
from sharding.errors import UserError
from sharding.settings import validate


class NetworkQuery(ModelSettings):
    """A network, the clips it is fed and the classes it tells apart."""

    frames: Annotated[int, Field(ge=1, description="frames a clip")] = 16
    size: Annotated[int, Field(ge=1, description="height and width of a clip, in pixels")] = 112
    classes: Annotated[int, Field(ge=1)] = 400


def describe(query: NetworkQuery) -> dict[str, Any]:
    """Parameters, conv+fc parameters, multiply-accumulates (`gmacs` to two digits, as published) and activations.

    Activations are the values that the convolutions and fully connected layers put out for one clip.
    Raises UserError for clips that the network cannot take.
    """
    with torch.device("meta"):
        model = build_model(query, query.classes, query.frames, query.size)
    count = macs(model, query.frames, query.size, query.size)
    return {
        "name": query.name,
        "depth": query.depth,
        "frames": query.frames,
        "size": query.size,
        "classes": query.classes,
        "parameters": parameters(model),
        "conv_fc_parameters": conv_fc_parameters(model),
        "gmacs": round(count / 1e9, 2),
        "macs": count,
        "activations": activations(model, query.frames, query.size, query.size),
    }


def describe_all(given: dict[str, Any]) -> list[dict[str, Any]]:
    """`describe` of every network with what is given; one that cannot take the clips has `refused`, and why."""
    rows = []
    for name in NAMES:
        own = {key: value for key, value in given.items() if name in FORMS or key not in ("depth", "pool1")}
        query = validate(NetworkQuery, own | {"name": name}, "the options")
        try:
            rows.append(describe(query))
        except UserError as error:
            rows.append({"name": name, "refused": error.what})
    return rows
