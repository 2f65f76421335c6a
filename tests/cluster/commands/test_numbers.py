"""Numbers that nothing can be computed with: refused in the settings of every command, each by its field's path."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from pathlib import Path

import pydantic
import pytest

from cluster.jobs.evaluation import EvaluationJob
from cluster.jobs.loader_bench import LoaderBench
from cluster.jobs.planning import PlanJob
from cluster.jobs.sharding import RetryJob, ShardingJob
from cluster.jobs.training import TrainingJob
from pretrain.models.describe import NetworkQuery
from sharding.base.errors import UserError
from sharding.base.settings import inlined, load_settings
from tests.cluster.conftest import Say
from tests.support.commands import refused

UNUSABLE = (".inf", "-.inf", ".nan", "nan", "1e300", "-1.0e+300", "99999999999999999999", "-99999999999999999999")
NEEDED: dict[type[pydantic.BaseModel], list[str]] = {
    TrainingJob: ["data.store=S"],
    PlanJob: ["data.store=S"],
    LoaderBench: ["data.store=S"],
    EvaluationJob: ["run=R"],
    ShardingJob: [],
    RetryJob: [],
    NetworkQuery: [],
}


def numbers(annotation: object, path: str = "", seen: tuple[type, ...] = ()) -> Iterator[str]:
    """The path of every setting that is a number in a model, and not in a list."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel) and annotation not in seen:
        for name, field in annotation.model_fields.items():
            below = f"{path}.{field.alias or name}" if path else field.alias or name
            yield from numbers(field.annotation, path if name in inlined(annotation) else below, (*seen, annotation))
    elif annotation in (int, float):
        yield path
    elif typing.get_origin(annotation) is not tuple:
        for argument in typing.get_args(annotation):
            yield from numbers(argument, path, seen)


def test_every_number_of_every_command() -> None:
    tried = 0
    for model, needed in NEEDED.items():
        for path in dict.fromkeys(numbers(model)):
            for value in UNUSABLE:
                tried += 1
                with pytest.raises(UserError) as caught:
                    load_settings(model, None, [*needed, f"{path}={value}"])
                assert path in caught.value.what, (model, path, value, caught.value.what)
    assert tried > 500


@pytest.mark.parametrize(
    ("override", "path"),
    [
        ("data.clip.normalisation.mean=[.nan,0,0]", "data.clip.normalisation.mean"),
        ("data.clip.resize=[1000000000,1000000000]", "data.clip.resize"),
        ("data.clip.short_edge=[8,1e18]", "data.clip.short_edge"),
        ("schedule.rates={stem: .inf}", "schedule.rates"),
        ("engine.betas=[.nan,0.9]", "engine.betas"),
        ("engine.deepspeed={steps_per_print: 99999999999999999999}", "engine.deepspeed"),
        ("engine.deepspeed={flops_profiler: {recompute_fwd_factor: .inf}}", "engine.deepspeed"),
        ("data.mix=[{store: S, weight: 99999999999999999999}]", "data.mix"),
        ("data.loader.workers=1000000000", "data.loader.workers"),
        ("lane_batch=1000000000", "lane_batch"),
        ("lanes=1000000000", "lanes"),
        ("ranks=1000000000", "ranks"),
        ("data.clip.frames=1000000000", "data.clip.frames"),
        ("seed=-1", "seed"),
    ],
)
def test_numbers_inside_others_and_absurd_ones(override: str, path: str) -> None:
    with pytest.raises(UserError, match=path):
        load_settings(TrainingJob, None, ["data.store=S", override])


def test_a_number_of_thousands_of_digits() -> None:
    with pytest.raises(UserError, match="lanes") as caught:
        load_settings(TrainingJob, None, ["data.store=S", f"lanes={'9' * 5000}"])
    assert len(str(caught.value)) < 1000
    with pytest.raises(UserError, match="run: the value '2026-13-45'"):
        load_settings(TrainingJob, None, ["data.store=S", "run=2026-13-45"])


def test_by_the_command_line(say: Say, store: Path, recipe: Path, tmp_path: Path) -> None:
    refused(say("pretrain", recipe, f"data.store={store}", "schedule.lr=.inf"), "schedule.lr", "finite")
    refused(say("pretrain", recipe, f"data.store={store}", "ranks=128", "lanes=128", "launcher=none"), "ranks=128")
    refused(say("shard", tmp_path, "s", "workers=1000000000", "launcher=none"), "workers")
    refused(say("bench-loader", store, "seconds=1e300"), "seconds")
    for wrong in (["shards", "verify", str(store), "--workers", "9" * 20], ["import", "f.pth", "r", "--frames", "-3"]):
        said = say(*wrong)
        assert said.returncode == 2 and "Traceback" not in said.stderr and "Input should be" in said.stderr
