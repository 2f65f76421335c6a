"""The recipes: each loads into its settings, and its head says what to expect, on what, by which command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from cluster.commands.settings import model_of
from cluster.jobs.evaluation import EvaluationJob
from cluster.jobs.finetuning.splits import SplitsJob
from cluster.jobs.finetuning.sweep import SweepJob
from cluster.jobs.pipeline.plan import Pipeline
from cluster.jobs.sharding import ShardingJob
from cluster.jobs.training import TrainingJob
from pretrain.lr_schedule import highest_rate, learning_rate
from sharding.base.settings import Settings, flat_schema, load_settings

CONFIGS = Path(__file__).parents[2] / "configs"
RECIPES = sorted(CONFIGS.rglob("*.yaml"))
JOBS: dict[str, type[Settings]] = {
    "shard": ShardingJob,
    "pretrain": TrainingJob,
    "finetune": TrainingJob,
    "evaluate": EvaluationJob,
    "splits": SplitsJob,
    "sweep": SweepJob,
    "pipeline": Pipeline,
}
COMMANDS = {"pipeline": "run"}  # where it is not called as the recipe is


def kind_of(recipe: Path) -> str:
    """The kind of a recipe: the only one of their names that its own name holds."""
    (kind,) = [name for name in JOBS if name in recipe.stem.split("-")]
    return kind


def head_of(recipe: Path) -> str:
    """The comment lines that a recipe begins with."""
    lines = recipe.read_text(encoding="utf-8").splitlines()
    end = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    return "\n".join(lines[:end])


def schema_problems(kind: str, tree: Any) -> list[str]:
    """Where a settings file does not fit the schema that `reelscale settings COMMAND --json-schema` prints."""
    schema = flat_schema(model_of(COMMANDS.get(kind, kind)), kind)
    jsonschema.Draft202012Validator.check_schema(schema)
    return [error.json_path for error in jsonschema.Draft202012Validator(schema).iter_errors(tree)]


def test_every_command_has_a_recipe() -> None:
    assert {kind_of(recipe) for recipe in RECIPES} == set(JOBS)


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_loads(recipe: Path) -> None:
    job = load_settings(JOBS[kind_of(recipe)], str(recipe))
    if isinstance(job, TrainingJob):
        assert job.train.lanes % job.launch.ranks == 0
        assert (job.train.init is not None) == (kind_of(recipe) == "finetune")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_fits_the_schema_for_editors(recipe: Path) -> None:
    assert schema_problems(kind_of(recipe), yaml.safe_load(recipe.read_text(encoding="utf-8"))) == []


def test_the_schema_for_editors_refuses_what_the_command_would() -> None:
    tree = yaml.safe_load((CONFIGS / "demo-pretrain.yaml").read_text(encoding="utf-8"))
    assert schema_problems("pretrain", {**tree, "lanez": 4}) == ["$"]
    assert schema_problems("pretrain", {**tree, "lanes": "four"}) == ["$.lanes"]
    assert schema_problems("pretrain", {**tree, "engine": {"precision": "fp8"}}) == ["$.engine.precision"]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_head_says_result_hardware_and_command(recipe: Path) -> None:
    head = head_of(recipe)
    assert "Expected: " in head
    assert "Hardware: " in head
    kind = kind_of(recipe)
    assert f"Command: reelscale {COMMANDS.get(kind, kind)} " in head
    assert f"configs/{recipe.relative_to(CONFIGS).as_posix()}" in head


@pytest.mark.parametrize(
    ("name", "clips", "rate", "epoch_clips", "drops"),
    [
        ("sports1m-r2plus1d-34-pretrain", 32, 0.01, 1_000_000, [20, 30, 40]),
        ("kinetics400-r2plus1d-34-pretrain", 32, 0.01, 1_000_000, [20, 30, 40]),
        ("ucf101-r2plus1d-34-finetune", 4, 0.0001, 100_000, [2, 4, 6]),
        ("hmdb51-r2plus1d-34-finetune", 4, 0.0002, 40_000, [2, 4, 6]),
    ],
)
def test_a_published_schedule_is_the_papers(
    name: str, clips: int, rate: float, epoch_clips: int, drops: list[int]
) -> None:
    """Clips and rate a GPU, epochs in clips, and a tenth of the rate after these epochs."""
    job = load_settings(TrainingJob, str(CONFIGS / f"{name}.yaml")).train
    schedule, lanes = job.schedule, job.lanes
    assert (job.lane_batch, schedule.epoch_clips, job.data.clip.frames) == (clips, epoch_clips, 32)
    assert highest_rate(schedule, lanes, job.batch) == pytest.approx(rate * lanes)
    for number, epoch in enumerate(drops):
        before, after = (learning_rate(schedule, lanes, epoch * epoch_clips + moved) for moved in (-1, 0))
        assert (before, after) == pytest.approx((rate * lanes / 10**number, rate * lanes / 10 ** (number + 1)))
    assert (job.engine.momentum, job.engine.optimizer) == (0.9, "sgd")
