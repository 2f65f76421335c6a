"""`reelscale plan`: what a run on a cluster takes, before it takes it."""

from contextlib import nullcontext
from glob import glob
from typing import Annotated

import typer

from cluster.commands.options import AsJson, Config, Overrides
from cluster.terminal.output import stdout_to_stderr
from cluster.terminal.plan_table import print_plan
from cluster.terminal.progress import working
from cluster.terminal.tables import print_json


def plan(
    config: Config,
    overrides: Overrides = None,
    nodes: Annotated[str | None, typer.Option(metavar="N", help="machines; 1 unless given")] = None,
    gpus_per_node: Annotated[str | None, typer.Option(metavar="M", help="GPUs of each; 8 unless given")] = None,
    gpu: Annotated[str | None, typer.Option(metavar="NAME", help="h200, h100, a100, …; H200 unless given")] = None,
    measured: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FILE", help="JSON of our benchmarks, or of bench-loader --json; several, or bench/*.json"
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Work out what a run on a cluster takes: step time, data rates, interruptions, days, cost, and what binds.

    Each figure is printed with those that it came from, each assumption with its source: measured, a setting, or
    published. KEY=VALUE are the recipe's settings, and the plan's: plan.mfu, plan.cores_per_node, plan.overlap,
    plan.price_per_gpu_hour and others (reelscale settings plan). The store need not be there yet.

    Examples:

      reelscale plan configs/r2plus1d/table4/sports1m-r2plus1d-34-32f-pretrain.yaml --nodes 8 --gpu h200

      reelscale plan my.yaml --nodes 4 --measured bench/*.json plan.network_gb_per_second=400

      reelscale plan my.yaml --nodes 2 data.store=s3://bucket/videos plan.store_requests_per_second=20000 --json
    """
    options = {"nodes": nodes, "gpus_per_node": gpus_per_node, "gpu": gpu}
    from_options = [f"plan.{key}={value}" for key, value in options.items() if value is not None]
    # A shell that spreads --measured bench/*.json leaves all but the first file among the settings.
    further = [word for word in overrides or [] if word.endswith(".json") and "=" not in word]
    rest = [word for word in overrides or [] if word not in further]
    files = [path for pattern in measured or [] for path in sorted(glob(pattern)) or [pattern]]  # noqa: PTH207
    with stdout_to_stderr() if as_json else nullcontext(), working("reading the recipe and its store"):
        from cluster.jobs.planning import run_plan

        tree = run_plan(config, [*from_options, *rest], [*files, *further])
    if as_json:
        print_json(tree)
    else:
        print_plan(tree)
