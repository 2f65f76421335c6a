"""`reelscale settings`: what a command can be told, with types, defaults and units; what a recipe says, as a whole."""

import json
from importlib import import_module
from typing import Annotated, Any

import typer

from cluster.commands.options import AsJson, Overrides
from cluster.terminal.progress import working
from sharding.base.errors import UserError

_MODELS = {  # by command: where its settings are declared
    "shard": ("cluster.jobs.sharding", "ShardingJob"),
    "retry": ("cluster.jobs.sharding", "RetryJob"),
    "pretrain": ("cluster.jobs.training", "TrainingJob"),
    "finetune": ("cluster.jobs.training", "TrainingJob"),
    "evaluate": ("cluster.jobs.evaluation", "EvaluationJob"),
    "splits": ("cluster.jobs.finetuning.splits", "SplitsJob"),
    "sweep": ("cluster.jobs.finetuning.sweep", "SweepJob"),
    "run": ("cluster.jobs.pipeline.plan", "Pipeline"),
    "bench-loader": ("cluster.jobs.loader_bench", "LoaderBench"),
    "plan": ("cluster.jobs.planning", "PlanJob"),
    "models": ("pretrain.models.describe", "NetworkQuery"),
}
_OPTIONS = {  # by command: where the settings are declared that are its options
    "predict": ("pretrain.evaluation.predict_settings", "PredictSettings"),
    "launch slurm": ("cluster.launch.slurm", "SlurmSettings"),
    "launch kuberay": ("cluster.launch.kuberay", "KubeRaySettings"),
    "launch hostfile": ("cluster.launch.hostfile", "HostfileSettings"),
}


def show_settings(
    command: Annotated[str | None, typer.Argument(help=f"one of {', '.join(_MODELS)}")] = None,
    config: Annotated[str | None, typer.Argument(help="a recipe of the command, to be shown as a whole")] = None,
    overrides: Overrides = None,
    json_schema: Annotated[bool, typer.Option("--json-schema", help="print the settings' JSON schema alone")] = False,
    reference: Annotated[
        bool, typer.Option("--reference", help="print a page (Markdown) of all commands' settings, and nothing else")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show every setting of a command: key, type, limits, default, unit, and what it does. Or what a recipe says.

    Each can stand in the command's YAML file, and after it as KEY.PATH=VALUE. With a recipe, one file is printed that
    says the same with no `base`: all that its bases, it and the settings after it say, checked.

    Examples:

      reelscale settings pretrain

      reelscale settings shard --json

      reelscale settings pretrain --json-schema > pretrain.schema.json

      reelscale settings --reference > configs/SETTINGS.md

      reelscale settings pretrain configs/demo-pretrain.yaml lanes=4 > mine.yaml
    """
    from dataclasses import asdict

    from cluster.terminal.settings_rows import print_settings, setting_rows
    from cluster.terminal.settings_schema import flat_schema
    from cluster.terminal.tables import print_json
    from sharding.base.settings import load_settings, settings_text, settings_tree

    if reference:
        with working("reading the settings"):
            page = reference_page()
        print(page, end="")
        return
    with working("reading the settings"):
        model = model_of(command)
    if config is not None:
        load_settings(model, config, overrides or [])
        if as_json:
            print_json(settings_tree(config, overrides or []))
        else:
            print(settings_text(config, overrides or []), end="")
    elif json_schema:
        print(json.dumps(flat_schema(model, f"reelscale {command}"), indent=1))
    elif as_json:
        print_json([asdict(row) for row in setting_rows(model)])
    else:
        print_settings(setting_rows(model))


def model_of(command: str | None) -> Any:
    """The model of a command's settings. Raises UserError for a command that has none."""
    if command not in _MODELS:
        what = "no command is named" if command is None else "no command of this name has settings"
        raise UserError(what, command or "reelscale settings", f"name one of {', '.join(_MODELS)}")
    return _model(_MODELS[command])


def reference_page() -> str:
    """The settings of all commands as one page of Markdown; commands with the same settings share a table."""
    from dataclasses import replace

    from cluster.terminal.settings_reference import settings_reference
    from cluster.terminal.settings_rows import setting_rows

    commands: dict[tuple[str, str], list[str]] = {}
    for command, place in _MODELS.items():
        commands.setdefault(place, []).append("shards retry" if command == "retry" else command)
    rows = {f"reelscale {', '.join(names)}": setting_rows(_model(place)) for place, names in commands.items()}
    for command, place in _OPTIONS.items():
        rows[f"reelscale {command}"] = [
            replace(row, key="--" + row.key.replace("_", "-"))
            for row in setting_rows(_model(place))
            if row.key != "hosts"  # named by --hosts or --hostfile, which are the command's own
        ]
    return settings_reference(rows)


def _model(place: tuple[str, str]) -> Any:
    """The class of this module and name."""
    return getattr(import_module(place[0]), place[1])
