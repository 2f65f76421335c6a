"""The job `sweep`: one recipe trained with several values of its settings, and the best of them."""

import itertools
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from cluster.jobs.finetuning.evaluations import load_evaluation
from cluster.jobs.training import TrainingJob, load_job, resolve
from cluster.launch.choose import choose_launcher
from cluster.launch.tuning.trial import Trial
from cluster.launch.tuning.tuner import TrialEnd, TuneOptions, run_trials
from pretrain.data.sources import DataSettings, open_sources
from sharding.base.atomic import atomic_write_text
from sharding.base.errors import UserError
from sharding.base.printable import visible
from sharding.base.settings import Settings, digest, load_settings, settings_tree, unit
from sharding.base.user_paths import absolute, require_writable, writing

_OF_TRIALS = "train."
_OF_EVALUATION = "evaluate."
_DIGITS = 4  # of a drawn value
_FORMAT = 1
# Settings of an evaluation that its figures do not follow from.
_NO_FIGURES = {"run", "batch", "damaged", "decoders", "stall_seconds"}
_Value = bool | int | float | str


class Space(Settings):
    """The values that a setting takes: one of those listed, or one between two bounds."""

    values: Annotated[tuple[_Value, ...] | None, Field(min_length=1, description="values to take")] = None
    uniform: Annotated[tuple[float, float] | None, Field(description="lowest and highest value")] = None
    log_uniform: Annotated[
        tuple[float, float] | None, Field(description="lowest and highest value, each power of ten as likely")
    ] = None

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        kinds = [bounds for bounds in (self.values, self.uniform, self.log_uniform) if bounds is not None]
        if len(kinds) != 1:
            raise ValueError("give one of values, uniform and log_uniform")
        for bounds in (self.uniform, self.log_uniform):
            if bounds and not bounds[0] < bounds[1]:
                raise ValueError(f"the lowest value, {bounds[0]:g}, is not below the highest, {bounds[1]:g}")
        if self.log_uniform and self.log_uniform[0] <= 0:
            raise ValueError("log_uniform needs bounds above 0")
        return self

    def draw(self, number: random.Random) -> _Value:
        """A value."""
        if self.values is not None:
            return number.choice(self.values)
        if self.uniform is not None:
            return float(f"{number.uniform(*self.uniform):.{_DIGITS}g}")
        assert self.log_uniform is not None, "one of them is given"
        return float(f"{math.exp(number.uniform(*map(math.log, self.log_uniform))):.{_DIGITS}g}")


class AshaSettings(Settings):
    """Asynchronous successive halving (Li et al. 2020): trials that are behind the others end early."""

    grace_steps: Annotated[
        int, Field(json_schema_extra=unit("steps"), ge=1, description="optimizer steps before which no trial ends")
    ]
    reduction: Annotated[
        int, Field(ge=2, le=100, description="one of so many trials goes on at each rung, the next at so many times")
    ] = 3


class SweepJob(Settings):
    """A recipe that is trained with several values of its settings."""

    train: Annotated[str, Field(description="the recipe of each trial; a relative path begins at this file")]
    command: Annotated[Literal["finetune", "pretrain"], Field(description="the command that the recipe is for")] = (
        "finetune"
    )
    space: Annotated[
        dict[str, Space], Field(min_length=1, description="the settings that differ, by key.path, and their values")
    ]
    trials: Annotated[
        int | None,
        Field(
            json_schema_extra=unit("trials"),
            ge=1,
            le=10_000,
            description="trials, each with values drawn at random; null: one for each combination of listed values",
        ),
    ] = None
    draw_seed: Annotated[int, Field(ge=0, description="seed of the values that are drawn")] = 0
    metric: Annotated[
        Literal["clip1", "video1"],
        Field(
            description="what trials are compared by: the best clip@1 of their validations, or video@1 of `evaluate`"
        ),
    ] = "clip1"
    evaluate: Annotated[
        str | None, Field(description="the recipe of each trial's evaluation, for video1; null: none is made")
    ] = None
    asha: Annotated[
        AshaSettings | None, Field(description="ends trials that are behind; null: all go to their end")
    ] = None
    folder: Annotated[
        str | None, Field(description="where runs, logs and result are kept; null: runs/NAME-OF-THE-FILE")
    ] = None
    parallel: Annotated[
        int | None,
        Field(
            json_schema_extra=unit("trials"),
            ge=1,
            le=1024,
            description="trials at work at a time at most; null: as many as Ray has room for",
        ),
    ] = None
    cpus: Annotated[
        int | None,
        Field(
            json_schema_extra=unit("CPUs"),
            ge=1,
            le=1024,
            description="CPUs of Ray that a trial takes; null: those that come with its GPUs, else all of a node",
        ),
    ] = None
    retries: Annotated[
        int,
        Field(
            json_schema_extra=unit("tries"),
            ge=0,
            le=1000,
            description="further tries of a trial that has failed; each goes on from its run's checkpoint",
        ),
    ] = 1

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if (self.metric == "video1") != (self.evaluate is not None):
            raise ValueError("metric=video1 and evaluate=RECIPE belong together")
        drawn = [key for key, space in self.space.items() if space.values is None]
        if self.trials is None and drawn:
            raise ValueError(f"trials: say how many, as {drawn[0]} has no list of values")
        return self


@dataclass(frozen=True)
class Sweep:
    """A checked sweep: its settings, its folder, the overrides of all its trials, and the trials.

    `evaluation`: what distinguishes it from evaluations with other figures; "" where trials are not evaluated.
    """

    job: SweepJob
    folder: Path
    recipe: str
    overrides: Sequence[str]
    trials: Sequence[Trial]
    ranks: int
    evaluation: str = ""


def drawn_settings(job: SweepJob) -> list[dict[str, Any]]:
    """The settings of each trial, by key: all combinations, or drawn. More trials begin with those of fewer."""
    if job.trials is None:
        lists = [space.values or () for space in job.space.values()]
        return [dict(zip(job.space, values, strict=True)) for values in itertools.product(*lists)]
    return [
        {key: space.draw(random.Random(f"{job.draw_seed}/{number}/{key}")) for key, space in job.space.items()}
        for number in range(job.trials)
    ]


def load_sweep(path: str, overrides: Sequence[str]) -> Sweep:
    """The sweep of a file, changed by `KEY=VALUE`, `train.KEY=VALUE` and `evaluate.KEY=VALUE`.

    Raises UserError for whatever can be seen to be wrong before a trial starts: settings of each trial that do not
    fit, its evaluation's among them, a store, or one without the videos that trials are compared by, a run to start
    from; Ray that is not installed; a folder that holds another sweep.
    """
    own = [each for each in overrides if not each.startswith((_OF_TRIALS, _OF_EVALUATION))]
    of_trials = [each.removeprefix(_OF_TRIALS) for each in overrides if each.startswith(_OF_TRIALS)]
    of_evaluation = [each.removeprefix(_OF_EVALUATION) for each in overrides if each.startswith(_OF_EVALUATION)]
    job = load_settings(SweepJob, path, own)
    choose_launcher("ray")
    if of_evaluation and job.evaluate is None:
        raise UserError("no trial is evaluated", of_evaluation[0], "set evaluate=RECIPE and metric=video1")
    folder = Path(absolute(job.folder or f"runs/{Path(path).stem}"))
    require_writable(folder, "folder")
    beside = Path(absolute(str(Path(path).parent)))
    recipe, evaluation = str(beside / job.train), ""
    needs_validation, validated = job.metric == "clip1" or job.asha is not None, set[str]()
    trials: list[Trial] = []
    for number, settings in enumerate(drawn_settings(job)):
        run = str(folder / f"trial-{number:04d}")
        words = [*of_trials, *(f"{key}={json.dumps(value)}" for key, value in settings.items()), f"run={run}"]
        loaded = load_job(recipe, [*words, "launcher=none"], needs_init=job.command == "finetune")
        if needs_validation and loaded.train.data.store not in validated:
            _require_validation(loaded.train.data, recipe)
            validated.add(loaded.train.data.store)
        if not trials:
            resolve(loaded, recipe)
            ranks = loaded.launch.world_size
        commands = [[job.command, recipe, *words, "launcher=none"]]
        if job.evaluate is not None:
            words = [str(beside / job.evaluate), *of_evaluation, f"run={run}", "launcher=none"]
            if not trials:
                evaluated = load_evaluation(words[0], words[1:], loaded.train)
                evaluation = digest(evaluated.model_dump(mode="json", exclude=_NO_FIGURES))[:8]
            commands.append(["evaluate", *words])
        trials.append(Trial(number, run, commands, settings, str(Path.cwd()), loaded.train.steps, needs_validation))
    sweep = Sweep(job, folder, recipe, of_trials, trials, ranks, evaluation)
    _require_same(sweep)
    return sweep


def run_sweep(sweep: Sweep, show: Callable[[str], None]) -> dict[str, Any] | None:
    """Run what is not done of a sweep; its result, which is in the folder then, or None where a signal stopped it.

    Raises UserError where the folder cannot be written.
    """
    job = sweep.job
    with writing(sweep.folder, "folder"):
        sweep.folder.mkdir(parents=True, exist_ok=True)
        atomic_write_text(sweep.folder / "trials.json", json.dumps(_identity(sweep), indent=1))
    grace, reduction = (job.asha.grace_steps, job.asha.reduction) if job.asha else (None, 3)
    options = TuneOptions(
        sweep.folder, sweep.ranks, job.cpus, job.parallel, job.retries, grace, reduction, sweep.evaluation
    )
    stopped, ends = run_trials(sweep.trials, options, show)
    if stopped:
        return None
    result = sweep_result(sweep, ends)
    with writing(sweep.folder, "folder"):
        atomic_write_text(sweep.folder / "sweep.json", json.dumps(result, indent=1))
        if result["best"] is not None:
            atomic_write_text(sweep.folder / "best.yaml", best_recipe(sweep, result))
    return result


def sweep_result(sweep: Sweep, ends: Sequence[TrialEnd]) -> dict[str, Any]:
    """The trials, the best first and those without a figure last, and the number of the best that finished."""
    by_number, metric = {trial.number: trial for trial in sweep.trials}, sweep.job.metric
    rows = [
        {**asdict(end), "settings": by_number[end.number].settings, "run": by_number[end.number].run} for end in ends
    ]

    def place(row: Mapping[str, Any]) -> tuple[bool, float, int]:
        return row["outcome"] == "failed" or row[metric] is None, -(row[metric] or 0.0), row["number"]

    rows.sort(key=place)
    finished = [row for row in rows if row["outcome"] == "finished" and row[metric] is not None]
    best = finished[0]["number"] if finished else None
    return {"metric": metric, "best": best, "trials": rows, "folder": str(sweep.folder)}


def best_recipe(sweep: Sweep, result: Mapping[str, Any]) -> str:
    """The recipe of the best trial (YAML): the sweep's own, what was set for all trials, and its values."""
    row = next(row for row in result["trials"] if row["number"] == result["best"])
    values = [f"{key}={json.dumps(value)}" for key, value in row["settings"].items()]
    tree = settings_tree(sweep.recipe, [*sweep.overrides, *values])
    tree.pop("run", None)
    head = [
        f"# The best of {len(result['trials'])} trials of a sweep: {', '.join(values)}.",
        f"# Measured: {result['metric']} {100 * row[result['metric']]:.1f} % ({row['run']}).",
        f"# Command: reelscale {sweep.job.command} {sweep.folder / 'best.yaml'}",
    ]
    return "\n".join([*head, yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)])


def _require_validation(data: DataSettings, recipe: str) -> None:
    """Raises UserError for a store by whose videos no run is validated, as trials are compared by that."""
    if len(open_sources(data).unseen) == 0:
        remedy = (
            "shard it with a split 'val', or compare by an evaluation of another split: metric=video1, without asha"
        )
        raise UserError(f"the store {visible(data.store)} has no video in its split 'val'", recipe, remedy)


def _identity(sweep: Sweep) -> dict[str, Any]:
    """What a folder's sweep is: its recipe, and each trial's training. Evaluations may be corrected."""
    settings = load_settings(TrainingJob, sweep.recipe, list(sweep.overrides)).train.model_dump(mode="json")
    trials = [{"settings": dict(trial.settings), "commands": [list(trial.commands[0])]} for trial in sweep.trials]
    return {"format": _FORMAT, "recipe": settings, "trials": trials}


def _require_same(sweep: Sweep) -> None:
    """Raises UserError where the folder holds another sweep; more trials of the same one may come to it."""
    file = sweep.folder / "trials.json"
    try:
        before, now = json.loads(file.read_text(encoding="utf-8")), _identity(sweep)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        raise UserError(f"the sweep's trials cannot be read: {error}", str(file), "name another folder=…") from error
    trials = [{**trial, "commands": trial["commands"][:1]} for trial in before["trials"]]
    if before["recipe"] != now["recipe"] or trials != now["trials"][: len(trials)]:
        what = "the folder holds another sweep: its recipe or its trials are not these"
        raise UserError(what, str(sweep.folder), "name another folder=…, or take back what has changed")
