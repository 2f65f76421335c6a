"""The job `launch`: a run's recipe checked, and written down for Slurm, KubeRay or the hosts of a hostfile."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from cluster.jobs.training import TrainingJob, require_init, require_no_password_in
from cluster.launch.host_processes import run_host_commands
from cluster.launch.hostfile import HostfileSettings, by_ssh, deepspeed_command, hostfile_text, torchrun_commands
from cluster.launch.kuberay import RECIPE, KubeRaySettings, manifests
from cluster.launch.slurm import SlurmSettings, batch_script
from cluster.monitor.settings import MonitorSettings, require_protected
from pretrain.settings import fitting_world_size
from sharding.base.atomic import atomic_write_text
from sharding.base.errors import CommandFailed, UserError
from sharding.base.settings import load_settings, settings_files, settings_text
from sharding.base.text import read_text
from sharding.base.user_paths import absolute
from sharding.storage.store import is_remote

_BY_CLAIM = "name a PersistentVolumeClaim that all pods mount (--claim NAME),"


def slurm_script(
    settings: SlurmSettings, command: str, config: str, overrides: Sequence[str], python: str
) -> tuple[str, str]:
    """The batch script of a run, and a remark. Raises UserError for a recipe that does not fit."""
    job = _checked_job(command, config, overrides)
    words = [python, "-m", *_module(command, config, overrides)]
    remark = _remark(job.train.lanes, settings.nodes * settings.tasks_per_node)
    return batch_script(settings, words, str(Path.cwd())), remark


def submit_slurm(script: str) -> str:
    """The number of the job that sbatch makes of a script. Raises UserError, CommandFailed."""
    return _output(["sbatch", "--parsable"], script).strip().partition(";")[0]


def kuberay_manifests(
    settings: KubeRaySettings, command: str, config: str, overrides: Sequence[str]
) -> tuple[str, str]:
    """The manifests of a run, and a remark.

    Raises UserError for a recipe that does not fit, or cannot be shared, or whose metrics all could read.
    """
    served = ["monitor.address=0.0.0.0", f"monitor.port={settings.metrics_port}"]
    served += [f"monitor.ports={settings.ranks_of_pod}"] if settings.ranks_of_pod > MonitorSettings().ports else []
    job = _checked_job(command, config, [*overrides, *served])
    require_protected(job.monitor)
    alone = settings_files(config) == [config]  # a pod sees no bases
    recipe = read_text(Path(config), config, "settings file") if alone else settings_text(config)
    run = str(PurePosixPath(settings.folder, job.train.run or f"runs/{settings.name}"))
    _require_shared(job, settings, run)
    ranks = fitting_world_size(job.train.lanes, settings.ranks)
    words = [
        *("reelscale", command, str(RECIPE), *overrides, f"run={run}", "launcher=ray", f"ranks={ranks}"),
        *served,
    ]
    text = manifests(settings, words, run, recipe, "https" if job.monitor.tls else "http")
    return text, _remark(job.train.lanes, settings.ranks)


def submit_kuberay(text: str) -> str:
    """What kubectl says of the objects that it applied. Raises UserError, CommandFailed."""
    return _output(["kubectl", "apply", "-f", "-"], text)


def host_commands(
    settings: HostfileSettings, command: str, config: str, overrides: Sequence[str], python: str, hostfile: str
) -> tuple[list[list[str]], str]:
    """The commands that start a run on hosts, and a remark: one of deepspeed's, or one of torchrun's for each host.

    Raises UserError for a recipe that does not fit.
    """
    job = _checked_job(command, config, overrides)
    words = _module(command, config, overrides)
    remark = _remark(job.train.lanes, sum(host.slots for host in settings.hosts))
    if settings.launcher == "deepspeed":
        return [deepspeed_command(settings, hostfile, python, words)], remark
    return torchrun_commands(settings, python, words), remark


def run_on_hosts(
    settings: HostfileSettings, commands: Sequence[Sequence[str]], hostfile: str, writes_hostfile: bool
) -> int:
    """Run the commands to their end, here or by ssh; the exit code is `run_host_commands`'.

    A signal is passed on, by ssh as Ctrl-C, and the ranks save: FAILED where they do not end in `save_seconds`. At a
    second one they are not waited for. `writes_hostfile`: the file that deepspeed reads is made of the hosts; else it
    is the user's own, and stays as it is.
    Raises UserError where there is no ssh.
    """
    if settings.launcher == "deepspeed":
        if writes_hostfile:
            atomic_write_text(Path(hostfile), hostfile_text(settings.hosts))
        return run_host_commands(commands, by_ssh=False, fewest=None, save_seconds=settings.save_seconds + 30.0)
    pairs = zip(settings.hosts, commands, strict=True)
    here = [by_ssh(settings, host, command, str(Path.cwd())) for host, command in pairs]
    return run_host_commands(here, by_ssh=True, fewest=settings.fewest_nodes, save_seconds=settings.save_seconds + 30.0)


def _checked_job(command: str, config: str, overrides: Sequence[str]) -> TrainingJob:
    """The job of a recipe.

    Raises UserError for settings that do not fit, for a URL with a password, which would be written down, and for a
    fine-tuning that starts from no run.
    """
    require_no_password_in(config, overrides)
    job = load_settings(TrainingJob, config, overrides)
    if command == "finetune":
        require_init(job.train, config)
    return job


def _module(command: str, config: str, overrides: Sequence[str]) -> list[str]:
    """The module that a rank runs, and its arguments; a single rank is a process of its machine."""
    return ["cluster.cli", command, absolute(config), "launcher=none", *overrides]


def _remark(lanes: int, ranks: int) -> str:
    """What is to be known of ranks that the lanes leave idle; "" where there are none."""
    fitting = fitting_world_size(lanes, ranks)
    if fitting == ranks:
        return ""
    return f"{lanes} lanes do not spread over {ranks} ranks: {fitting} train, and {ranks - fitting} stay idle"


def _require_shared(job: TrainingJob, settings: KubeRaySettings, run: str) -> None:
    """Raises UserError for paths that only one pod sees: what it makes or needs would be lost, or missed, elsewhere."""
    train, kept = job.train, job.train.checkpoint.store
    below = f"below {settings.mount}, where the claim is mounted"
    if not (settings.shares(run) or (kept and _all_see(kept, settings))):
        elsewhere = f"the checkpoints in {kept}" if kept else "checkpoints elsewhere, as none are kept"
        what = f"no other node can see the run's folder {run}, nor {elsewhere}"
        by_claim = f"name a folder {below} (run)," if settings.claim else _BY_CLAIM
        where = "run, checkpoint.store" if settings.claim else "--claim, checkpoint.store"
        raise UserError(what, where, f"{by_claim} or set checkpoint.store=s3://BUCKET/PREFIX")
    for store in (train.data.store, *(mixed.store for mixed in train.data.mix)):
        if not _all_see(store, settings):
            by_claim = f"name one {below}," if settings.claim else _BY_CLAIM
            remedy = f"{by_claim} or set data.store=s3://BUCKET/PREFIX"
            raise UserError(f"no pod can see the store {store}", "data.store", remedy)


def _all_see(store: str, settings: KubeRaySettings) -> bool:
    """Whether all pods see a store."""
    return is_remote(store) or settings.shares(store)


def _output(words: Sequence[str], text: str) -> str:
    """What a program prints that reads a text. Raises UserError where there is none, CommandFailed where it fails."""
    try:
        done = subprocess.run(words, input=text, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        remedy = "run this where it is installed, or leave out --submit and take the text there"
        raise UserError(f"there is no program {words[0]} on this machine", "--submit", remedy) from None
    if done.returncode:
        raise CommandFailed(f"{words[0]} failed with exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout
