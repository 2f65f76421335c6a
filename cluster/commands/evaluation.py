"""`reelscale evaluate`, `predict` and `report`: a network scored on a store's videos, or on any; runs in one page."""

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.commands.options import (
    Address,
    AsJson,
    Config,
    Detach,
    Overrides,
    named,
    sent_to_cluster,
    with_options,
)
from cluster.terminal.output import stdout_to_stderr
from cluster.terminal.progress import working
from cluster.terminal.tables import print_json, print_predictions, print_table
from pretrain.evaluation.predict_settings import PredictSettings
from sharding.base.exit_codes import DONE, FAILED
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

      reelscale evaluate configs/demo-evaluate.yaml run=runs/rgb split=test fuse.run=runs/flow fuse.search_split=val
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
    print_table("evaluation", _figures(summary))
    if "fused" in summary:
        fused = summary["fused"]
        weight = f"{fused['weight']:g} of {fused['of']}"
        weight += f", {fused['searched']['words']}" if "searched" in fused else ""
        print_table("fused", {"with": fused["folder"], "weight": weight, **_accuracies(fused)})


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


@with_options(PredictSettings)
def predict(
    weights: Annotated[
        str,
        typer.Argument(
            help="a run's folder (its newest checkpoint is taken), one of its checkpoints, or an export; published "
            "weights become a run by reelscale import"
        ),
    ],
    videos: Annotated[
        list[str], typer.Argument(metavar="VIDEO...", help="video files, folders of them, or URLs such as s3://…")
    ],
    top: Annotated[int, typer.Option("--top", min=1, metavar="K", help="likeliest classes of each video")] = 5,
    picture: Annotated[
        str | None,
        typer.Option(
            "--picture",
            metavar="FILE.png",
            help="a PNG with frames that were looked at; of several videos a folder of them",
        ),
    ] = None,
    as_json: AsJson = False,
    **options: Any,
) -> None:
    """Predict the classes of any videos: class names with their probabilities, the likeliest first.

    A video is stored as `shard` stored those that the network learned from, in memory, and scored as by `evaluate`: by
    centre crops of clips spread evenly over it, the mean of their softmax. Exit codes: 0 done, 1 a video among them
    could not be read (it is named, the others are predicted), 2 a mistake.

    Examples:

      reelscale predict runs/mine holiday.mp4

      reelscale predict mine.safetensors ~/videos s3://bucket/more --clips 3 --top 1 --picture look --json

      reelscale predict runs/mine/checkpoints/step-00000010 match.mkv --start 83 --end 93 --picture match.png
    """
    with working("loading PyTorch"):
        from cluster.jobs.prediction import run_prediction
        from sharding.base.settings import validate

    with stdout_to_stderr() if as_json else nullcontext():
        settings = validate(PredictSettings, named(options, PredictSettings), "reelscale predict")
        results = run_prediction(weights, videos, settings, top, picture)
    if as_json:
        print_json(results)
    else:
        print_predictions(results)
    raise typer.Exit(FAILED if results["failed"] else DONE)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of one or more runs")],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="folder of the report; the run's report/ unless given, of several the last one's comparison/"
        ),
    ] = None,
) -> None:
    """Make a self-contained HTML page of a run: results, curves, confusions, clips, errors first, and settings.

    Of several runs, also one that compares them: results, differences, curves, and the settings in which they differ.

    Examples:

      reelscale report runs/demo-pretrain-motion
      reelscale report runs/demo-pretrain-motion runs/demo-finetune-motion2
    """
    with working("drawing the report"):
        from pretrain.report.report import write_report
        from sharding.base.user_paths import absolute, writable_folder, writing

        runs = [Path(absolute(str(run))) for run in runs]
        folder = Path(writable_folder(str(out or runs[-1] / ("report" if len(runs) == 1 else "comparison")), "--out"))
        with writing(folder, "--out"):
            page = write_report(runs, folder)
    print(visible(page))
