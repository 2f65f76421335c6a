"""Every setting of every command says in one line what it is."""

from __future__ import annotations

import typing
from collections.abc import Iterator
from typing import Any

import pydantic
import pytest

from cluster.jobs.evaluation import EvaluationJob
from cluster.jobs.loader_bench import LoaderBench
from cluster.jobs.pipeline.plan import Pipeline
from cluster.jobs.planning import PlanJob
from cluster.jobs.sharding import RetryJob, ShardingJob
from cluster.jobs.training import TrainingJob
from cluster.launch.hostfile import HostfileSettings
from cluster.launch.kuberay import KubeRaySettings
from cluster.launch.slurm import SlurmSettings
from cluster.monitor.prometheus.scrape_config import ScrapeSettings
from pretrain.models.describe import NetworkQuery

Model = type[pydantic.BaseModel]
JOBS: list[Model] = [
    TrainingJob,
    ShardingJob,
    RetryJob,
    EvaluationJob,
    LoaderBench,
    NetworkQuery,
    Pipeline,
    PlanJob,
    SlurmSettings,
    KubeRaySettings,
    HostfileSettings,
    ScrapeSettings,
]


def models_in(annotation: Any) -> Iterator[Model]:
    """Every settings model inside a type, however deep in unions and lists."""
    if isinstance(annotation, type) and issubclass(annotation, pydantic.BaseModel):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from models_in(argument)


def descriptions(model: Model, above: str = "") -> Iterator[tuple[str, str | None]]:
    """(path, description) of every field of a model and of the models inside it."""
    for name, field in model.model_fields.items():
        yield f"{above}{name}", field.description
        for inner in models_in(field.annotation):
            yield from descriptions(inner, f"{above}{name}.")


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.__name__)
def test_every_field_has_a_description(job: Model) -> None:
    described = dict(descriptions(job))
    assert described
    for path, text in described.items():
        assert text is not None, f"{path} has no description"
        assert text == text.strip() and "\n" not in text and len(text.split()) >= 2, f"{path}: {text!r}"


def test_nested_fields_are_walked() -> None:
    assert {"train.data.mix.weight", "train.data.clip.normalisation.mean", "train.init.run"} <= {
        path for path, _ in descriptions(TrainingJob)
    }
    assert {"shards.segments.seconds", "shards.encode.copy_packets"} <= {path for path, _ in descriptions(ShardingJob)}
