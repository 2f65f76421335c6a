"""`reelscale launch`: a training run written down for Slurm, KubeRay or hosts, and sent there with --submit."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from cluster.commands.options import Config, Overrides, named, with_options
from cluster.launch.hostfile import HostfileSettings, hostfile_text, read_hostfile
from cluster.launch.kuberay import KubeRaySettings
from cluster.launch.slurm import SlurmSettings
from cluster.terminal.progress import working
from sharding.base.errors import UserError
from sharding.base.settings import validate

Submit = Annotated[bool, typer.Option("--submit", help="send it; else it is printed, and nothing is started")]
Command = Annotated[Literal["pretrain", "finetune"], typer.Option("--command", help="what the ranks do")]
Python = Annotated[str, typer.Option("--python", help="the Python there that has Reelscale; this one unless named")]

launch = typer.Typer(
    help="Write a run down for Slurm, KubeRay or the hosts of a hostfile, or send it there.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@launch.command()
@with_options(SlurmSettings)
def slurm(
    config: Config,
    overrides: Overrides = None,
    submit: Submit = False,
    command: Command = "pretrain",
    python: Python = sys.executable,
    **options: Any,
) -> None:
    """Print a batch script for Slurm, or send it by sbatch.

    A task of srun is a rank. Before the time limit the ranks save and stop, and the job queues again until the run has
    ended; where a node fails, too. Recipe, store, run and this folder must be seen from all nodes, or be in S3.

    Examples:

      reelscale launch slurm configs/r2plus1d/table4/sports1m-r2plus1d-34-32f-pretrain.yaml data.store=/data/store --nodes 8 --gpus-per-node 8 --time 1-00:00:00

      reelscale launch slurm recipe.yaml --nodes 2 --gpus-per-node 4 --partition gpu --account lab --options=--exclusive --submit
    """  # noqa: E501
    with working("loading PyTorch"):
        from cluster.jobs.launching import slurm_script, submit_slurm

    settings = validate(SlurmSettings, named(options, SlurmSettings), "the options")
    script, remark = slurm_script(settings, command, config, overrides or [], python)
    _print_remark(remark)
    if not submit:
        print(script, end="")
        return
    number = submit_slurm(script)
    print(f"submitted as job {number}; squeue --job {number} shows it, scancel {number} ends it")


@launch.command()
@with_options(KubeRaySettings)
def kuberay(
    config: Config,
    overrides: Overrides = None,
    submit: Submit = False,
    command: Command = "pretrain",
    **options: Any,
) -> None:
    """Print manifests for KubeRay, or send them by kubectl: a RayJob with its recipe, or with --kind its cluster alone.

    Secrets are named, and their values never read. The run's folder must be on a volume that all pods mount (--claim),
    or checkpoints be kept in S3 (checkpoint.store).

    Examples:

      reelscale launch kuberay recipe.yaml data.store=/data/store monitor.insecure=true --image registry/reelscale:1 --claim data --nodes 4 --gpus-per-node 8

      reelscale launch kuberay recipe.yaml data.store=s3://b/store checkpoint.store=s3://b/runs/r monitor.access.secret_variable=TOKEN --secrets keys --image registry/reelscale:1 --nodes 4 --gpus-per-node 8 --submit
    """  # noqa: E501
    with working("loading PyTorch"):
        from cluster.jobs.launching import kuberay_manifests, submit_kuberay

    settings = validate(KubeRaySettings, named(options, KubeRaySettings), "the options")
    text, remark = kuberay_manifests(settings, command, config, overrides or [])
    _print_remark(remark)
    print(submit_kuberay(text) if submit else text, end="")


@launch.command()
@with_options(HostfileSettings, leaves_out=["hosts"])
def hostfile(
    config: Config,
    overrides: Overrides = None,
    hosts_file: Annotated[
        Path | None, typer.Option("--hostfile", help="hosts and slots, `NAME slots=N` a line; written with --hosts")
    ] = None,
    hosts: Annotated[str | None, typer.Option("--hosts", help="names of hosts, with commas between")] = None,
    gpus_per_node: Annotated[int, typer.Option("--gpus-per-node", help="slots of each of --hosts")] = 1,
    submit: Submit = False,
    command: Command = "pretrain",
    python: Python = sys.executable,
    **options: Any,
) -> None:
    """Print the commands that start a run on hosts by torchrun or the deepspeed launcher, or run them by ssh.

    With --submit the command lasts as long as the run. Recipe, store, run and this folder must be seen from all hosts.

    Examples:

      reelscale launch hostfile recipe.yaml data.store=/data/store --hosts node1,node2 --gpus-per-node 8

      reelscale launch hostfile recipe.yaml --hostfile hostfile --launcher deepspeed --submit
    """
    with working("loading PyTorch"):
        from cluster.jobs.launching import host_commands, run_on_hosts

    path = hosts_file or Path("hostfile")
    if hosts is None:
        if hosts_file is None:
            raise UserError("no hosts are named", "--hosts, --hostfile", "name them, e.g. --hosts node1,node2")
        from sharding.base.text import read_text

        try:
            listed = read_hostfile(read_text(path, str(path), "hostfile"), str(path))
        except FileNotFoundError:
            raise UserError("there is no such hostfile", str(path), "check the path, or use --hosts") from None
    else:
        listed = tuple((name.strip(), gpus_per_node) for name in hosts.split(","))  # type: ignore[misc]  # made Hosts
    settings = validate(HostfileSettings, {"hosts": listed, **named(options, HostfileSettings)}, "the options")
    commands, remark = host_commands(settings, command, config, overrides or [], python, str(path))
    _print_remark(remark)
    if submit:
        raise typer.Exit(run_on_hosts(settings, commands, str(path), writes_hostfile=hosts is not None))
    print(f"# the hostfile {path}:\n{hostfile_text(settings.hosts)}")
    if settings.launcher == "deepspeed":
        print(f"# on any of the hosts:\n{shlex.join(commands[0])}")
        return
    for host, words in zip(settings.hosts, commands, strict=True):
        print(f"# on {host.name}:\n{shlex.join(words)}\n")


def _print_remark(remark: str) -> None:
    if remark:
        print(f"reelscale: {remark}", file=sys.stderr)
