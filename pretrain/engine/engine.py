"""A DeepSpeed engine from a run's settings: precision, ZeRO, lanes by accumulation, whole-tensor state."""

import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import nn

from pretrain import metrics
from pretrain.engine.world import World
from pretrain.models import count
from pretrain.models.batchnorm import commit_statistics, discard_statistics, synchronise
from pretrain.models.groups import parameter_groups
from sharding.settings import Settings

log = logging.getLogger("reelscale")

_MOMENTUM = "momentum_buffer"


class EngineSettings(Settings):
    """How a step is computed. SGD as in the R(2+1)D paper (VMZ's Caffe2 code uses Nesterov)."""

    precision: Annotated[
        Literal["fp32", "bf16"], Field(description="bf16: torch_autocast, fp32 weights, BN and gradient sums")
    ] = "bf16"
    zero: Annotated[Literal[0, 1, 2], Field(description="ZeRO stage")] = 1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = True
    weight_decay: Annotated[float, Field(ge=0, description="on convolution, BN-scale and classifier weights")] = 1e-4
    clip_gradient: Annotated[float, Field(ge=0, description="largest gradient norm; 0 for none")] = 0.0
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


def deepspeed_config(
    settings: EngineSettings, batch: int, passes: int, world_size: int, parameters: int
) -> dict[str, Any]:
    """The engine's settings in DeepSpeed's words: `passes` of `batch` clips are accumulated on each rank."""
    return {
        "train_micro_batch_size_per_gpu": batch,
        "gradient_accumulation_steps": passes,
        "train_batch_size": batch * passes * world_size,
        "gradient_clipping": settings.clip_gradient,
        # DeepSpeed allocates a whole bucket, by default 2 GB, however small the network is.
        "zero_optimization": {"stage": settings.zero, "reduce_bucket_size": min(parameters, 5 * 10**8)},
        "zero_allow_untested_optimizer": True,
        # An empty list keeps the gradient sums in fp32 under autocast.
        "torch_autocast": {
            "enabled": settings.precision == "bf16",
            "dtype": "bfloat16",
            "lower_precision_safe_modules": [],
        },
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


class Engine:
    """One rank's share of a training step: `forward`, `backward` and `step` once for each of its passes.

    A pass is a lane. With `together` it is all of the rank's lanes, which are then normalised with those of the
    other ranks as one batch.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: EngineSettings,
        world: World,
        lanes: int,
        lane_batch: int,
        together: bool = False,
    ) -> None:
        deepspeed = _deepspeed(world)
        self.world = world
        share = lanes // world.size
        batch, passes = (lane_batch * share, 1) if together else (lane_batch, share)
        if together:
            synchronise(model, world.gather)
        optimizer = torch.optim.SGD(
            parameter_groups(model, settings.weight_decay, {}),
            lr=1.0,
            momentum=settings.momentum,
            nesterov=settings.nesterov and settings.momentum > 0,
        )
        self.model = model
        self._zero, self._half = settings.zero, settings.precision == "bf16"
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=model,
            optimizer=optimizer,
            config=deepspeed_config(settings, batch, passes, world.size, count.parameters(model)),
            dist_init_required=False,
        )
        if self._zero:
            self._make_momentum()

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes] in fp32 of normalised clips [N, C, T, H, W]."""
        return self._engine(video).float()

    def predict(self, video: torch.Tensor) -> torch.Tensor:
        """Logits [N, classes] in fp32, in the training's precision and without gradients; the mode is the caller's."""
        with torch.no_grad(), torch.autocast(self.world.device.type, torch.bfloat16, enabled=self._half):
            return self.model(video).float()

    def backward(self, loss: torch.Tensor) -> None:
        """Add the gradients of one pass's mean loss."""
        self._engine.backward(loss)

    def step(self) -> bool:
        """Take the optimizer's step once all passes are in (True then); BN statistics move with it.

        A step that ZeRO leaves out because a gradient is not finite leaves the statistics alone too.
        """
        last = bool(self._engine.is_gradient_accumulation_boundary())
        self._engine.step()
        if last and self._engine.was_step_applied():
            commit_statistics(self.model, self.world.sum_)
        elif last:
            discard_statistics(self.model)
            metrics.SKIPPED_STEPS.inc()
            log.warning("a step was left out: a gradient is not finite")
        return last

    def set_learning_rate(self, rate: float) -> None:
        """Set the rate of the coming step for every parameter group."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate

    def gradient_norm(self) -> float:
        """Norm of the last step's averaged gradients; nan where DeepSpeed kept none (stage 0 without clipping)."""
        norm = self._engine.get_global_grad_norm()
        return float("nan") if norm is None else float(norm)

    def momentum(self) -> dict[str, torch.Tensor]:
        """Whole momentum tensors by parameter name, on the CPU; none before the first step of ZeRO-0.

        A collective: every rank calls it.
        """
        from deepspeed.utils import safe_get_full_optimizer_state

        states = {}
        for name, parameter in self.model.named_parameters():
            if self._zero:
                value = safe_get_full_optimizer_state(parameter, _MOMENTUM)
            else:
                value = self._optimizer.state.get(parameter, {}).get(_MOMENTUM)
            if value is not None:
                states[name] = value.detach().cpu().clone()
        return states

    def load_momentum(self, states: dict[str, torch.Tensor]) -> None:
        """Take over whole momentum tensors, whatever world size or ZeRO stage wrote them."""
        from deepspeed.utils import safe_set_full_optimizer_state

        for name, parameter in self.model.named_parameters():
            if name not in states:
                continue
            value = states[name].to(parameter.device)
            if self._zero:
                safe_set_full_optimizer_state(parameter, value, _MOMENTUM)
            else:
                self._optimizer.state[parameter][_MOMENTUM] = value.clone()

    def _make_momentum(self) -> None:
        """Give each flat partition zero momentum, which SGD's first step takes as none, and link the parameters.

        Left to itself DeepSpeed links after the first group's first step, when the other groups have no state yet.
        """
        inner = self._optimizer.optimizer
        for group in inner.param_groups:
            for partition in group["params"]:
                inner.state[partition][_MOMENTUM] = torch.zeros_like(partition)
        self._optimizer._lazy_init_hp_params_optimizer_state()


def _deepspeed(world: World) -> Any:
    """Import DeepSpeed, quiet, on the CPU where there is no GPU."""
    if world.device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
    # DeepSpeed calls ninja by name; an environment that is not activated keeps it beside its Python.
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    os.environ.setdefault("DS_LOG_LEVEL", "error")
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"torch\.distributed")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # An operation for inference that DeepSpeed compiles at the first start on a CPU: a start killed while compiling
    # leaves a lock on which every later one waits for ever, and training never calls it.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_init_required=False, verbose=False)
    return deepspeed
