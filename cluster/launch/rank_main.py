"""One rank of a run, wherever it was started: resolved settings in, trained, an exit code out.

python -m cluster.launch.rank_main PARENT: a process of this machine, which reads the settings' JSON from standard
input, checks nothing of them again, and dies with the process PARENT.
"""

from __future__ import annotations

import logging
import sys

import pydantic

from cluster.monitor.endpoint import Served, endpoint
from cluster.monitor.settings import MonitorSettings
from cluster.terminal.output import end_process, escape_what_stdout_lacks, exit_code_of
from pretrain.resilience.progress import TRAINING
from pretrain.training.preflight import ResolvedRun
from sharding.base import environment
from sharding.base.exit_codes import DONE, STOPPED
from sharding.base.parent_death import die_with

log = logging.getLogger("reelscale")


class RankTask(pydantic.BaseModel):
    """What a rank is to do: the run, where it serves its metrics, and how many ranks the lanes leave idle."""

    model_config = pydantic.ConfigDict(frozen=True)

    resolved: ResolvedRun
    monitor: MonitorSettings
    spares: int = 0


def run_rank(task: RankTask) -> int:
    """Train as the rank that the environment says this process is: DONE, or STOPPED with everything saved."""
    from pretrain.training.trainer import train

    settings = task.resolved.settings
    kind, ranks = "finetune" if settings.init else "pretrain", (environment.rank(), environment.local_rank())
    TRAINING.begin()
    with endpoint(task.monitor, kind, str(settings.run), TRAINING, *ranks) as served:
        return STOPPED if train(task.resolved, on_start=lambda rank: _begin(task, rank, served)) == "stopped" else DONE


def _begin(task: RankTask, rank: int, served: Served | None) -> None:
    """What rank 0 logs once the run's log is open."""
    if rank != 0:
        return
    if served:
        log.info("%s", served.line)
    if task.spares:
        lanes, ranks = task.resolved.settings.lanes, task.resolved.derived["ranks"]
        log.warning("%d lanes do not spread over %d ranks: %d train, and %d stay idle until the run ends",
                    lanes, ranks + task.spares, ranks, task.spares)  # fmt: skip


def _main() -> int:
    return run_rank(RankTask.model_validate_json(sys.stdin.buffer.read()))


if __name__ == "__main__":
    die_with(int(sys.argv[1]))
    escape_what_stdout_lacks()
    end_process(exit_code_of(_main))  # without a clean-up, which may hang on what an error has left
