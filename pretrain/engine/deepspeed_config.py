"""The engine's settings, and the DeepSpeed configuration that is made of them."""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, TypeAdapter, ValidationError, model_validator

from pretrain.engine.precision import Precision
from sharding.base.errors import UserError
from sharding.base.settings import Settings

_OURS = {  # what says it in our settings, by DeepSpeed's key; of sections named whole, the parts too
    "train_micro_batch_size_per_gpu": "lane_batch",
    "gradient_accumulation_steps": "lanes",
    "managed_gradient_accumulation": "lanes",
    "train_batch_size": "lanes, lane_batch",
    "gradient_clipping": "engine.clip_gradient",
    "zero_optimization.stage": "engine.zero",
    "zero_allow_untested_optimizer": "engine.optimizer",
    "optimizer": "engine.optimizer",
    "scheduler": "schedule",
    "fp16": "engine.precision",
    "bf16": "engine.precision",
    "bfloat16": "engine.precision",  # what bf16 is called, too
    "amp": "engine.precision",
    "data_types": "engine.precision, engine.gradients",
    "torch_autocast.lower_precision_safe_modules": "engine.gradients",
    "torch_autocast": "engine.precision",
    "communication_data_type": "engine.gradients",
    "activation_checkpointing": "engine.recomputed",
    "compile": "engine.compute_path",
    "checkpoint": "checkpoint",
    "data_efficiency": "data",
    "dataloader_drop_last": "data",
}
_OFFLOAD = "the engine computes, keeps and gathers all of its state on the device; engine.zero shares it out"
_WHOLE = "every rank has lanes of its own, and the whole network for them"
_CANNOT = {  # DeepSpeed's keys that do not go with this engine, and why
    "zero_optimization.offload_optimizer": _OFFLOAD,
    "zero_optimization.offload_param": _OFFLOAD,
    "zero_optimization.cpu_offload": _OFFLOAD,
    "zero_optimization.cpu_offload_param": _OFFLOAD,
    "zero_optimization.cpu_offload_use_pin_memory": _OFFLOAD,
    "zero_optimization.zenflow": _OFFLOAD,
    "zero_force_ds_cpu_optimizer": _OFFLOAD,
    "aio": _OFFLOAD,
    "zero_optimization.compute_grad_norm": "the engine tells and clips every step by the norm of its gradients",
    "zero_optimization.zero_quantized_weights": "weights travel as they are",
    "zero_optimization.zero_quantized_nontrainable_weights": "weights travel as they are",
    "zero_optimization.zero_quantized_gradients": "gradients travel in what engine.gradients says",
    "gradient_allreduce_op": "gradients are the mean over the lanes, on any number of ranks",
    "elasticity": "the lanes keep the batch, whatever the number of ranks",
    "sparse_gradients": "no network here has sparse gradients",
    "hybrid_engine": "it is for networks that generate text",
    "pipeline": _WHOLE,
    "tensor_parallel": _WHOLE,
    "expert_parallel": _WHOLE,
    "sequence_parallel_size": _WHOLE,
    "data_parallel_size": _WHOLE,
}
_Size = Annotated[int, Field(ge=0)]
# What may be added, and what it may be. DeepSpeed ignores a key that it does not know, and of the keys that it knows
# most are for what this engine has settings of its own for, or has not; so the list is of what has an effect here.
_MORE: dict[str, Any] = {
    **dict.fromkeys(["wall_clock_breakdown", "memory_breakdown", "dump_state"], bool),
    **dict.fromkeys(["disable_python_gc", "prescale_gradients"], bool),
    "steps_per_print": PositiveInt,
    "gradient_predivide_factor": PositiveFloat,
    "log_level": Literal["debug", "info", "warning", "error", "critical"],
    "flops_profiler.enabled": bool,
    "flops_profiler.detailed": bool,
    "flops_profiler.profile_step": PositiveInt,
    "flops_profiler.module_depth": int,
    "flops_profiler.top_modules": PositiveInt,
    "flops_profiler.recompute_fwd_factor": float,
    "flops_profiler.output_file": str | None,
    **dict.fromkeys([f"comms_logger.{key}" for key in ("enabled", "prof_all", "verbose", "debug")], bool),
    "comms_logger.prof_ops": list[str],
    "timers.throughput.enabled": bool,
    "timers.throughput.synchronized": bool,
    **dict.fromkeys(["csv_monitor.enabled", "tensorboard.enabled"], bool),
    **dict.fromkeys(
        [f"{kind}.{key}" for kind in ("csv_monitor", "tensorboard") for key in ("output_path", "job_name")], str
    ),
    "zero_optimization.reduce_bucket_size": PositiveInt,
    "zero_optimization.allgather_bucket_size": PositiveInt,
    "zero_optimization.sub_group_size": PositiveInt,
    **dict.fromkeys(
        [
            f"zero_optimization.{key}"
            for key in (
                "overlap_comm",
                "contiguous_gradients",
                "reduce_scatter",
                "use_multi_rank_bucket_allreduce",
                "allgather_partitions",
                "round_robin_gradients",
                "parameter_alignment",
                "ignore_unused_parameters",
                "memory_efficient_linear",
                "log_trace_cache_warnings",
                "enable_sanity_checks",
                "stage3_use_all_reduce_for_fetch_params",
                "stage3_allgather_sequential",
            )
        ],
        bool,
    ),
    **dict.fromkeys(
        [
            f"zero_optimization.stage3_{key}"
            for key in (
                "prefetch_bucket_size",
                "param_persistence_threshold",
                "model_persistence_threshold",
                "max_live_parameters",
                "max_reuse_distance",
                "module_granularity_threshold",
            )
        ],
        _Size,
    ),
}
_SECTIONS = {name[:at] for name in _MORE for at, sign in enumerate(name) if sign == "."} | {"torch_autocast"}
_SETTING = "engine.deepspeed"
_LINEAR = ["torch.nn.Linear", "pretrain.models.compute.compute_path.Convolution"]  # DeepSpeed asks for the very class


