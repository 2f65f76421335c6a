"""The jobs `pretrain` and `finetune`: settings checked here, ranks started by the launcher at hand."""

import logging
import sys
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import Field

from cluster.jobs.user_paths import absolute, writable_folder
from cluster.launch import local, ray_ranks
from cluster.launch.choose import Launcher, choose_launcher, require_room
from cluster.launch.signals import raise_if_interrupted
from cluster.monitor.endpoint import MonitorSettings, serve
from pretrain.checkpoints.checkpoint import load_newest
from pretrain.checkpoints.history import HISTORY
from pretrain.engine.distributed import world_size_from_environment
from pretrain.report.run_data import read_metrics
from pretrain.settings import InitSettings, TrainSettings, longest_wait
from pretrain.training.preflight import check
from pretrain.training.trainer import train
from sharding.base import environment
from sharding.base.errors import UserError
from sharding.base.exit_codes import STOPPED
from sharding.base.parent_death import die_with
from sharding.base.printable import visible_lines
from sharding.base.settings import load_settings
from sharding.storage.store import open_store

log = logging.getLogger("reelscale")


class TrainingJob(TrainSettings):
    """A training run and how it is started on a machine or a cluster."""

    launcher: Launcher = "auto"
    ranks: Annotated[int, Field(ge=1, le=2**16, description="processes; each runs lanes/ranks lanes")] = 1
    retries: Annotated[int, Field(ge=0, le=1000, description="launcher=ray: restarts after the death of a worker")] = 3
    monitor: MonitorSettings = MonitorSettings()


def load_job(config: str, overrides: Sequence[str], needs_init: bool) -> TrainingJob:
    """The job of a recipe, its paths made absolute. Raises UserError for settings that do not fit."""
    job = load_settings(TrainingJob, config, list(overrides))
    if needs_init and job.init is None:
        raise UserError("fine-tuning starts from a run, and none is named", config, "set init.run=RUN")
    store = open_store(job.data.store).url
    run = job.run or f"runs/{Path(config).stem}-{PurePosixPath(store.rstrip('/')).name}"
    init = InitSettings(run=absolute(job.init.run)) if job.init else None
    data = job.data.model_copy(update={"store": store})
    kept = job.checkpoint.store and open_store(job.checkpoint.store, ask=False).url
    checkpoint = job.checkpoint.model_copy(update={"store": kept})
    update = {"run": writable_folder(run, "run"), "data": data, "init": init, "checkpoint": checkpoint}
    return job.model_copy(update=update)


def plan_training(job: TrainingJob) -> dict[str, Any]:
    """The derived quantities of a job that could start. Raises UserError for one that could not."""
    return {"run": job.run, **check(_plain(job), world_size_from_environment() or job.ranks)}


def run_training(job: TrainingJob, arguments: Sequence[str]) -> int:
    """Run the job to its exit code: 0 finished, 75 stopped with everything saved, 1 failed, 2 a user's mistake told.

    `arguments` is the command line that a rank of launcher=none repeats.
    """
    raise_if_interrupted()
    if world_size_from_environment() is not None:
        if (command := environment.command_pid()) is not None:
            die_with(command)
        return STOPPED if _rank(job.model_dump(mode="json")) == "stopped" else 0
    if choose_launcher(job.launcher) == "none":
        require_room(job.ranks, "ranks")
        return local.run_ranks(arguments, job.ranks)
    try:
        outcome = ray_ranks.run_ranks(_rank, job.model_dump(mode="json"), job.ranks, job.retries, longest_wait(job))
    except RuntimeError as error:
        print(visible_lines(f"training failed: {error}"), file=sys.stderr)
        return 1
    return STOPPED if outcome == "stopped" else 0


def training_summary(job: TrainingJob, code: int) -> dict[str, Any]:
    """What a run has come to: the step that is saved, and the last figures of training and validation up to it."""
    folder = Path(str(job.run))
    checkpoint = load_newest(folder)
    step = checkpoint.step if checkpoint else 0
    train, validation, _ = read_metrics(folder / HISTORY)
    return {
        "run": job.run,
        "outcome": "stopped" if code == STOPPED else "finished",
        "step": step,
        "steps": job.steps,
        "train": _last(train, step),
        "validation": _last(validation, step),
    }


def _last(events: list[dict[str, Any]], step: int) -> dict[str, Any] | None:
    found = next((event for event in reversed(events) if event["step"] <= step), None)
    return found and {name: value for name, value in found.items() if name != "event"}


def _rank(config: dict[str, Any]) -> str:
    """One rank's whole life, wherever it was started."""
    job = TrainingJob.model_validate(config)
    return train(_plain(job), on_start=lambda rank: _announce(job.monitor) if rank == 0 else None)


def _announce(monitor: MonitorSettings) -> None:
    url = serve(monitor)
    if url:
        log.info("metrics at %s", url)


def _plain(job: TrainingJob) -> TrainSettings:
    return TrainSettings.model_validate({name: getattr(job, name) for name in TrainSettings.model_fields})
