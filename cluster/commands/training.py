"""`reelscale pretrain`, `finetune` and `sweep`: a recipe read, checked, and trained, once or with several values."""

import sys
from contextlib import nullcontext
from typing import Annotated

import typer

from cluster.commands.options import Address, AsJson, Config, Detach, DryRun, Overrides, sent_to_cluster
from cluster.launch.signals import NOT_BEGUN, Interrupted, signals_postponed
from cluster.terminal.output import stdout_to_stderr
from cluster.terminal.progress import working
from cluster.terminal.tables import print_json, print_table, readable
from sharding.base import environment
from sharding.base.exit_codes import DONE, FAILED, STOPPED
from sharding.base.printable import visible, visible_lines


def pretrain(
    config: Config,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    address: Address = None,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Pretrain a network on a store. The same command goes on from the run's newest checkpoint.

    Exit codes: 0 finished, 75 stopped by a signal with everything saved, 2 a mistake in the settings, 1 failed.

    Examples:

      reelscale pretrain configs/demo-pretrain.yaml

      reelscale pretrain configs/demo-pretrain.yaml data.store=./store ranks=2 launcher=none

      reelscale pretrain configs/demo-pretrain.yaml ranks=16 --address head:6379 --detach

      torchrun --nproc-per-node 2 -m cluster.cli pretrain configs/demo-pretrain.yaml
    """
    if not sent_to_cluster(address, detach, as_json):
        _train("pretrain", config, overrides or [], dry_run, as_json)


def finetune(
    config: Config,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    address: Address = None,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Fine-tune another run's network (init.run) on a store; its classifier is new where the classes differ.

    Examples:

      reelscale finetune configs/demo-finetune.yaml

      reelscale finetune configs/demo-finetune.yaml init.run=runs/mine data.store=./store
    """
    if not sent_to_cluster(address, detach, as_json):
        _train("finetune", config, overrides or [], dry_run, as_json)


def sweep(
    config: Annotated[str, typer.Argument(help="a sweep's file (YAML), e.g. configs/demo-sweep.yaml")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="a setting of the sweep, or train.KEY.PATH=VALUE, evaluate.KEY.PATH=VALUE: one of its trials'",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="check everything, print the trials' settings, stop")
    ] = False,
    address: Address = None,
    detach: Detach = False,
    as_json: AsJson = False,
) -> None:
    """Train a recipe with several values of its settings, by Ray Tune; print the trials, the best first.

    Each trial is a run in a folder of its own. The same command goes on after a stop, a kill or a failure: a trial that
    has finished is not run again, others go on from their checkpoints. FOLDER/best.yaml is the recipe of the best,
    FOLDER/sweep.json the table. Exit codes: 0 done, 75 stopped by a signal with everything saved, 2 a mistake, 1 no
    trial finished. The file's settings: reelscale settings sweep.

    Examples:

      reelscale sweep configs/demo-sweep.yaml

      reelscale sweep configs/demo-sweep.yaml trials=12 train.data.store=./store train.init.run=runs/mine

      reelscale sweep mine.yaml --address head:6379 --detach
    """
    if sent_to_cluster(address, detach, as_json):
        return
    try:
        with working("loading PyTorch"), signals_postponed():
            from cluster.jobs.finetuning.sweep import load_sweep, run_sweep
            from cluster.terminal.result_tables import print_sweep
        with stdout_to_stderr() if as_json else nullcontext():
            with working("opening the stores and checking each trial's recipe"):
                loaded = load_sweep(config, overrides or [])
            rows = [{"trial": trial.number, "run": trial.run, **trial.settings} for trial in loaded.trials]
            if not as_json:
                for row in rows:
                    print(visible("  ".join(f"{key} {value}" for key, value in row.items())))
            result = None if dry_run else run_sweep(loaded, lambda line: print(visible_lines(line), flush=True))
    except Interrupted:
        print(NOT_BEGUN, file=sys.stderr)
        raise typer.Exit(STOPPED) from None
    if dry_run:
        if as_json:
            print_json({"trials": rows})
        return
    if result is None:
        print("reelscale: stopped; what is done is kept, the same command goes on", file=sys.stderr)
        raise typer.Exit(STOPPED)
    if as_json:
        print_json(result)
    else:
        print_sweep(result)
    raise typer.Exit(FAILED if result["best"] is None else DONE)


def _train(command: str, config: str, overrides: list[str], dry_run: bool, as_json: bool) -> None:
    try:
        with working("loading PyTorch"), signals_postponed():
            from cluster.jobs.training import load_job, resolve, run_training, training_summary

        job = load_job(config, overrides, needs_init=command == "finetune")
        with stdout_to_stderr() if as_json else nullcontext():
            with working("opening the stores and checking the recipe"):
                resolved = resolve(job, config)
            quantities = {"run": job.train.run, **resolved.derived}
            prints = environment.is_first_rank()
            if prints and not (as_json and dry_run):
                print_table(command, readable(quantities))
            code = DONE if dry_run else run_training(job, resolved)
    except Interrupted:
        print(NOT_BEGUN, file=sys.stderr)
        raise typer.Exit(STOPPED) from None
    if as_json and prints and code in (DONE, STOPPED):
        print_json(quantities if dry_run else training_summary(job, code))
    raise typer.Exit(code)
