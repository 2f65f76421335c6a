"""`reelscale pretrain` and `finetune`: a recipe read, checked, and trained."""

import sys
from contextlib import nullcontext

import typer

from cluster.commands.options import Address, AsJson, Config, Detach, DryRun, Overrides, sent_to_cluster
from cluster.launch.signals import NOT_BEGUN, Interrupted, signals_postponed
from cluster.terminal.output import stdout_to_stderr
from cluster.terminal.progress import working
from cluster.terminal.tables import print_json, print_table, readable
from sharding.base import environment
from sharding.base.exit_codes import DONE, STOPPED


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
