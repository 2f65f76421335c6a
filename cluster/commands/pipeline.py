"""`reelscale run` and `splits`: pipelines of commands, each of which is done once."""

import json
import shlex
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer

from cluster.commands.evaluation import evaluate, report
from cluster.commands.networks import export_network
from cluster.commands.options import Address, AsJson, Detach, sent_to_cluster
from cluster.commands.settings import model_of
from cluster.commands.shard import retry, shard
from cluster.commands.store import inspect_store, verify
from cluster.commands.training import finetune, pretrain
from cluster.launch.signals import signals_postponed
from cluster.terminal.progress import working
from cluster.terminal.tables import print_json
from sharding.base.errors import UserError
from sharding.base.exit_codes import DONE
from sharding.base.printable import visible, visible_lines

if TYPE_CHECKING:
    from cluster.jobs.pipeline.plan import Plan, StagePaths

_UsageError: Any = typer.BadParameter.__base__  # click's
_FUNCTIONS: dict[str, tuple[Callable[..., None], str | None]] = {  # by command: its function, and whose settings
    "shard": (shard, "shard"),
    "shards retry": (retry, "retry"),
    "shards verify": (verify, None),
    "shards inspect": (inspect_store, None),
    "pretrain": (pretrain, "pretrain"),
    "finetune": (finetune, "finetune"),
    "evaluate": (evaluate, "evaluate"),
    "report": (report, None),
    "export": (export_network, None),
}
_MADE_AND_READ: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {  # by command: parameters that name paths
    "shard": (("store",), ("corpus", "media")),
    "shards retry": ((), ("store", "media")),
    "shards verify": ((), ("store",)),
    "shards inspect": (("out",), ("store",)),
    "pretrain": ((), ()),
    "finetune": ((), ()),
    "evaluate": ((), ()),
    "report": (("out",), ("runs",)),
    "export": (("file",), ("run",)),
}