class EngineSettings(Settings):
    """How a step is computed. SGD as in the R(2+1)D paper (VMZ's Caffe2 code uses Nesterov)."""

    precision: Annotated[
        Precision,
        Field(
            description="number format of a step: bf16 and fp16 by torch's autocast, with fp32 weights and batch "
            "normalisation; fp16 with dynamic loss scaling"
        ),
    ] = "bf16"
    gradients: Annotated[
        Literal["fp32", "bf16"],
        Field(description="number format in which gradients are summed over ranks; bf16 needs precision=bf16"),
    ] = "fp32"
    zero: Annotated[
        Literal[0, 1, 2, 3],
        Field(
            description="ZeRO stage: 0: nothing is partitioned over ranks; 1: the optimizer's state; 2: gradients, "
            "too; 3: weights, too"
        ),
    ] = 1
    optimizer: Annotated[Literal["sgd", "adamw"], Field(description="rule by which weights are changed")] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1, description="optimizer=sgd: momentum")] = 0.9
    nesterov: Annotated[bool, Field(description="optimizer=sgd: whether the momentum is Nesterov's")] = True
    betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]],
        Field(description="optimizer=adamw: decay rates of the first and the second moment"),
    ] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0, description="optimizer=adamw: added to the denominator")] = 1e-8
    weight_decay: Annotated[
        float,
        Field(ge=0, description="weight decay of convolutions, scales of batch normalisation, and the classifier"),
    ] = 1e-4
    clip_gradient: Annotated[
        float, Field(ge=0, description="norm to which a larger gradient is scaled down; 0: gradients are not clipped")
    ] = 0.0
    average: Annotated[
        float | None,
        Field(
            gt=0,
            lt=1,
            description="decay a step of a moving average of the weights, e.g. 0.9999; null: no average is kept",
        ),
    ] = None
    compute_path: Annotated[
        Literal["auto", "plain", "channels-last", "planar", "rows"],
        Field(
            description="how the network computes, all paths the same function; auto: the fastest, measured as a run "
            "begins"
        ),
    ] = "auto"
    recomputed: Annotated[
        Literal["auto", 0, 1, 2, 3, 4, 5],
        Field(
            description="how many of the first groups of layers are computed twice, which saves memory; "
            "auto: none, or with compute_path=auto as many as the clips need to fit"
        ),
    ] = "auto"
    cuda_graph: Annotated[
        bool,
        Field(
            description="launch the network's micro-steps on a GPU as one CUDA graph, not kernel by kernel; "
            "it keeps the memory of a pass for itself"
        ),
    ] = True
    deepspeed: dict[str, Any] = Field(
        default_factory=dict,
        description="more of DeepSpeed's configuration, without what the other settings of the engine decide",
    )

    @property
    def half(self) -> bool:
        """Whether convolutions are computed in half precision."""
        return self.precision != "fp32"

    @model_validator(mode="after")
    def _fits(self) -> EngineSettings:
        if self.gradients == "bf16" and self.precision != "bf16":
            raise ValueError(
                f"engine.gradients is bf16 and engine.precision {self.precision}; "
                "set engine.precision=bf16 or engine.gradients=fp32"
            )
        try:  # before a GPU is taken
            _words(self, 0)
        except UserError as error:
            raise ValueError(f"{error.what}; {error.remedy}") from None
        return self


