"""The engine's settings in DeepSpeed's words, and what they refuse."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from typing import Any

import pytest
from torch import nn

from pretrain.engine.deepspeed_config import _MORE, EngineSettings, deepspeed_config, explains_deepspeed_refusals
from pretrain.models.zoo import ModelSettings, build_model
from sharding.base.errors import UserError
from sharding.base.settings import validate


def config(**settings: Any) -> dict[str, Any]:
    return deepspeed_config(
        EngineSettings.model_validate(settings), batch=4, micro_steps=3, world_size=2, parameters=1000
    )


def test_the_settings_in_deepspeeds_words() -> None:
    translated = config(precision="bf16", zero=2)
    assert translated["train_batch_size"] == 4 * 3 * 2
    assert translated["train_micro_batch_size_per_gpu"] == 4
    assert translated["gradient_accumulation_steps"] == 3
    assert (
        translated["gradient_clipping"] == config(clip_gradient=2.0)["gradient_clipping"] == 0
    )  # DeepSpeed's default is 1
    assert translated["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 1000}
    assert translated["torch_autocast"] == {"enabled": True, "dtype": "bfloat16", "lower_precision_safe_modules": []}
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
    merged = config(zero=1, deepspeed=more)
    assert merged["zero_optimization"] == {"stage": 1, "reduce_bucket_size": 5, "overlap_comm": True}
    assert merged["dump_state"] is True
    assert {name: value for name, value in merged.items() if name not in more} == {
        name: value for name, value in config(zero=1).items() if name not in more
    }


@pytest.mark.parametrize(
    ("more", "key", "theirs", "ours", "remedy"),
    [
        ({"zero_optimization": {"stage": 2}}, "zero_optimization.stage", "2", "1", "engine.zero"),
        ({"gradient_clipping": 1.0}, "gradient_clipping", "1.0", "", "engine.clip_gradient"),
        ({"train_batch_size": 7}, "train_batch_size", "7", "", "lanes, lane_batch"),
        ({"fp16": {"enabled": True}}, "fp16", "True", "", "engine.precision"),
        ({"bf16": {}}, "bf16", "{}", "", "engine.precision"),
        ({"bfloat16": {"enabled": True}}, "bfloat16", "True", "", "engine.precision"),
        ({"amp": {"enabled": True}}, "amp", "True", "", "engine.precision"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "data_types", "bf16", "", "engine.precision, engine.gradients"),
        ({"managed_gradient_accumulation": False}, "managed_gradient_accumulation", "False", "", "lanes"),
        ({"scheduler": {"type": "OneCycle"}}, "scheduler", "OneCycle", "", "schedule"),
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
def test_a_contradiction_is_refused(more: dict[str, Any], key: str, theirs: str, ours: str, remedy: str) -> None:
    with pytest.raises(UserError) as refused:
        validate(EngineSettings, {"deepspeed": more}, "run.yaml")
    assert f"engine.deepspeed.{key} is " in refused.value.what
    assert theirs in refused.value.what and ours in refused.value.what and f"set {remedy}" in refused.value.what


def test_a_section_stays_one() -> None:
    with pytest.raises(UserError, match=r"engine\.deepspeed\.zero_optimization is 3; write a section there"):
        validate(EngineSettings, {"deepspeed": {"zero_optimization": 3}}, "run.yaml")


@pytest.mark.parametrize(
    ("more", "reasons"),
    [
        ({"nonsense_key": 1}, ["nonsense_key is 1", "no such setting of DeepSpeed's", "take it out"]),
        ({"zero_optimisation": {"stage": 1}}, ["did you mean zero_optimization?"]),
        ({"wall_clock_brakdown": True}, ["did you mean wall_clock_breakdown?"]),
        ({"zero_optimization": {"bogus": 1}}, ["zero_optimization.bogus is 1", "no such setting"]),
        ({"zero_optimization": {"overlap_com": True}}, ["did you mean zero_optimization.overlap_comm?"]),
        ({"zero_optimization": {"reduce_bucket_size": "big"}}, ["reduce_bucket_size is 'big'", "valid integer"]),
        ({"zero_optimization": {"reduce_bucket_size": "auto"}}, ["reduce_bucket_size is 'auto'", "valid integer"]),
        ({"zero_optimization": {"reduce_bucket_size": 0}}, ["reduce_bucket_size is 0", "greater than 0"]),
        ({"zero_optimization": {"overlap_comm": "no"}}, ["overlap_comm is 'no'", "valid boolean"]),
        ({"zero_optimization": {"offload_optimizer": {"device": "cpu"}}}, ["offload_optimizer", "engine.zero"]),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, ["offload_param", "does not go with"]),
        ({"zero_optimization": {"cpu_offload": True}}, ["cpu_offload", "does not go with"]),
        ({"zero_optimization": {"compute_grad_norm": False}}, ["compute_grad_norm", "the norm of its gradients"]),
        ({"elasticity": {"enabled": True}}, ["elasticity", "number of ranks"]),
        ({"sparse_gradients": True}, ["sparse_gradients", "does not go with"]),
        ({"gradient_allreduce_op": "sum"}, ["gradient_allreduce_op", "mean over the lanes"]),
        ({"log_level": "loud"}, ["log_level is 'loud'", "'debug'"]),
        ({"comms_logger": 3}, ["comms_logger is 3", "write a section there"]),
        ({"timers": {"throughput": {"enabled": 3}}}, ["timers.throughput.enabled is 3", "valid boolean"]),
    ],
)
def test_what_deepspeed_ignores_or_fails_on_is_refused(more: dict[str, Any], reasons: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        validate(EngineSettings, {"deepspeed": more}, "run.yaml")
    assert all(part in refused.value.what for part in [*reasons, "engine.deepspeed."]), refused.value


def test_all_that_may_be_added_is_read_by_the_installed_deepspeed() -> None:
    script = """
