"""The job `splits`: one recipe fine-tuned and evaluated on each split of a corpus, and the mean over them."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from cluster.jobs.evaluation import EvaluationJob
from cluster.jobs.finetuning.evaluations import FIGURES, figures_of, finished_evaluation
from cluster.jobs.pipeline.plan import Check, Plan, PlannedStage, Stage, plan_stages
from cluster.jobs.pipeline.processes import StageEnd
from cluster.jobs.training import TrainingJob
from cluster.launch.choose import choose_launcher
from cluster.launch.launch_settings import LaunchSettings
from cluster.launch.on_ray.cluster import ray_cluster
from pretrain.evaluation.evaluate import EvaluateSettings
from sharding.base import environment
from sharding.base.atomic import atomic_write_text
from sharding.base.errors import UserError
from sharding.base.printable import visible
from sharding.base.settings import Settings, load_settings, unit, validate
from sharding.base.user_paths import absolute, writing

_PLACE = "{split}"
_STAGES = ("finetune", "evaluate")


class SplitsJob(Settings):
    """A recipe that is fine-tuned and evaluated on each split of a corpus."""

    finetune: Annotated[str, Field(description="the recipe of each fine-tuning; a relative path begins at this file")]
    evaluate: Annotated[str, Field(description="the recipe of each evaluation; a relative path begins at this file")]
    store: Annotated[str, Field(description="the splits' stores, {split} in the place of a split's name")]
    splits: Annotated[
        tuple[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", coerce_numbers_to_str=True)], ...],
        Field(min_length=1, description="the splits' names"),
    ] = ("1", "2", "3")
    folder: Annotated[
        str | None,
        Field(description="where runs, records, logs and result are kept; null: runs/NAME-OF-THE-FILE"),
    ] = None
    parallel: Annotated[
        int | None,
        Field(
            json_schema_extra=unit("splits"),
            ge=1,
            le=1024,
            description="splits at work at a time; null: as many as the Ray cluster has room for, on this machine one",
        ),
    ] = None
    retries: Annotated[
        int,
        Field(
            json_schema_extra=unit("tries"),
            ge=0,
            le=1000,
            description="further tries of a fine-tuning or evaluation that has failed; each goes on where it broke",
        ),
    ] = 2
    published: Annotated[
        float | None,
        Field(json_schema_extra=unit("percent"), ge=0, le=100, description="published mean of video@1; null: none"),
    ] = None


@dataclass(frozen=True)
class SplitResult:
    """A split's outcome ("done", or that of the stage that was the last to run), and its figures once it is done.

    "no evaluation" is the outcome where that has been removed, or written over by another one, since.
    """

    split: str
    outcome: str
    run: str
    figures: Mapping[str, float] | None = None
    videos: int | None = None
    folder: str | None = None


def load_splits(path: str, overrides: Sequence[str], check: Check) -> tuple[SplitsJob, Plan]:
    """The job of a file, changed by `KEY=VALUE`, `finetune.KEY=VALUE` and `evaluate.KEY=VALUE`, and its stages.

    Raises UserError for whatever can be seen to be wrong before anything has run.
    """
    own, of_stages = _sorted_overrides(overrides)
    job = load_settings(SplitsJob, path, own)
    if len(set(job.splits)) < len(job.splits):
        raise UserError("a split is named twice", path, "name each split once: splits=[1,2,3]")
    if len(job.splits) > 1 and _PLACE not in job.store:
        remedy = f"write {_PLACE} in the place of a split's name: store=stores/ucf101-{_PLACE}"
        raise UserError(f"all splits would be the store {visible(job.store)}", path, remedy)
    folder = Path(absolute(job.folder or f"runs/{Path(path).stem}"))
    recipes = {command: str(Path(path).parent / getattr(job, command)) for command in _STAGES}
    stages = [
        stage for split in job.splits for stage in _stages_of(job, split, run_of(folder, split), recipes, of_stages)
    ]
    launch = load_settings(TrainingJob, recipes["finetune"], [f"data.store={job.store}", *of_stages["finetune"]]).launch
    parallel = job.parallel or _room(launch, len(job.splits))
    plan = plan_stages(path, folder / "pipeline", parallel, stages, check, keep_going=True)
    return job, replace(plan, stages=tuple(map(_with_lost_evaluation, plan.stages)))


def run_of(folder: Path, split: str) -> Path:
    """The folder of a split's run."""
    return folder / f"split-{split}"


