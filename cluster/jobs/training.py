"""The jobs `pretrain` and `finetune`: settings read and checked here, once, then ranks started by a launcher."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

from pydantic import Field

from cluster.jobs.recipe_head import expected_of
from cluster.launch import local
from cluster.launch.choose import choose_launcher, require_room
from cluster.launch.launch_settings import LaunchSettings, require_this_machine
from cluster.launch.on_ray import ranks as ray_ranks
from cluster.launch.rank_main import RankTask, run_rank
from cluster.launch.signals import raise_if_interrupted
from cluster.monitor.access import open_access
from cluster.monitor.settings import MonitorSettings
from pretrain.checkpoints.checkpointer import Checkpointer
from pretrain.engine.distributed import world_size_from_environment
from pretrain.report.run_data import read_metrics
from pretrain.resilience.spare_ranks import tells_spares, wait_as_spare
from pretrain.settings import TrainSettings, fitting_world_size
from pretrain.training.preflight import ResolvedRun, preflight
from sharding.base import environment
from sharding.base.errors import UserError
from sharding.base.exit_codes import STOPPED
from sharding.base.redact import require_no_passwords
from sharding.base.settings import Inline, Settings, load_settings, settings_tree
from sharding.base.user_paths import absolute, writable_folder
from sharding.storage.store import open_store


class TrainingJob(Settings):
    """A training run, and how it is started on a machine or a cluster."""

    train: Annotated[TrainSettings, Inline(), Field(description="the training run itself")]
    launch: Annotated[LaunchSettings, Inline(), Field(description="how its processes are started")]
    monitor: Annotated[MonitorSettings, Field(description="where each rank serves its metrics")] = MonitorSettings()


def load_job(config: str, overrides: Sequence[str], needs_init: bool) -> TrainingJob:
    """The job of a recipe, its paths made absolute. Raises UserError for settings that do not fit."""
    job = load_settings(TrainingJob, config, list(overrides))
    train = job.train
    if needs_init:
        require_init(train, config)
    store = open_store(train.data.store).url
    run = run_folder(train, config, store)
    kept = train.checkpoint.store and open_store(train.checkpoint.store, ask=False).url
    update = {
        "run": writable_folder(run, "run"),
        "data": train.data.model_copy(update={"store": store}),
        "init": train.init and train.init.model_copy(update={"run": absolute(train.init.run)}),
        "checkpoint": train.checkpoint.model_copy(update={"store": kept}),
    }
    return job.model_copy(update={"train": train.model_copy(update=update)})


def run_folder(train: TrainSettings, config: str, store: str) -> str:
    """The folder of a recipe's run: where it names none, after the recipe and its store's absolute path or URL."""
    return train.run or f"runs/{Path(config).stem}-{PurePosixPath(store.rstrip('/')).name}"


def require_init(train: TrainSettings, config: str) -> None:
    """Raise UserError for a fine-tuning that starts from no run."""
    if train.init is None:
        raise UserError("fine-tuning starts from a run, and none is named", config, "set init.run=RUN")


def require_no_password_in(config: str, overrides: Sequence[str]) -> None:
    """Raise UserError, which does not show it, for a password in a URL of a recipe or of what is set besides.

    For commands that write settings down or print them, also where an override hides the recipe's.
    """
    for said in (settings_tree(config), settings_tree(config, overrides)):
        require_no_passwords(said)


def resolve(job: TrainingJob, config: str) -> ResolvedRun:
    """The run of a recipe's job, checked.

    Raises UserError for one that could not start, or whose metrics all could read.
    """
    open_access(job.monitor)
    started = world_size_from_environment()
    ranks = fitting_world_size(job.train.lanes, started) if started else job.launch.world_size
    return preflight(job.train, ranks, Path(config).name, expected_of(config))


def run_training(job: TrainingJob, resolved: ResolvedRun) -> int:
    """Run a job to its exit code: DONE, STOPPED with everything saved, FAILED, or a rank's MISTAKE."""
    raise_if_interrupted()
    task, launch = RankTask(resolved=resolved, monitor=job.monitor), job.launch
    started = world_size_from_environment()
    if started is not None:
        return _run_started_rank(task, started)
    if choose_launcher(launch.launcher) == "none":
        require_room(launch.world_size, "ranks")
        require_this_machine(launch)
        return local.run_ranks(task.model_dump_json(), launch.world_size)
    return ray_ranks.run_ranks(task, launch)


def _run_started_rank(task: RankTask, started: int) -> int:
    """Train as one of `started` ranks that a launcher started, or wait for the run's end as one too many."""
    settings = task.resolved.settings
    size, rank = fitting_world_size(settings.lanes, started), environment.rank()
    if rank >= size:
        return wait_as_spare(Path(str(settings.run)))
    environment.become_rank(str(rank), str(size), str(environment.local_rank()))
    with tells_spares(started - size) as end:
        end.code = run_rank(task.model_copy(update={"spares": started - size}))
        return end.code


def training_summary(job: TrainingJob, code: int) -> dict[str, Any]:
    """The outcome of a run: the step that is saved, and the last figures of training and validation up to it."""
    folder = Path(str(job.train.run))
    newest = Checkpointer(folder, job.train.checkpoint).newest()
    step = newest.step if newest else 0
    train, validation, _ = read_metrics(folder / "metrics.jsonl")
    return {
        "run": job.train.run,
        "outcome": "stopped" if code == STOPPED else "finished",
        "step": step,
        "steps": job.train.steps,
        "train": _last(train, step),
        "validation": _last(validation, step),
    }


def _last(events: list[dict[str, Any]], step: int) -> dict[str, Any] | None:
    event = next((event for event in reversed(events) if event["step"] <= step), None)
    return event and {name: value for name, value in event.items() if name != "event"}
