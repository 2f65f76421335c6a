"""The command line: `reelscale …`. Thin: it reads arguments, calls a job, prints, and picks the exit code."""

import importlib.metadata
import io
import json
import os
import sys
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from cluster.launch.processes import WorkerDied
from cluster.launch.signals import (
    NOT_BEGUN,
    Interrupted,
    interruptible,
    interruption_told,
    postponed,
    started_by_run_ranks,
)
from cluster.terminal.output import end_process, stdout_to_stderr
from cluster.terminal.tables import (
    print_json,
    print_models,
    print_network,
    print_store,
    print_table,
    print_verification,
    readable,
)
from sharding.base.errors import CommandFailed, UserError
from sharding.base.exit_codes import STOPPED
from sharding.base.printable import visible, visible_lines

_UsageError: Any = typer.BadParameter.__base__  # click's, which typer may bring along under a name of its own

app = typer.Typer(
    name="reelscale",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
shards = typer.Typer(
    help="Verify or inspect a store's shards, or retry what failed.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(shards, name="shards")

Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY.PATH=VALUE]...", help="settings that win over the file's")
]
Media = Annotated[str | None, typer.Option("--media", help="a folder or URL that the listed videos lie below")]
AsJson = Annotated[bool, typer.Option("--json", help="print JSON and nothing else on standard output")]
Config = Annotated[str, typer.Argument(help="a recipe (YAML), e.g. one of configs/")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="check everything, print the derived quantities, stop")]


def _tell_version(asked: bool) -> None:
    if asked:
        print(f"reelscale {importlib.metadata.version('reelscale')}")
        raise typer.Exit


@app.callback()
def reelscale(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_tell_version, help="show the version and stop")
    ] = False,
) -> None:
    """Pretrain video networks: shard a corpus, pretrain, fine-tune, evaluate, report."""


@app.command()
def shard(
    corpus: Annotated[
        str,
        typer.Argument(
            help="a folder of class folders, a csv, jsonl or parquet list, or Sports-1M, Kinetics, UCF101, HMDB51 lists"
        ),
    ],
    store: Annotated[str, typer.Argument(help="a directory or URL (s3://bucket/prefix) to put the shards in")],
    overrides: Overrides = None,
    config: Annotated[str | None, typer.Option("--config", help="settings (YAML)")] = None,
    media: Media = None,
    as_json: AsJson = False,
) -> None:
    """Shard a corpus of videos into a store. Run it again to go on after a stop, or when videos were added.

    A video that cannot be used is listed with its reason and never stops the rest. Ctrl-C and SIGTERM end with
    exit code 75 and keep the shards made so far.

    Examples:

      reelscale shard ~/videos ./store

      reelscale shard ~/videos s3://bucket/videos encode.short_edge=256 launcher=none

      reelscale shard list.csv ./store --media ~/videos segments.seconds=10 segments.per_video=3

      reelscale shard list.csv ./store labels_separator=';' encoding=cp1252

      reelscale shard sports-1m-dataset s3://bucket/sports1m --media s3://bucket/raw segments.seconds=10

      reelscale shard ucfTrainTestlist ./ucf --media UCF-101 fold=2
    """
    from_media = [f"media={json.dumps(media)}"] if media else []
    _shard("run_sharding", corpus, store, config, [*from_media, *(overrides or [])], as_json=as_json)


@shards.command()
def retry(
    store: Annotated[str, typer.Argument(help="a directory or URL that `reelscale shard` wrote")],
    overrides: Overrides = None,
    config: Annotated[str | None, typer.Option("--config", help="settings (YAML): workers, launcher, …")] = None,
    media: Media = None,
    as_json: AsJson = False,
) -> None:
    """Try the videos and segments that failed once more, into new shards; those that are there stay untouched.

    Examples:

      reelscale shards retry ./store

      reelscale shards retry s3://bucket/videos --media s3://bucket/mended workers=4
    """
    from_media = [f"media={json.dumps(media)}"] if media else []
    _shard("run_retry", store, config, [*from_media, *(overrides or [])], as_json=as_json)


