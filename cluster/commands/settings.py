"""`reelscale settings`: what a command can be told, with types, defaults and units."""

import json
from importlib import import_module
from typing import Annotated, Any

import typer

from cluster.commands.options import AsJson
from sharding.base.errors import UserError

_MODELS = {  # by command: where its settings are declared
    "shard": ("cluster.jobs.sharding", "ShardingJob"),
    "retry": ("cluster.jobs.sharding", "RetryJob"),
    "pretrain": ("cluster.jobs.training", "TrainingJob"),
    "finetune": ("cluster.jobs.training", "TrainingJob"),
    "evaluate": ("cluster.jobs.evaluation", "EvaluationJob"),
    "run": ("cluster.jobs.pipeline.plan", "Pipeline"),
    "bench-loader": ("cluster.jobs.loader_bench", "LoaderBench"),
    "plan": ("cluster.jobs.planning", "PlanJob"),
    "models": ("pretrain.models.describe", "NetworkQuery"),
}


def show_settings(
    command: Annotated[str, typer.Argument(help=f"one of {', '.join(_MODELS)}")],
    json_schema: Annotated[bool, typer.Option("--json-schema", help="print the settings' JSON schema alone")] = False,
    as_json: AsJson = False,
) -> None:
    """Show every setting of a command: key, type, limits, default, unit, and what it does.

    Each can stand in the command's YAML file, and after it as KEY.PATH=VALUE.

    Examples:

      reelscale settings pretrain

      reelscale settings shard --json

      reelscale settings pretrain --json-schema > pretrain.schema.json
    """
    from dataclasses import asdict

    from cluster.terminal.settings_rows import print_settings, setting_rows
    from cluster.terminal.tables import print_json
    from sharding.base.settings import flat_schema

    model = model_of(command)
    if json_schema:
        print(json.dumps(flat_schema(model, f"reelscale {command}"), indent=1))
    elif as_json:
        print_json([asdict(row) for row in setting_rows(model)])
    else:
        print_settings(setting_rows(model))


def model_of(command: str) -> Any:
    """The model of a command's settings. Raises UserError for a command that has none."""
    if command not in _MODELS:
        raise UserError("no command of this name has settings", command, f"name one of {', '.join(_MODELS)}")
    module, name = _MODELS[command]
    return getattr(import_module(module), name)
