"""`reelscale models`, `export` and `import`: what networks cost; one out of a run, and published weights into one."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.options import AsJson, Overrides
from cluster.terminal.progress import working
from cluster.terminal.tables import print_json, print_models, print_network


def models(
    name: Annotated[
        str | None,
        typer.Option(
            help="r2d fr2d r3d mc2 mc3 mc4 mc5 rmc2 rmc3 rmc4 rmc5 r2plus1d r3drelu p3d s3d lstm fused3d i3d or c3d; "
            "all of them unless given"
        ),
    ] = None,
    depth: Annotated[
        str | None,
        typer.Option(metavar="N", help="of a ResNet: 10 16 18 26 34 50 101 or 152; 34 unless given, 152 of p3d"),
    ] = None,
    frames: Annotated[
        str | None,
        typer.Option(metavar="N", help="frames a clip; 16 unless given, or what the network is published for"),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(metavar="N", help="height and width of a clip, in pixels; 112 unless given, or as frames are"),
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
    options = {"name": name, "depth": depth, "frames": frames, "size": size, "classes": classes}
    from_options = [f"{key}={value}" for key, value in options.items() if value is not None]
    with working("building the networks"):
        from pretrain.models.describe import describe_networks

        described = describe_networks([*from_options, *(overrides or [])])
    if as_json:
        print_json(described)
        return
    print_models([described] if "name" in described else described["models"])


def export_network(
    run: Annotated[Path, typer.Argument(help="folder of the run whose newest checkpoint is taken")],
    file: Annotated[Path, typer.Argument(metavar="FILE.safetensors", help="the file to write")],
    as_json: AsJson = False,
) -> None:
    """Write a run's network to one safetensors file, with its classes, normalisation, input and provenance inside.

    Example:

      reelscale export runs/mine mine.safetensors
    """
    with working("reading the run's newest checkpoint"):
        from pretrain.conversion.import_export import export_run

        exported = export_run(run, file)
    print_network("exported", exported, as_json)


def import_network(
    file: Annotated[Path, typer.Argument(help="weights: .pth, .pt, .tar, .pkl (Caffe2) or .safetensors")],
    run: Annotated[Path, typer.Argument(help="folder of the run to make")],
    classes: Annotated[
        Path | None, typer.Option(help="file of class names, one a line, in the network's order")
    ] = None,
    frames: Annotated[
        int | None,
        typer.Option(
            min=1, max=10_000, help="frames of the clips that the network was trained on; 16, of i3d 64, unless told"
        ),
    ] = None,
    inflate: Annotated[
        str | None,
        typer.Option(
            help="the video network that a 2D network's weights become: a ResNet but r2plus1d and r3drelu, or i3d"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a run of published weights or of an export, to evaluate (run=RUN) and to fine-tune from (init.run=RUN).

    Known are torchvision's video and 2D ResNets, ig65m-pytorch, VMZ (PyTorch and Caffe2), pytorch-i3d and exports, in
    files of any name and in what trainers save: Lightning's checkpoints, DDP's, FSDP's and torch.compile's names.

    Examples:

      reelscale import r2plus1d_34_clip8_ig65m_from_scratch.pth runs/ig65m --frames 8

      reelscale import r2plus1d_18.pth runs/kinetics --classes kinetics400.txt

      reelscale import resnet50.pth runs/inflated --inflate r3d
    """
    with working("reading the weights"):
        from pretrain.conversion.import_export import import_run

        imported = import_run(file, run, classes, inflate, frames)
    print_network("imported", imported, as_json)