def deepspeed_config(
    settings: EngineSettings, batch: int, micro_steps: int, world_size: int, parameters: int
) -> dict[str, Any]:
    """DeepSpeed's configuration of these settings: each rank accumulates `micro_steps` of `batch` clips a step."""
    return {
        "train_micro_batch_size_per_gpu": batch,
        "gradient_accumulation_steps": micro_steps,
        "train_batch_size": batch * micro_steps * world_size,
        "gradient_clipping": 0.0,  # by default 1; the engine clips, by the norm that it knows anyway
        **_words(settings, parameters),
    }


@contextlib.contextmanager
def explains_deepspeed_refusals(settings: EngineSettings) -> Iterator[None]:
    """Raises UserError for what DeepSpeed refuses as it starts, where something was added to its configuration.

    The checks of `EngineSettings` know single values: not what goes together, nor what is installed and writable.
    """
    try:
        yield
    except Exception as error:
        from deepspeed.runtime.config import DeepSpeedConfigError

        kinds = (DeepSpeedConfigError, AssertionError, ValueError, ImportError, OSError)
        if not settings.deepspeed or not isinstance(error, kinds):
            raise
        what = f"DeepSpeed does not start with what is added to its configuration: {error}"
        raise UserError(what, _SETTING, f"correct it, or take it out: {', '.join(settings.deepspeed)}") from error


def _words(settings: EngineSettings, parameters: int) -> dict[str, Any]:
    """All but the batch and the clipping. Raises UserError where `settings.deepspeed` contradicts the others."""
    low = settings.gradients == "bf16"
    ours: dict[str, Any] = {
        # DeepSpeed allocates a whole bucket, by default 2 GB, however small the network is.
        "zero_optimization": {"stage": settings.zero, "reduce_bucket_size": min(parameters, 5 * 10**8)},
        "zero_allow_untested_optimizer": True,
        # Without ZeRO all gradients are of one type on the way, with it those of these layers.
        "communication_data_type": "bf16" if low and not settings.zero else "fp32",
        "torch_autocast": {
            "enabled": settings.half,
            "dtype": {"fp16": "float16"}.get(settings.precision, "bfloat16"),
            "lower_precision_safe_modules": _LINEAR if low else [],
        },
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
        # By default it waits for the whole device in every forward pass and every step.
        "timers": {"throughput": {"enabled": False}},
    }
    return _merged(ours, settings.deepspeed)


def _merged(ours: dict[str, Any], theirs: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Our configuration and what is added to it; sizes and prints may be set anew, what we have a word for may not."""
    merged = dict(ours)
    for key, value in theirs.items():
        name = f"{path}{key}"
        setting = f"{_SETTING}.{name} is {value!r}"
        within = list(_prefixes(name))
        word = next((_OURS[above] for above in within if above in _OURS), None)
        reason = next((_CANNOT[above] for above in within if above in _CANNOT), None)
        if name in _SECTIONS:
            if not isinstance(value, dict):
                raise UserError(setting, _SETTING, "write a section there")
            merged[key] = _merged(ours.get(key, {}), value, f"{name}.")
        elif reason is not None:
            raise UserError(f"{setting}, which does not go with this engine: {reason}", _SETTING, "take it out")
        elif word is not None:
            if key not in ours or ours[key] != value:
                here = f", and {ours[key]!r} by the other settings" if key in ours else ""
                raise UserError(setting + here, _SETTING, f"take it out, and set {word}")
        else:
            _require_known(name, value, setting)
            merged[key] = value
    return merged


def _require_known(name: str, value: Any, setting: str) -> None:
    if name not in _MORE:
        near = difflib.get_close_matches(name, [*_MORE, *_SECTIONS], n=1)
        remedy = f"take it out, or did you mean {near[0]}?" if near else "take it out"
        raise UserError(f"{setting}, and this engine uses no such setting of DeepSpeed's", _SETTING, remedy)
    try:  # strictly: DeepSpeed takes some of them as they are, the word "false" for a yes
        TypeAdapter(_MORE[name]).validate_python(value, strict=True)
    except ValidationError as error:
        message = error.errors(include_url=False)[0]["msg"]
        raise UserError(setting, _SETTING, message[0].lower() + message[1:]) from None


def _prefixes(name: str) -> Iterator[str]:
    """The dotted name itself, then what it lies in."""
    while name:
        yield name
        name = name.rpartition(".")[0]