import json
from deepspeed.comm.config import CommsLoggerConfig
from deepspeed.monitor.config import CSVConfig, TensorBoardConfig
from deepspeed.profiling import constants as profiling
from deepspeed.runtime import constants
from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.utils.config import DeepSpeedThroughputTimerConfig
models = {
    "zero_optimization": DeepSpeedZeroConfig, "comms_logger": CommsLoggerConfig, "csv_monitor": CSVConfig,
    "tensorboard": TensorBoardConfig, "timers.throughput": DeepSpeedThroughputTimerConfig,
}
names = [value for value in vars(constants).values() if isinstance(value, str)]
names += [f"flops_profiler.{value}" for value in vars(profiling).values() if isinstance(value, str)]
for section, model in models.items():
    for name, field in model.model_fields.items():
        names += [f"{section}.{name}", f"{section}.{field.alias}"]
print(json.dumps(names))
"""
    environment = {**os.environ, "DS_ACCELERATOR": "cpu"}
    output = subprocess.run(
        [sys.executable, "-c", script], env=environment, check=True, capture_output=True, text=True
    ).stdout
    assert set(_MORE) <= set(json.loads(output.splitlines()[-1]))


def test_what_deepspeed_refuses_as_it_starts_is_told() -> None:
    added = EngineSettings(deepspeed={"tensorboard": {"enabled": True}})
    for error in (ImportError("No module named 'tensorboard'"), ValueError("x"), AssertionError("y"), OSError("z")):
        with pytest.raises(UserError, match=str(error)) as told, explains_deepspeed_refusals(added):
            raise error
        assert told.value.where == "engine.deepspeed" and "tensorboard" in told.value.remedy
    for settings, other in ((added, MemoryError()), (EngineSettings(), ValueError())):
        with pytest.raises(type(other)), explains_deepspeed_refusals(settings):
            raise other


def test_gradients_in_bf16_go_with_bf16_alone() -> None:
    for precision in ("fp32", "fp16"):
        with pytest.raises(UserError, match=r"engine\.precision=bf16"):
            validate(EngineSettings, {"gradients": "bf16", "precision": precision}, "run.yaml")


@pytest.mark.parametrize("wrong", [{"average": 1.0}, {"average": 0}, {"zero": 4}, {"betas": [0.9, 1]}, {"eps": 0}])
def test_values_out_of_range_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        validate(EngineSettings, wrong, "run.yaml")
