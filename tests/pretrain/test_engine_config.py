"""The engine's settings in DeepSpeed's words, and what they refuse."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from torch import nn

from pretrain.engine.config import EngineSettings, deepspeed_config
from pretrain.models.zoo import ModelSettings, build_model
from sharding.errors import UserError
from sharding.settings import validate


def config(**settings: Any) -> dict[str, Any]:
    return deepspeed_config(EngineSettings.model_validate(settings), batch=4, passes=3, world_size=2, parameters=1000)


def test_the_settings_in_deepspeeds_words() -> None:
    found = config(precision="bf16", zero=2)
    assert found["train_batch_size"] == 4 * 3 * 2
    assert found["train_micro_batch_size_per_gpu"] == 4
    assert found["gradient_accumulation_steps"] == 3
    assert found["gradient_clipping"] == config(clip_gradient=2.0)["gradient_clipping"] == 0  # DeepSpeed's default is 1
    assert found["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}
    assert found["torch_autocast"] == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
    assert config(precision="fp16")["torch_autocast"]["dtype"] == "float16"
    plain = deepspeed_config(EngineSettings(precision="fp32"), 1, 1, 1, 10**9)
    assert not plain["torch_autocast"]["enabled"]
    assert plain["zero_optimization"]["reduce_bucket_size"] == 5 * 10**8


def test_the_layers_whose_gradients_may_be_summed_in_half_are_the_networks_own_classes() -> None:
    names = config(gradients="bf16")["torch_autocast"]["lower_precision_safe_modules"]
    classes = {getattr(importlib.import_module(name.rpartition(".")[0]), name.rpartition(".")[2]) for name in names}
    model = build_model(ModelSettings(depth=10, width=0.125), 5, frames=4)
    assert {type(module) for module in model.modules() if isinstance(module, nn.Conv3d | nn.Linear)} == classes
    assert config(gradients="bf16", zero=0)["communication_data_type"] == "bf16"
    assert config(gradients="bf16", zero=1)["communication_data_type"] == "fp32"


def test_deepspeeds_own_settings_are_added() -> None:
    more = {"zero_optimization": {"overlap_comm": True, "stage": 1, "reduce_bucket_size": 5}, "dump_state": True}
    found = config(zero=1, deepspeed=more)
    assert found["zero_optimization"] == {"stage": 1, "reduce_bucket_size": 5, "overlap_comm": True}
    assert found["dump_state"] is True
    assert {name: value for name, value in found.items() if name not in more} == {
        name: value for name, value in config(zero=1).items() if name not in more
    }


@pytest.mark.parametrize(
    ("more", "key", "found", "ours", "remedy"),
    [
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage", "2", "1", "engine.zero"),
        ({"gradient_clipping": 1.0}, "gradient_clipping", "1.0", "", "engine.clip_gradient"),
        ({"train_batch_size": 7}, "train_batch_size", "7", "", "lanes, lane_batch"),
        ({"fp16": {"enabled": True}}, "fp16", "True", "", "engine.precision"),
        ({"bf16": {}}, "bf16", "{}", "", "engine.precision"),
        ({"optimizer": {"type": "Lamb"}}, "optimizer", "Lamb", "", "engine.optimizer"),
        ({"torch_autocast": {"dtype": "float16"}}, "torch_autocast.dtype", "float16", "bfloat16", "engine.precision"),
        (
            {"torch_autocast": {"lower_precision_safe_modules": ["torch.nn.Linear"]}},
            "torch_autocast.lower_precision_safe_modules",
            "torch.nn.Linear",
            "[]",
            "engine.gradients",
        ),
        ({"communication_data_type": "fp16"}, "communication_data_type", "fp16", "fp32", "engine.gradients"),
    ],
)
def test_a_contradiction_is_refused(more: dict[str, Any], key: str, found: str, ours: str, remedy: str) -> None:
    with pytest.raises(UserError) as told:
        validate(EngineSettings, {"deepspeed": more}, "run.yaml")
    assert f"engine.deepspeed.{key} is " in told.value.what
    assert found in told.value.what and ours in told.value.what and f"set {remedy}" in told.value.what


def test_a_section_stays_one() -> None:
    with pytest.raises(UserError, match=r"engine\.deepspeed\.zero_optimization is 3; write a section there"):
        validate(EngineSettings, {"deepspeed": {"zero_optimization": 3}}, "run.yaml")


def test_gradients_in_bf16_go_with_bf16_alone() -> None:
    for precision in ("fp32", "fp16"):
        with pytest.raises(UserError, match=r"engine\.precision=bf16"):
            validate(EngineSettings, {"gradients": "bf16", "precision": precision}, "run.yaml")


@pytest.mark.parametrize("wrong", [{"average": 1.0}, {"average": 0}, {"zero": 4}, {"betas": [0.9, 1]}, {"eps": 0}])
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        validate(EngineSettings, wrong, "run.yaml")