def run(
    pipeline: Annotated[str, typer.Argument(help="a pipeline's file (YAML), e.g. configs/demo-pipeline.yaml")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="a variable's text, parallel or folder, or STAGE.KEY.PATH=VALUE: a setting of one stage's command",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check everything, print each stage, its state and its command, stop")
    ] = False,
    again: Annotated[
        list[str] | None, typer.Option("--again", metavar="STAGE", help="a stage to run although it is done")
    ] = None,
    address: Address = None,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Run the stages of a pipeline: shard, pretrain, fine-tune, evaluate, report. Run it again to go on.

    A stage that is done is passed over, unless its command, its settings or what it needs have changed since; then it
    and all that needs it run again. Nothing is deleted: the commands themselves go on from what is there. What lies in
    a corpus is not looked at: name its stage with --again where videos were added. The first stage that fails ends
    the pipeline with its exit code. All stages are checked before the first one starts. The file's settings:
    reelscale settings run.

    Examples:

      reelscale run configs/demo-pipeline.yaml --dry-run

      reelscale run configs/demo-pipeline.yaml root=demo store=s3://bucket/demo

      reelscale run mine.yaml --address head:6379 --detach

      reelscale run mine.yaml parallel=2 pretrain.schedule.epochs=12
    """
    if sent_to_cluster(address, detach, as_json):
        return
    with working("checking the stages"), signals_postponed():
        from cluster.jobs.pipeline.plan import load_pipeline, require_stages

        plan = load_pipeline(pipeline, overrides or [], _paths_once_checked)
        require_stages(plan, again or [])
        perform = _show_plan if dry_run else _run
    raise typer.Exit(perform(plan, again or [], as_json))


def splits(
    config: Annotated[str, typer.Argument(help="a file of splits (YAML), e.g. configs/ucf101-r2plus1d-34-splits.yaml")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="a setting of the file, or finetune.KEY.PATH=VALUE, evaluate.KEY.PATH=VALUE: one of their commands'",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check everything, print each job, its state and its command, stop")
    ] = False,
    address: Address = None,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune and evaluate a recipe on each split of a corpus; print the figures, their mean and spread.

    Jobs of different splits run side by side as far as the Ray cluster has room for them, on this machine one after
    the other. One that fails is tried again, from its own checkpoint, and costs no other split. The same command goes
    on after a stop, a kill or a failure; what is done is not done again. The result is FOLDER/splits.json, too.
    The file's settings: reelscale settings splits.

    Examples:

      reelscale splits configs/ucf101-r2plus1d-34-splits.yaml finetune.init.run=runs/mine store=stores/ucf101-{split}

      reelscale splits mine.yaml splits=[1] finetune.schedule.lr=0.001 evaluate.clips=20

      reelscale splits mine.yaml --address head:6379 --json
    """
    if sent_to_cluster(address, detach, as_json):
        return
    with working("loading PyTorch, and checking each split's recipes"), signals_postponed():
        from cluster.jobs.finetuning.splits import load_splits, splits_result, write_result
        from cluster.jobs.pipeline.processes import run_pipeline
        from cluster.terminal.result_tables import print_splits

        job, plan = load_splits(config, overrides or [], _paths_once_checked)
    if dry_run:
        raise typer.Exit(_show_plan(plan, [], as_json))
    code, ends = run_pipeline(plan, _shown_on(sys.stderr if as_json else sys.stdout))
    result = splits_result(job, plan, ends)
    file = write_result(plan, result)
    if as_json:
        print_json({**result, "file": str(file)})
    else:
        print_splits(result)
        print(visible(f"result: {file}"))
    raise typer.Exit(code)


def _run(plan: "Plan", again: Sequence[str], as_json: bool) -> int:
    """Run a plan, print how it ended, and return its exit code."""
    from cluster.jobs.pipeline.processes import run_pipeline

    code, ends = run_pipeline(plan, _shown_on(sys.stderr if as_json else sys.stdout), again)
    if as_json:
        print_json({"pipeline": plan.path, "folder": str(plan.folder), "stages": [asdict(end) for end in ends]})
    elif code == DONE:
        print(visible(f"pipeline {plan.path}: all {len(ends)} stages are done; records and logs: {plan.folder}"))
    return code


def _shown_on(out: TextIO) -> Callable[[str], None]:
    """What writes a line at once."""

    def show(line: str) -> None:
        out.write(f"{visible_lines(line)}\n")
        out.flush()

    return show


def _show_plan(plan: "Plan", again: Sequence[str], as_json: bool) -> int:
    """Print each stage, its state and its command; the exit code."""
    from cluster.jobs.pipeline.records import read_records, states

    stage_states = states(plan, read_records(plan), again)
    rows: list[dict[str, Any]] = [
        {
            "stage": stage.name,
            **asdict(stage_states[stage.name]),
            "needs": list(stage.needs),
            "command": ["reelscale", *stage.words],
        }
        for stage in plan.stages
    ]
    if as_json:
        print_json({"pipeline": plan.path, "folder": str(plan.folder), "stages": rows})
        return DONE
    print(visible(f"pipeline {plan.path}"))
    for row in rows:
        reason = f"  ({row['reason']})" if row["reason"] else ""
        print(visible(f"  {row['stage']:<20} {row['state']:<8} {shlex.join(row['command'])}{reason}"))
    return DONE


def _paths_once_checked(command: str, words: Sequence[str]) -> "StagePaths":
    """What a command line makes and reads, once it is known to be one.

    Its words are read by the command's own parser, and its settings by the command's own model. Raises UserError for
    what either refuses.
    """
    from cluster.jobs.pipeline.plan import StagePaths

    function, settings_of = _FUNCTIONS[command]
    alone = typer.Typer(add_completion=False, rich_markup_mode=None)
    alone.command()(function)
    try:
        values = typer.main.get_command(alone).make_context(command, list(words)).params
    except _UsageError as error:
        remedy = f"correct the stage's arguments; reelscale {command} --help shows them"
        raise UserError(error.format_message(), f"reelscale {command} {shlex.join(words)}", remedy) from error
    except typer.Exit:
        raise UserError("a stage that only shows its help does nothing", command, "take --help out") from None
    if values.get("detach"):
        remedy = "take --detach out, and hand over the whole pipeline: reelscale run … --detach"
        raise UserError("a stage that is handed over is not done when its command ends", command, remedy)
    made, read = _MADE_AND_READ[command]
    paths = StagePaths(_texts(values, made), _texts(values, read))
    return _with_settings_paths(settings_of, values, paths) if settings_of else paths


def _texts(values: dict[str, Any], names: Sequence[str]) -> list[str]:
    """The paths that parameters of these names hold."""
    held = [values[name] for name in names if values[name] is not None]
    return [str(path) for value in held for path in (value if isinstance(value, list | tuple) else [value])]


def _with_settings_paths(command: str, values: dict[str, Any], paths: "StagePaths") -> "StagePaths":
    """A command line's paths with those that its settings name. Raises UserError for settings that do not fit."""
    from cluster.jobs.pipeline.plan import StagePaths
    from sharding.base.settings import load_settings

    media = [f"media={json.dumps(values['media'])}"] if values.get("media") else []
    job = load_settings(model_of(command), values["config"], [*media, *(values["overrides"] or [])])
    if command == "evaluate":
        fused = [job.evaluation.fuse.run] if job.evaluation.fuse else []
        return StagePaths(paths.made, [job.evaluation.run, *filter(None, [job.evaluation.store]), *fused])
    if command not in ("pretrain", "finetune"):
        return paths
    from cluster.jobs.training import require_init, run_folder
    from sharding.base.user_paths import absolute

    if command == "finetune":
        require_init(job.train, values["config"])
    data = job.train.data
    read = [data.store, *(mixed.store for mixed in data.mix), *([job.train.init.run] if job.train.init else [])]
    return StagePaths([run_folder(job.train, values["config"], absolute(data.store))], read)