def splits_result(job: SplitsJob, plan: Plan, ends: Sequence[StageEnd]) -> dict[str, Any]:
    """What came of the splits: each, and over those that are done the mean and standard deviation of each figure.

    `spread` is the sample standard deviation, null of a single split.
    """
    by_stage = {end.stage: end.outcome for end in ends}
    by_name = {stage.name: stage for stage in plan.stages}
    results = [
        _result(split, run_of(plan.folder.parent, split), by_stage, by_name[f"evaluate-{split}"])
        for split in job.splits
    ]
    done = [result.figures for result in results if result.figures is not None]
    columns = {name: [figures[name] for figures in done] for name in FIGURES}
    return {
        "splits": [asdict(result) for result in results],
        "done": len(done),
        "of": len(results),
        "mean": {name: statistics.mean(values) for name, values in columns.items()} if done else None,
        "spread": {name: statistics.stdev(values) for name, values in columns.items()} if len(done) > 1 else None,
        "published": None if job.published is None else {"video1": job.published / 100},
    }


def write_result(plan: Plan, result: Mapping[str, Any]) -> Path:
    """Write the result beside the runs; returns the file. Raises UserError where it cannot be written."""
    file = plan.folder.parent / "splits.json"
    with writing(file.parent, "folder"):
        atomic_write_text(file, json.dumps(result, indent=1))
    return file


def _sorted_overrides(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The overrides of the job itself, and of each stage's settings."""
    own, of_stages = list[str](), {command: list[str]() for command in _STAGES}
    for override in overrides:
        stage, dot, below = override.partition("=")[0].partition(".")
        if dot and below and stage in of_stages:
            of_stages[stage].append(override[len(stage) + 1 :])
        else:
            own.append(override)
    return own, of_stages


def _stages_of(
    job: SplitsJob, split: str, run: Path, recipes: Mapping[str, str], of_stages: Mapping[str, Sequence[str]]
) -> list[Stage]:
    """A split's fine-tuning, and the evaluation that needs it."""
    overrides = {
        "finetune": [f"data.store={job.store}", f"run={run}", *of_stages["finetune"]],
        "evaluate": [f"run={run}", *of_stages["evaluate"]],
    }
    return [
        Stage(
            name=f"{command}-{split}",
            command=command,
            config=recipes[command],
            overrides=tuple(text.replace(_PLACE, split) for text in overrides[command]),
            needs=() if command == "finetune" else (f"finetune-{split}",),
            retries=job.retries,
        )
        for command in ("finetune", "evaluate")
    ]


def _room(launch: LaunchSettings, splits: int) -> int:
    """How many fine-tunings the cluster has room for at a time; one on this machine, whose processes share it."""
    if choose_launcher(launch.launcher) == "none" or not environment.ray_address():
        return 1
    with ray_cluster() as ray:
        return fitting_jobs(ray.cluster_resources(), launch, splits)


def fitting_jobs(resources: Mapping[str, float], launch: LaunchSettings, wanted: int) -> int:
    """How many runs, of those wanted, a cluster of these resources has room for at a time: one at the least.

    By GPUs where there are some, else by `cpus_per_rank`; where that is not set, a run takes all CPUs.
    """
    gpus = int(resources.get("GPU", 0))
    if gpus and launch.gpus_per_node != 0:
        room = gpus // launch.world_size
    elif launch.cpus_per_rank:
        room = int(resources.get("CPU", 0)) // (launch.world_size * launch.cpus_per_rank)
    else:
        room = 1
    return max(1, min(room, wanted))


def _with_lost_evaluation(stage: PlannedStage) -> PlannedStage:
    """A stage; of an evaluation whose files are not there it says so: it is done again where it had been done."""
    if stage.words[0] != "evaluate" or finished_evaluation(_evaluation_of(stage)):
        return stage
    return replace(stage, lost="its evaluation")


def _evaluation_of(stage: PlannedStage) -> EvaluateSettings:
    """The settings of an evaluation's stage."""
    settings = validate(EvaluationJob, dict(stage.settings), stage.name).evaluation
    return settings.model_copy(update={"run": absolute(settings.run)})


def _result(split: str, run: Path, outcomes: Mapping[str, str], evaluation: PlannedStage) -> SplitResult:
    tuned, evaluated = (outcomes.get(f"{command}-{split}", "not begun") for command in _STAGES)
    if evaluated not in ("done", "skipped"):
        return SplitResult(split, tuned if evaluated == "not begun" and tuned != "done" else evaluated, str(run))
    settings = _evaluation_of(evaluation)
    finished = finished_evaluation(settings)
    if finished is None:
        return SplitResult(split, "no evaluation", str(run))
    folder, summary = finished
    return SplitResult(split, "done", str(run), figures_of(summary, settings.fuse), int(summary["videos"]), str(folder))
