"""The command line `reelscale …`: a thin door to `cluster.commands`, which picks the exit code."""

import importlib.metadata
import io
import os
import sys
from typing import Annotated, Any

import typer

from cluster.commands.doctor import doctor
from cluster.commands.evaluation import evaluate, predict, report
from cluster.commands.jobs import logs, status, stop
from cluster.commands.launch import launch
from cluster.commands.monitor import monitor
from cluster.commands.networks import export_network, import_network, models
from cluster.commands.pipeline import run, splits
from cluster.commands.plan import plan
from cluster.commands.settings import show_settings
from cluster.commands.shard import retry, shard
from cluster.commands.store import bench_loader, inspect_store, verify
from cluster.commands.training import finetune, pretrain, sweep
from cluster.launch.signals import Interrupted, interruptible
from cluster.terminal.output import end_process, escape_what_stdout_lacks, exit_code_of
from sharding.base import environment
from sharding.base.exit_codes import DONE, FAILED, MISTAKE, STOPPED
from sharding.base.parent_death import die_with
from sharding.base.printable import visible_lines

_UsageError: Any = typer.BadParameter.__base__  # click's, which typer may bring along under a name of its own

app = typer.Typer(
    name="reelscale",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
shards = typer.Typer(
    help="Verify or inspect a store's shards, or retry what failed.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        print(f"reelscale {importlib.metadata.version('reelscale')}")
        raise typer.Exit


@app.callback()
def reelscale(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="show the version and stop")
    ] = False,
) -> None:
    """Pretrain video networks: shard a corpus, pretrain, fine-tune, evaluate, predict, report."""


app.command()(shard)
app.add_typer(shards, name="shards")
shards.command()(retry)
shards.command()(verify)
shards.command("inspect")(inspect_store)
app.command()(pretrain)
app.command()(finetune)
app.command()(evaluate)
app.command()(predict)
app.command()(run)
app.command()(splits)
app.command()(sweep)
app.command()(status)
app.command()(logs)
app.command()(stop)
app.add_typer(launch, name="launch")
app.add_typer(monitor, name="monitor")
app.command("bench-loader")(bench_loader)
app.command()(report)
app.command()(models)
app.command()(plan)
app.command("export")(export_network)
app.command("import")(import_network)
app.command()(doctor)
app.command("settings")(show_settings)


def main() -> None:
    """Run the command line; a user's mistake is told in one message and ends with exit code 2."""
    escape_what_stdout_lacks()
    if environment.is_torchrun():
        die_with(os.getppid())  # a rank whose agent was killed would train on, and nobody could end it
    code = exit_code_of(_run)
    if environment.is_rank():
        if code == STOPPED and environment.is_torchrun():
            code = DONE  # it starts ranks again for any other
        end_process(code)  # without a clean-up, which may hang on what an error has left
    sys.exit(code)


def _run() -> int:
    """The exit code of the command that the arguments name."""
    try:
        with interruptible():
            return app(standalone_mode=False) or DONE
    except _UsageError as error:
        usage = io.StringIO()
        error.show(usage)
        print(visible_lines(usage.getvalue()), end="", file=sys.stderr)
        return MISTAKE
    except typer.Abort:
        return FAILED
    except Interrupted:
        print("reelscale: stopped; run the same command again", file=sys.stderr)
        return STOPPED


if __name__ == "__main__":
    main()
