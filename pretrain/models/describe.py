"""Describes the networks of the zoo and what they cost, for `reelscale models`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from pretrain.data.views.views import LARGEST_CROP, MOST_FRAMES
from pretrain.models.convolutions import FORMS
from pretrain.models.count import activations, conv_fc_parameters, macs, parameters
from pretrain.models.meta_device import on_meta
from pretrain.models.zoo import NAMES, RESNET_ONLY, ModelSettings, build_model
from sharding.base.errors import UserError
from sharding.base.settings import load_settings, unit, validate

_USUAL = {  # what a network is published for, where it is not 16 frames of 112²
    "p3d": {"frames": 16, "size": 160},
    "s3d": {"frames": 64, "size": 224},
    "lstm": {"frames": 25, "size": 224},
    "fused3d": {"frames": 50, "size": 224},
    "i3d": {"frames": 64, "size": 224},
}


class NetworkQuery(ModelSettings):
    """A network, the clips it is fed and the classes it tells apart."""

    frames: Annotated[
        int, Field(json_schema_extra=unit("frames"), ge=1, le=MOST_FRAMES, strict=True, description="frames in a clip")
    ] = 16
    size: Annotated[
        int,
        Field(
            json_schema_extra=unit("pixels"),
            ge=1,
            le=LARGEST_CROP,
            strict=True,
            description="height and width of a clip, in pixels",
        ),
    ] = 112
    classes: Annotated[int, Field(ge=1, le=10**6, strict=True, description="number of classes")] = 400


def describe(query: NetworkQuery) -> dict[str, Any]:
    """Parameters, conv+fc parameters, multiply-accumulates (`gmacs` to two digits, as published) and activations.

    Activations are the values that the convolutions and fully connected layers put out for one clip.
    Raises UserError for clips that the network cannot take.
    """
    with on_meta():
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


def describe_networks(overrides: list[str]) -> dict[str, Any]:
    """`describe` of the network that `key=value` settings of `NetworkQuery` name, or of all where none is named.

    Of all: {"models": [...]}, each fed what is given and its own depth and clips where nothing is; one that cannot
    take them has `refused` with the reason. Raises UserError for values that are not allowed, naming those
    that are.
    """
    query = load_settings(NetworkQuery, None, overrides)
    named = query.model_dump(exclude_unset=True)
    if "name" in named:
        return describe(validate(NetworkQuery, _USUAL.get(query.name, {}) | named, query.name))
    asked = {override.partition("=")[0].strip() for override in overrides}
    named = {
        key: value for key, value in named.items() if key in asked
    }  # not what r2plus1d, the default, has of its own
    rows = []
    for name in NAMES:
        own = {key: value for key, value in named.items() if _has(name, key)}
        try:
            rows.append(describe(validate(NetworkQuery, _USUAL.get(name, {}) | own | {"name": name}, name)))
        except UserError as error:
            rows.append({"name": name, "refused": error.what})
    return {"models": rows}


def _has(name: str, key: str) -> bool:
    """Whether there is such a setting of the network at all."""
    return name in FORMS or key not in RESNET_ONLY or (name, key) == ("p3d", "depth")
