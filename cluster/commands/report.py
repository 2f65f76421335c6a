"""`reelscale report`: runs drawn into one page."""

from pathlib import Path
from typing import Annotated

import typer

from sharding.base.printable import visible


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of one or more runs")],
    out: Annotated[
        Path | None, typer.Option("--out", help="folder of the report; the last run's report/ unless given")
    ] = None,
) -> None:
    """Draw curves, confusion matrix and contact sheet of runs into one self-contained HTML page.

    Example:

      reelscale report runs/demo-pretrain-motion runs/demo-finetune-motion2
    """
    from cluster.jobs.user_paths import absolute, writable_folder
    from pretrain.report.report import write_report
    from sharding.base.writable import writing

    runs = [Path(absolute(str(run))) for run in runs]
    folder = Path(writable_folder(str(out or runs[-1] / "report"), "--out"))
    with writing(folder, "--out"):
        print(visible(write_report(runs, folder)))
