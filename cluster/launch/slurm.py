"""A Slurm batch script for a training run: settings in, text out.

srun starts a task a rank. It, and not an agent of torchrun's on each node, because Slurm's signals then reach the ranks
themselves, which save; because srun hands on their exit code, so that "stopped, all is saved" is told from a failure;
and because no process but the ranks need survive: whatever fails, srun starts them anew at another port.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from typing import Annotated, Self

from pydantic import AfterValidator, Field, model_validator

from sharding.base.exit_codes import DONE, MISTAKE, STOPPED
from sharding.base.settings import Settings, unit

_BY_SIGUSR1 = 128 + 10  # srun's exit code of a rank that the signal met before Python could take it


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it should hold no control character")
    return text


Text = Annotated[str, AfterValidator(_printable)]
Word = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.,@+:/=-]*$")]


class SlurmSettings(Settings):
    """A job of Slurm's: what it asks for, and how it goes on."""

    name: Annotated[Word, Field(description="the job's name")] = "reelscale"
    nodes: Annotated[int, Field(json_schema_extra=unit("nodes"), ge=1, le=2**16, description="nodes of the job")]
    gpus_per_node: Annotated[
        int, Field(json_schema_extra=unit("GPUs"), ge=0, le=1024, description="GPUs of a node, a rank each; 0: none")
    ]
    ranks_per_node: Annotated[
        int, Field(json_schema_extra=unit("ranks"), ge=1, le=1024, description="ranks of a node without GPUs")
    ] = 1
    cpus_per_rank: Annotated[
        int | None,
        Field(json_schema_extra=unit("CPUs"), ge=1, le=4096, description="CPUs of a rank; unless named: Slurm's"),
    ] = None
    time: Annotated[
        str | None,
        Field(
            pattern=r"^(\d+-\d+(:\d+){0,2}|\d+(:\d+){0,2})$",
            description="the time limit, as sbatch takes it; unless named: the partition's",
        ),
    ] = None
    partition: Annotated[Word | None, Field(description="the partition; unless named: the cluster's own choice")] = None
    account: Annotated[Word | None, Field(description="the account that is charged; unless named: the user's own")] = (
        None
    )
    options: Annotated[
        tuple[Annotated[Text, Field(pattern="^-")], ...], Field(description="further options of sbatch, one each")
    ] = ()
    setup: Annotated[
        tuple[Text, ...], Field(description="lines of shell before training begins, e.g. `module load cuda`")
    ] = ()
    save_seconds: Annotated[
        int,
        Field(
            json_schema_extra=unit("seconds"),
            ge=1,
            le=65535,
            description="before the time limit, when the ranks are asked to save and stop",
        ),
    ] = 300
    retries: Annotated[
        int,
        Field(
            json_schema_extra=unit("restarts"), ge=0, le=1000, description="restarts of failed ranks in the same job"
        ),
    ] = 3
    requeues: Annotated[
        int,
        Field(
            json_schema_extra=unit("requeues"),
            ge=0,
            le=10**6,
            description="how often the job queues again, once the ranks have saved and stopped",
        ),
    ] = 1000
    output: Annotated[Text, Field(min_length=1, description="the file of the job's output")] = "reelscale-%j.out"

    @model_validator(mode="after")
    def _time_to_train(self) -> Self:
        if self.time and time_limit_seconds(self.time) <= self.save_seconds:
            raise ValueError(
                f"time={self.time} leaves none to train: save_seconds={self.save_seconds} before it the ranks stop"
            )
        return self

    @property
    def tasks_per_node(self) -> int:
        """Ranks of a node."""
        return self.gpus_per_node or self.ranks_per_node


def time_limit_seconds(time: str) -> int:
    """The seconds of a time limit as sbatch takes it: MINUTES[:SECONDS], H:M:S, or DAYS-H[:M[:S]]."""
    days, dash, clock = time.rpartition("-")
    parts = [int(part) for part in clock.split(":")]
    first = 0 if dash or len(parts) == 3 else 1  # which of hours, minutes and seconds the first one is
    hours, minutes, seconds = ([0] * first + parts + [0, 0])[:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds


def batch_script(settings: SlurmSettings, command: Sequence[str], folder: str) -> str:
    """The script that sbatch takes: `command` once a rank, in `folder`, and the job queued again when it has saved."""
    lines = [f"#SBATCH {shlex.quote(option)}" for option in _options(settings, folder)]
    values = {
        "setup": "\n".join(settings.setup),
        "srun": shlex.join(["srun", "--kill-on-bad-exit=0", "--wait=0", *_cpus(settings), *command]),
        "retries": settings.retries,
        "requeues": settings.requeues,
        "done": DONE,
        "mistake": MISTAKE,
        "stopped": STOPPED,
        "by_sigusr1": _BY_SIGUSR1,
    }
    return "\n".join(["#!/bin/bash", *lines, _BODY.format(**values)])


def _options(settings: SlurmSettings, folder: str) -> list[str]:
    """The options of sbatch that stand in the script."""
    chosen = {
        "--gpus-per-node": settings.gpus_per_node or None,
        "--cpus-per-task": settings.cpus_per_rank,
        "--time": settings.time,
        "--partition": settings.partition,
        "--account": settings.account,
    }
    return [
        f"--job-name={settings.name}",
        f"--nodes={settings.nodes}",
        f"--ntasks-per-node={settings.tasks_per_node}",
        *(f"{option}={value}" for option, value in chosen.items() if value is not None),
        f"--chdir={folder}",
        f"--output={settings.output}",
        "--open-mode=append",
        "--requeue",
        f"--signal=USR1@{settings.save_seconds}",
        *settings.options,
    ]


def _cpus(settings: SlurmSettings) -> list[str]:
    """srun's own number of CPUs a task, which it does not take over from sbatch."""
    return [f"--cpus-per-task={settings.cpus_per_rank}"] if settings.cpus_per_rank else []


_BODY = """
# Slurm sends SIGUSR1 to the ranks before the time limit: they save, end with exit code {stopped}, and the job is queued
# again. SIGTERM comes to this script, too, and means that the job is cancelled, preempted or out of time.
cancelled=no
trap 'cancelled=yes' TERM
{setup}
set -u
MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MASTER_ADDR MASTER_PORT
try=0
while true; do
  MASTER_PORT=$((20000 + (SLURM_JOB_ID + try) % 10000))
  {srun}
  code=$?
  case "$code" in
    {done} | {mistake}) exit "$code" ;;
    {stopped} | {by_sigusr1}) break ;;
  esac
  if [ "$cancelled" = yes ] || [ "$try" -ge {retries} ]; then
    exit "$code"
  fi
  try=$((try + 1))
  echo "the ranks failed with exit code $code: restart $try of {retries}"
  sleep 5
done
if [ "$cancelled" = yes ]; then
  exit {stopped}
fi
if [ "${{SLURM_RESTART_COUNT:-0}}" -ge {requeues} ]; then
  echo "the ranks have stopped; the job does not queue again after {requeues} times: submit it anew to go on"
  exit {stopped}
fi
echo "the ranks have stopped: the job is queued again"
scontrol requeue "$SLURM_JOB_ID"
exit {stopped}
"""
