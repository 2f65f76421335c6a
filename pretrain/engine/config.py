"""The engine's settings, and what they are in DeepSpeed's words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from pretrain.engine.precision import Precision
from sharding.errors import UserError
from sharding.settings import Settings

_OURS = {  # what says it in our settings, by DeepSpeed's key; of sections named whole, the parts too
    "train_micro_batch_size_per_gpu": "lane_batch",
    "gradient_accumulation_steps": "lanes",
    "train_batch_size": "lanes, lane_batch",
    "gradient_clipping": "engine.clip_gradient",
    "zero_optimization.stage": "engine.zero",
    "zero_allow_untested_optimizer": "engine.optimizer",
    "optimizer": "engine.optimizer",
    "scheduler": "schedule",
    "fp16": "engine.precision",
    "bf16": "engine.precision",
    "amp": "engine.precision",
    "torch_autocast.lower_precision_safe_modules": "engine.gradients",
    "torch_autocast": "engine.precision",
    "communication_data_type": "engine.gradients",
}
_LINEAR = ["torch.nn.Linear", "pretrain.models.paths.Convolution"]  # DeepSpeed asks for the very class


class EngineSettings(Settings):
    """How a step is computed. SGD as in the R(2+1)D paper (VMZ's Caffe2 code uses Nesterov)."""

    precision: Annotated[
        Precision,
        Field(description="bf16, fp16: torch_autocast, fp32 weights and BN; fp16 with dynamic loss scaling"),
    ] = "bf16"
    gradients: Annotated[
        Literal["fp32", "bf16"], Field(description="what gradients are summed over ranks in; bf16 needs precision=bf16")
    ] = "fp32"
    zero: Annotated[
        Literal[0, 1, 2, 3],
        Field(description="ZeRO stage: what ranks share out: 1 optimizer state, 2 and gradients, 3 and weights"),
    ] = 1
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1, description="of sgd")] = 0.9
    nesterov: Annotated[bool, Field(description="of sgd")] = True
    betas: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]],
        Field(description="of adamw"),
    ] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0, description="of adamw")] = 1e-8
    weight_decay: Annotated[float, Field(ge=0, description="on convolution, BN-scale and classifier weights")] = 1e-4
    clip_gradient: Annotated[float, Field(ge=0, description="largest gradient norm; 0 for none")] = 0.0
    average: Annotated[
        float | None,
        Field(gt=0, lt=1, description="decay a step of a moving average of the weights, e.g. 0.9999; null: none"),
    ] = None
    path: Annotated[
        Literal["auto", "plain", "channels-last", "planar", "planar-padded", "planar-fused", "padded-fused"],
        Field(description="how the network computes, the same function; auto: the fastest, measured as a run begins"),
    ] = "auto"
    recomputed: Annotated[
        Literal["auto", 0, 1, 2, 3, 4, 5],
        Field(
            description="the first groups of layers to compute twice, which saves memory; "
            "auto: none, or where path is auto as many as the clips need to fit"
        ),
    ] = "auto"
    deepspeed: dict[str, Any] = Field(
        default_factory=dict, description="more of DeepSpeed's own configuration; what is set above is not set here"
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
    settings: EngineSettings, batch: int, passes: int, world_size: int, parameters: int
) -> dict[str, Any]:
    """The engine's settings in DeepSpeed's words: `passes` of `batch` clips are accumulated on each rank."""
    return {
        "train_micro_batch_size_per_gpu": batch,
        "gradient_accumulation_steps": passes,
        "train_batch_size": batch * passes * world_size,
        "gradient_clipping": 0.0,  # by default 1; the engine clips, by the norm that it knows anyway
        **_words(settings, parameters),
    }


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
    }
    return _merged(ours, settings.deepspeed)


def _merged(ours: dict[str, Any], theirs: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Our configuration and what is added to it; sizes and prints may be set anew, what we have a word for may not."""
    merged = dict(ours)
    for key, value in theirs.items():
        name = path + key
        word = next((_OURS[above] for above in _prefixes(name) if above in _OURS), None)
        if isinstance(ours.get(key), dict):
            if not isinstance(value, dict):
                raise UserError(f"engine.deepspeed.{name} is {value!r}", "engine.deepspeed", "write a section there")
            merged[key] = _merged(ours[key], value, f"{name}.")
        elif word is not None and (key not in ours or ours[key] != value):
            there = f"engine.deepspeed.{name} is {value!r}"
            here = f", and {ours[key]!r} by the other settings" if key in ours else ""
            raise UserError(there + here, "engine.deepspeed", f"take it out, and set {word}")
        else:
            merged[key] = value
    return merged


def _prefixes(name: str) -> Iterator[str]:
    """The dotted name itself, then what it lies in."""
    while name:
        yield name
        name = name.rpartition(".")[0]
