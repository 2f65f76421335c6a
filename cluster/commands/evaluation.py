"""`reelscale evaluate` and `report`: a run's network scored on a store's videos; runs drawn into one page."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.commands.options import Address, AsJson, Config, Detach, Overrides, sent_to_cluster
from cluster.terminal.output import stdout_to_stderr
from cluster.terminal.tables import print_json, print_table
from sharding.base.printable import visible

_ACCURACIES = {"clip1": "clip@1", "video1": "video@1", "video5": "video@5", "mean_class_video1": "video@1, mean class"}


def evaluate(
    config: Config,
    overrides: Overrides = None,
    address: Address = None,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a run's network: clip@1, video@1, video@5, mean class accuracy, calibration; every video counts once.

    Classes are the run's, by name: the store may have some of them, and in another order. Beside each accuracy stands
    the 95 % interval that its number of videos leaves. Files go to a folder of the store, split and protocol (clips,
    crops, what is averaged) in RUN/evaluation. The same command goes on after a stop. Exit codes: 0 done,
    75 stopped by a signal with the scores so far saved, 2 a mistake, or too many damaged videos, 1 failed.

    Examples:

      reelscale evaluate configs/demo-evaluate.yaml

      reelscale evaluate configs/demo-evaluate.yaml run=runs/mine clips=100

      reelscale evaluate configs/demo-evaluate.yaml run=runs/mine crops=3 crop=128

      reelscale evaluate configs/demo-evaluate.yaml run=runs/rgb fuse.run=runs/flow
    """
    if sent_to_cluster(address, detach, as_json):
        return
    from cluster.jobs.evaluation import EvaluationJob, run_evaluation
    from sharding.base.settings import load_settings

    with stdout_to_stderr() if as_json else nullcontext():
        summary = run_evaluation(load_settings(EvaluationJob, config, overrides or []))
    if as_json:
        print_json(summary)
        return
    print_table("evaluation", _figures(summary))
    if "fused" in summary:
        fused = summary["fused"]
        print_table("fused", {"with": fused["folder"], **_accuracies(fused)})


def _figures(summary: dict[str, Any]) -> dict[str, str]:
    """What a person is told of an evaluation: each accuracy with the interval that its number of videos leaves."""
    videos = f"{summary['videos']:,}"
    if summary["several_labels"]:
        videos += f", {summary['several_labels']:,} with several labels: video@k is Hit@k"
    damaged = {"damaged": f"{summary['damaged']:,}, counted as wrong"} if summary["damaged"] else {}
    calibration = summary["calibration"]
    ece = {} if calibration["ece"] is None else {"ECE": f"{calibration['ece']:.3f} ({calibration['bins']} bins)"}
    return {
        "run": summary["weights"],
        "videos": videos,
        **damaged,
        "protocol": summary["protocol"]["words"],
        "clips": f"{summary['clips']:,}",
        **_accuracies(summary),
        **ece,
        "folder": summary["folder"],
    }


def _accuracies(summary: dict[str, Any]) -> dict[str, str]:
    rows = {}
    for name, title in _ACCURACIES.items():
        if summary.get(name) is not None:
            low, high = (100 * bound for bound in summary["intervals"][name])
            rows[title] = f"{100 * summary[name]:5.1f} %  ({low:.1f} to {high:.1f})"
    return rows


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
