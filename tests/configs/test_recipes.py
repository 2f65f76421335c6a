"""The recipes: each loads into its settings, and its head says what to expect, on what, by which command."""

from __future__ import annotations

import re
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
from cluster.terminal.settings_schema import flat_schema
from pretrain.papers.rows import ROWS, TEN, Row
from sharding.base.settings import Settings, load_settings, settings_files
from tests.configs.published import table_of_rows

CONFIGS = Path(__file__).parents[2] / "configs"
BASES = sorted((CONFIGS / "bases").glob("*.yaml"))
RECIPES = sorted({*CONFIGS.rglob("*.yaml")} - {*BASES})
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


def test_no_two_recipes_have_one_name() -> None:
    """A run's folder is called after its recipe."""
    names = [recipe.stem for recipe in RECIPES]
    assert sorted({*names}) == sorted(names)


def test_every_base_says_what_it_is_and_is_used() -> None:
    used = {Path(path).resolve() for recipe in RECIPES for path in settings_files(str(recipe))[1:]}
    assert used == {*BASES} and len(BASES) > 10
    assert [base.name for base in BASES if len(head_of(base)) < 40] == []


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.recipe)
def test_a_recipe_opens_with_the_figures_of_its_row(row: Row) -> None:
    head = " ".join(head_of(CONFIGS / f"{row.recipe}.yaml").replace("\n#  ", "").split())
    assert row.text in head
    assert ("published" in head or "release" in head) == bool(row.figures) or "no figure" in head or "a plot" in head
    assert row.scored is None or (CONFIGS / f"{row.scored}.yaml").exists()


def test_every_recipe_of_a_paper_is_in_the_table_and_the_table_in_the_readme() -> None:
    of_rows = {name for row in ROWS for name in (row.recipe, row.scored)} - {None}
    names = [recipe.relative_to(CONFIGS).with_suffix("").as_posix() for recipe in RECIPES]
    assert {name for name in names if "/" in name and not name.startswith("stores/")} == of_rows - {TEN}
    assert table_of_rows() in (CONFIGS / "README.md").read_text("utf-8"), (
        "write it anew: python -m tests.configs.published"
    )


_NAME = re.compile(
    r"(?P<data>kinetics400|sports1m|ig65m|ucf101|hmdb51)-(?P<net>[a-z0-9]+)-(?P<depth>\d+)-(?P<frames>\d+)f"
    r"(?P<flow>-flow)?(?P<short_edge>-se)?(?:-from-(?P<source>\w+))?-(?:pretrain|finetune)"
)


@pytest.mark.parametrize(
    "recipe",
    [path for path in RECIPES if path.parent.name not in ("configs", "i3d")],
    ids=lambda path: path.stem,
)
def test_a_recipe_is_what_its_name_says(recipe: Path) -> None:
    match = _NAME.fullmatch(recipe.stem)
    if match is None:
        assert kind_of(recipe) in ("evaluate", "shard")
        return
    train = load_settings(TrainingJob, str(recipe)).train
    assert train.data.store == f"stores/{match['data']}"
    assert (train.model.name, train.model.depth) == (match["net"], int(match["depth"]))
    assert train.data.clip.frames == int(match["frames"])
    assert (train.data.clip.input, train.model.in_channels) == (("flow", 2) if match["flow"] else ("rgb", 3))
    assert train.data.clip.short_edge == ((128, 160) if match["short_edge"] else None)
    source = "8-8f" if match["source"] == "8f" else match["source"]
    assert (train.init is not None) == (source is not None)
    if train.init and source:
        assert source in train.init.run and ("-flow" in train.init.run) == bool(match["flow"])
