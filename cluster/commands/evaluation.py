"""`reelscale evaluate` and `report`: a run's network scored on a store's videos; runs drawn into one page."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated

import typer

from cluster.commands.options import Address, AsJson, Config, Detach, Overrides, sent_to_cluster
from cluster.terminal.output import stdout_to_stderr
from cluster.terminal.progress import working
from cluster.terminal.tables import print_json, print_table
from sharding.base.printable import visible


def evaluate(
    config: Config,
    overrides: Overrides = None,
    address: Address = None,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a run's network: clip@1, video@1, video@5, every video counted once.

    Classes are the run's, by name: the store may have some of them, and in another order. Files go to a folder of the
    store, split and number of clips in RUN/evaluation. The same command goes on after a stop. Exit codes: 0 done,
    75 stopped by a signal with the scores so far saved, 2 a mistake, or too many damaged videos, 1 failed.

    Examples:

      reelscale evaluate configs/demo-evaluate.yaml

      reelscale evaluate configs/demo-evaluate.yaml run=runs/mine clips=100

      reelscale evaluate configs/demo-evaluate.yaml run=runs/rgb fuse.run=runs/flow
    """
    if sent_to_cluster(address, detach, as_json):
        return
    with working("loading PyTorch"):
        from cluster.jobs.evaluation import EvaluationJob, run_evaluation
        from sharding.base.settings import load_settings

    with stdout_to_stderr() if as_json else nullcontext():
        summary = run_evaluation(load_settings(EvaluationJob, config, overrides or []))
    if as_json:
        print_json(summary)
        return
    rows = {name: f"{100 * summary[name]:.1f} %" for name in ("clip1", "video1", "video5")}
    counts = {name: summary[name] for name in ("videos", "clips")}
    damaged = {"damaged": f"{summary['damaged']}, counted as wrong"} if summary["damaged"] else {}
    print_table("evaluation", {"run": summary["weights"], **counts, **damaged, **rows, "folder": summary["folder"]})
    if "fused" in summary:
        fused = summary["fused"]
        print_table(
            "fused",
            {"with": fused["folder"], **{name: f"{100 * fused[name]:.1f} %" for name in ("video1", "video5")}},
        )


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
    with working("drawing the report"):
        from cluster.jobs.user_paths import absolute, writable_folder
        from pretrain.report.report import write_report
        from sharding.base.writable import writing

        runs = [Path(absolute(str(run))) for run in runs]
        folder = Path(writable_folder(str(out or runs[-1] / "report"), "--out"))
        with writing(folder, "--out"):
            page = write_report(runs, folder)
    print(visible(page))
