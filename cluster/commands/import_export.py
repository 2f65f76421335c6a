"""`reelscale export` and `import`: networks out of runs, and published weights into them."""

from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.options import AsJson
from cluster.terminal.tables import print_network


def export_network(
    run: Annotated[Path, typer.Argument(help="folder of the run whose newest checkpoint is taken")],
    file: Annotated[Path, typer.Argument(metavar="FILE.safetensors", help="the file to write")],
    as_json: AsJson = False,
) -> None:
    """Write a run's network to one safetensors file, with its classes, normalisation, input and provenance inside.

    Example:

      reelscale export runs/mine mine.safetensors
    """
    from pretrain.conversion.import_export import export_run

    print_network("exported", export_run(run, file), as_json)


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
        str | None, typer.Option(help="the video network that a 2D network's weights become: any but r2plus1d and c3d")
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
    from pretrain.conversion.import_export import import_run

    print_network("imported", import_run(file, run, classes, inflate, frames), as_json)