@shards.command()
def verify(
    store: Annotated[str, typer.Argument(help="a directory or URL that `reelscale shard` wrote")],
    decode: Annotated[str, typer.Option(help="samples to decode: none, sample (one in fifty), all")] = "sample",
    workers: Annotated[int, typer.Option(min=0, max=1024, help="shards read at a time; 0: one a core")] = 0,
    as_json: AsJson = False,
) -> None:
    """Read everything in a store again: counts, digests, tables, pictures. Names every damaged shard and sample.

    Exit codes: 0 all is as it was written, 1 something is damaged.

    Examples:

      reelscale shards verify ./store

      reelscale shards verify s3://bucket/videos --decode all --json
    """
    from cluster.jobs.verification import run_verification

    found = run_verification(store, decode, workers)
    if as_json:
        print_json(found)
    else:
        print_verification(found)
    raise typer.Exit(1 if found["damages"] else 0)


@shards.command("inspect")
def inspect_store(
    store: Annotated[str, typer.Argument(help="a directory or URL that `reelscale shard` wrote")],
    out: Annotated[
        Path | None, typer.Option("--out", help="folder for a contact sheet (PNG) and a page (HTML)")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show what a store holds: samples, splits, classes, lengths, and the videos that failed with their reasons.

    Examples:

      reelscale shards inspect ./store --json

      reelscale shards inspect s3://bucket/videos --out ./look
    """
    from cluster.jobs.inspection import run_inspection

    found = run_inspection(store, out)
    if as_json:
        print_json(found)
    else:
        print_store(found)


@app.command()
def pretrain(config: Config, overrides: Overrides = None, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Pretrain a network on a store. The same command goes on from the run's newest checkpoint.

    Exit codes: 0 finished, 75 stopped by a signal with everything saved, 2 a mistake in the settings, 1 failed.

    Examples:

      reelscale pretrain configs/demo-pretrain.yaml

      reelscale pretrain configs/demo-pretrain.yaml data.store=./store ranks=2 launcher=none

      torchrun --nproc-per-node 2 -m cluster.cli pretrain configs/demo-pretrain.yaml
    """
    _train("pretrain", config, overrides or [], dry_run, as_json)


@app.command()
def finetune(config: Config, overrides: Overrides = None, dry_run: DryRun = False, as_json: AsJson = False) -> None:
    """Fine-tune another run's network (init.run) on a store; its classifier is new where the classes differ.

    Examples:

      reelscale finetune configs/demo-finetune.yaml

      reelscale finetune configs/demo-finetune.yaml init.run=runs/mine data.store=./store
    """
    _train("finetune", config, overrides or [], dry_run, as_json)


@app.command()
def evaluate(config: Config, overrides: Overrides = None, as_json: AsJson = False) -> None:
    """Evaluate a run's network: clip@1, video@1, video@5, every video counted once.

    Classes are the run's, by name: the store may have some of them, and in another order. Files go to a folder of the
    store, split and number of clips in RUN/evaluation. The same command goes on after a stop. Exit codes: 0 done,
    75 stopped by a signal with the scores so far saved, 2 a mistake, or too many damaged videos, 1 failed.

    Examples:

      reelscale evaluate configs/demo-evaluate.yaml

      reelscale evaluate configs/demo-evaluate.yaml run=runs/mine clips=100

      reelscale evaluate configs/demo-evaluate.yaml run=runs/rgb fuse.run=runs/flow
    """
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


@app.command("bench-loader")
def bench_loader(
    store: Annotated[str, typer.Argument(help="a directory or URL that `reelscale shard` wrote")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Measure how fast this machine reads and decodes a store's training clips, and what a clip costs.

    KEY=VALUE are a recipe's data settings (data.clip, data.loader, data.order, data.mix), its lanes, lane_batch and
    seed; and seconds=10, or clips=N, that each of two outputs is measured for: planes (uint8), and the network's input
    made of them on the CPU.

    Examples:

      reelscale bench-loader ./store

      reelscale bench-loader s3://bucket/videos data.clip.frames=32 data.loader.workers=8 seconds=30 --json
    """
    from cluster.jobs.loader_bench import run_loader_bench, shown

    with stdout_to_stderr() if as_json else nullcontext():
        found = run_loader_bench(store, overrides or [])
    if as_json:
        print_json(found)
    else:
        print_table(f"bench-loader {found['store']}", shown(found))


@app.command()
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


@app.command()
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
    from pretrain.models.describe import describe_given

    options = {"name": name, "depth": depth, "frames": frames, "size": size, "classes": classes}
    given = [f"{key}={value}" for key, value in options.items() if value is not None]
    told = describe_given([*given, *(overrides or [])])
    if as_json:
        print_json(told)
        return
    print_models([told] if "name" in told else told["models"])


@app.command("export")
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


@app.command("import")
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


def _shard(name: str, *arguments: Any, as_json: bool) -> None:
    try:
        with postponed():
            from cluster.jobs import sharding

        with interruption_told(), stdout_to_stderr() if as_json else nullcontext():
            found = getattr(sharding, name)(*arguments)
    except WorkerDied as error:
        told = f"reelscale: {error}; the same command goes on, with less memory where workers=1"
        print(visible_lines(told), file=sys.stderr)
        raise typer.Exit(1) from None
    except Interrupted:
        print("reelscale: stopped; the shards made so far are kept, the same command goes on", file=sys.stderr)
        raise typer.Exit(STOPPED) from None
    if as_json:
        print_json(found)
    else:
        print_store(found)


def _train(command: str, config: str, overrides: list[str], dry_run: bool, as_json: bool) -> None:
    try:
        with postponed():
            from cluster.jobs.training import load_job, plan_training, run_training, training_summary

        job = load_job(config, overrides, needs_init=command == "finetune")
        with stdout_to_stderr() if as_json else nullcontext():
            checked = started_by_run_ranks()  # by the command, which has told what it found, too
            quantities = {} if checked else plan_training(job)
            tells = os.environ.get("RANK", "0") == "0" and not checked
            if tells and not (as_json and dry_run):
                print_table(command, readable(quantities))
            code = 0 if dry_run else run_training(job, [command, config, *overrides])
    except Interrupted:
        print(NOT_BEGUN, file=sys.stderr)
        raise typer.Exit(STOPPED) from None
    if as_json and tells and code in (0, STOPPED):
        print_json(quantities if dry_run else training_summary(job, code))
    raise typer.Exit(code)


def main() -> None:
    """Run the command line; a user's mistake is told in one message and ends with exit code 2."""
    code: str | int | None
    try:
        # SIGTERM ends a rank of launcher=none at once until it can save; the command that started it tells the rest.
        with nullcontext() if started_by_run_ranks() else interruptible():
            code = app(standalone_mode=False) or 0
    except SystemExit as asked:
        code = asked.code
    except _UsageError as error:
        told = io.StringIO()
        error.show(told)
        print(visible_lines(told.getvalue()), end="", file=sys.stderr)
        code = 2
    except typer.Abort:
        code = 1
    except UserError as error:
        print(f"reelscale: {error}", file=sys.stderr)
        code = 2
    except CommandFailed as error:
        print(visible_lines(f"reelscale: {error}"), file=sys.stderr)
        code = 1
    except Interrupted:
        print("reelscale: stopped; run the same command again", file=sys.stderr)
        code = STOPPED
    except Exception:
        print(visible_lines(traceback.format_exc()), end="", file=sys.stderr)
        code = 1
    if "RANK" in os.environ:
        end_process(code)  # without a clean-up, which may hang on what an error has left
    sys.exit(code)


if __name__ == "__main__":
    main()
