"""`reelscale models`: what networks cost."""

from typing import Annotated

import typer

from cluster.commands.options import AsJson, Overrides
from cluster.terminal.tables import print_json, print_models


def models(
    name: Annotated[
        str | None,
        typer.Option(
            help="r2d fr2d r3d mc2 mc3 mc4 mc5 rmc2 rmc3 rmc4 rmc5 r2plus1d i3d or c3d; all of them unless given"
        ),
    ] = None,
    depth: Annotated[
        str | None, typer.Option(metavar="N", help="of a ResNet: 10 16 18 26 34 50 101 or 152; 34 unless given")
    ] = None,
    frames: Annotated[str | None, typer.Option(metavar="N", help="frames a clip; 16 unless given, 64 of i3d")] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="N", help="height and width of a clip, in pixels; 112 unless given, 224 of i3d"),
    ] = None,
    classes: Annotated[str | None, typer.Option(metavar="N", help="classes to tell apart; 400 unless given")] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Show what networks cost: parameters, conv+fc parameters, multiply-accumulates and activations of one clip.

    KEY=VALUE are a network's other settings: width, in_channels, pool1, midplanes (conv or block), dropout, eps.

    Examples:

      reelscale models

      reelscale models --name r2plus1d --depth 34 --frames 32 --size 112 --classes 400 --json

      reelscale models --name i3d --frames 64 --size 224 in_channels=2
    """
    from pretrain.models.describe import describe_networks

    options = {"name": name, "depth": depth, "frames": frames, "size": size, "classes": classes}
    from_options = [f"{key}={value}" for key, value in options.items() if value is not None]
    described = describe_networks([*from_options, *(overrides or [])])
    if as_json:
        print_json(described)
        return
    print_models([described] if "name" in described else described["models"])
