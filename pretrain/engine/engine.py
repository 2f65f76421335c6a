"""A DeepSpeed engine from a run's settings: precision, ZeRO, lanes by accumulation, whole-tensor state."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pretrain import metrics
from pretrain.engine.capture import Capture, capture_for
from pretrain.engine.cuda_graph import enable_cuda_graph
from pretrain.engine.deepspeed_config import EngineSettings, deepspeed_config, explains_deepspeed_refusals
from pretrain.engine.deepspeed_import import join_deepspeed
from pretrain.engine.distributed import World
from pretrain.engine.precision import HALF_DTYPES
from pretrain.engine.predictor import Predictor, blank_copy, buffers_of
from pretrain.engine.scaler import LossScale
from pretrain.engine.step_verdict import Judge, adamw, gradients_of, sgd
from pretrain.engine.zero_state import Partitions
from pretrain.models import count
from pretrain.models.compute.batchnorm import commit_statistics, synchronise
from pretrain.models.groups import parameter_groups
from pretrain.models.network import VideoNetwork

log = logging.getLogger("reelscale")

_NOTED = (
    "micro_steps",
    "global_steps",
    "global_samples",
    "skipped_steps",
    "_step_applied",
    "_is_gradient_accumulation_boundary",
)


@dataclass(frozen=True)
class EngineState:
    """All that training goes on from: whole tensors in host memory, whatever ZeRO stage and world size they are of.

    model: the network's state dict. optimizer: by "<state>:<parameter>", e.g. "momentum_buffer:fc.weight", for
    adamw "exp_avg:…", "exp_avg_sq:…", "step:…". average: the weights' moving average by parameter, {} without one.
    scaler: the loss scale and its counter, {} but for fp16.
    """

    model: dict[str, Tensor]
    optimizer: dict[str, Tensor]
    average: dict[str, Tensor]
    scaler: dict[str, float]


class Engine:
    """One rank's share of a training step: `forward`, `backward` and `step` once for each of its micro-steps.

    A micro-step is a lane. With `together` it is all of the rank's lanes, which are then normalised with those of the
    other ranks as one batch.

    A step whose loss or gradients are not finite on any rank is left out on all: weights, optimizer state, average
    and BN statistics stay as they are to the bit. The device does that by itself, and the host waits for nothing
    here, but under ZeRO 3, whose fetches of weights wait for each other. It reads `verdict` when it likes, and says
    so by `record_verdict`; before the next step in fp16, whose loss scale follows from it.
    """

    def __init__(
        self,
        model: nn.Module,
        settings: EngineSettings,
        world: World,
        lanes: int,
        lane_batch: int,
        together: bool = False,
        rates: Mapping[str, float] | None = None,
        capture: Capture | None = None,
    ) -> None:
        """`rates`: factors on the learning rate by part of the network, see `parameter_groups`.

        `capture`: what captures its micro-steps, in the place of the device's own CUDA graphs.
        """
        deepspeed = join_deepspeed(world.device)
        self.world, self.model, self.was_skipped = world, model, False
        self._settings, self._zero = settings, settings.zero
        self._half, self._scale = HALF_DTYPES[settings.precision], LossScale(settings.precision == "fp16")
        self._awaits_verdict = False
        if settings.zero == 3 and isinstance(model, VideoNetwork):
            # Its weights come layer by layer, and are gone again when gradients come: none is cast before its layer.
            model.use(replace(model.compute_path, cast_at_once=False))
        blank = blank_copy(model, settings)
        share = lanes // world.size
        batch, self._micro_steps = (lane_batch * share, 1) if together else (lane_batch, share)
        self._together = together
        if together:
            synchronise(model, world.gather)
        self._trained = [value for value in model.parameters() if value.requires_grad]
        optimizer = _optimizer(model, settings, world.device, rates or {})
        with explains_deepspeed_refusals(settings):
            self._engine, self._optimizer, _, _ = deepspeed.initialize(
                model=model,
                optimizer=optimizer,
                config=deepspeed_config(settings, batch, self._micro_steps, world.size, count.parameters(model)),
                dist_init_required=False,
            )
        # DeepSpeed's (0.19) own scalers judge a part of the gradients at a time, and under ZeRO 1 to 3 are stuck.
        self._engine.torch_autocast_z0_gradscaler = None
        if self._zero:
            self._optimizer.torch_autocast_gradscaler = None
        self._judge = Judge(self._optimizer, self._zero, world, settings.clip_gradient, self._loss_scale)
        self._partitions = Partitions(model, self._optimizer, self._zero, settings.average)
        self.predictor = Predictor(model, blank, self._partitions, settings, world)
        self._graphed = enable_cuda_graph(model, settings, world, capture or capture_for(world.device))

    def forward(self, video: Tensor) -> Tensor:
        """Logits [N, classes] in fp32 of normalised clips [N, C, T, H, W]."""
        logits: Tensor = self._engine(video)
        return logits.float()

    @property
    def input_buffer(self) -> Tensor | None:
        """Where clips may lie that `forward` then need not copy, see `GraphedFeatures`; None without a graph."""
        return self._graphed.input_buffer if self._graphed else None

    @property
    def forward_waits(self) -> bool:
        """Whether a forward pass in training waits for other ranks: for partitions of weights, or for statistics."""
        return self.world.size > 1 and (self._zero == 3 or self._together)

    @property
    def was_overflow(self) -> bool:
        """Whether the step recorded last was left out at an fp16 loss scale above 1, which is still to be found."""
        return self.was_skipped and self._half is torch.float16 and self._scale.factor >= 1

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-step's mean loss. One that is not finite makes them NaN, in all ranks' sum."""
        awaited = self._half is torch.float16 and self._awaits_verdict
        assert not awaited, "the last step's verdict says what scale comes next"
        scale = self._loss_scale()
        if self._zero and self._half is torch.float16:
            self._optimizer.override_loss_scale(scale)  # by which DeepSpeed then multiplies, and divides in its step
        # A finite loss times 1 is the same to the bit.
        factor = torch.where(loss.detach().isfinite(), 1.0 if self._zero else scale, float("nan"))
        self._engine.backward(loss * factor)

    def step(self) -> bool:
        """Take the optimizer's step once all micro-steps are in (True then); BN statistics and average move with it.

        Unless `verdict` says that it was left out, on all ranks alike, which `record_verdict` is to be told.
        """
        if not self._engine.is_gradient_accumulation_boundary():
            self._engine.step()
            return False
        if not self._zero:
            self._judge.judge(gradients_of(self._trained))
        self._engine.step()
        finite = self.verdict[0] > 0
        commit_statistics(self.model, self.world.sum_, finite)
        self._partitions.follow(finite)
        self.predictor.forget()
        self._awaits_verdict = True
        return True

    @property
    def verdict(self) -> Tensor:
        """Of the last step, fp32 on the device: 1 if it was taken, 0 if left out; its gradients' norm before clipping.

        The norm is inf where it was left out, and nan before the first.
        """
        return self._judge.verdict

    def on_exchange(self, begin: Callable[[], object], end: Callable[[], object]) -> None:
        """Have these called before and after gradients are summed over the ranks, at the end of each backward pass."""
        exchange = self._engine.allreduce_gradients

        def marked(*arguments: Any, **options: Any) -> None:
            begin()
            exchange(*arguments, **options)
            end()

        self._engine.allreduce_gradients = marked

    @property
    def loss_scale(self) -> float | None:
        """What the coming step's loss is multiplied by in fp16; None in other precisions."""
        return self._scale.factor if self._half is torch.float16 else None

    def record_verdict(self, finite: bool) -> None:
        """Take note of a step's verdict on the host: in the loss scale, a metric and the log. Once a step, in order.

        `was_skipped` then says whether that step was left out.
        """
        self._awaits_verdict, self.was_skipped = False, not finite
        if not finite:
            if self.world.rank == 0:
                metrics.SKIPPED_STEPS.labels("overflow" if self.was_overflow else "not_finite").inc()
            scale = f" (loss scale {self._scale.factor:g})" if self._half is torch.float16 else ""
            log.warning("a step was left out: a loss or a gradient is not finite%s", scale)
        self._scale.after_step(finite)

    @contextmanager
    def unmoved(self) -> Iterator[None]:
        """Inside, any micro-step is a step's last; afterwards all on this rank is as before, to the bit. No collective.

        An error inside leaves an engine that is of no further use.
        """
        # What DeepSpeed (0.19) counts and notes of a step; the optimizer has a copy of the boundary, which each
        # backward pass sets anew.
        noted = {name: getattr(self._engine, name) for name in _NOTED}
        noted_here = self.was_skipped, self._awaits_verdict
        scale, buffers, verdict = vars(self._scale).copy(), list(self.model.buffers()), self._judge.verdict
        kept = [buffer.to("cpu", copy=True) for buffer in buffers]
        device = self.world.device
        with torch.random.fork_rng([device] if device.type == "cuda" else []), self._partitions.unmoved():
            self._engine.set_gradient_accumulation_boundary(True)
            yield
        for buffer, before in zip(buffers, kept, strict=True):
            buffer.copy_(before)
        for name, value in noted.items():
            setattr(self._engine, name, value)
        self.was_skipped, self._awaits_verdict = noted_here
        vars(self._scale).update(scale)
        self._judge.verdict = verdict
        self.predictor.forget()

    def close(self) -> None:
        """Give the memory back: of the graph, and of what DeepSpeed hangs on the weights. The engine is of no use then.

        DeepSpeed's (0.19) hooks on weights hold its optimizer, which holds the weights: no collector sees that circle.
        Under ZeRO 3 what it hangs on modules stays, and with it a rank's part of the weights.
        """
        if self._graphed:
            self._graphed.close()
        self._engine.destroy()
        self.predictor.forget()

    def set_learning_rate(self, rate: float) -> None:
        """Set the rate of the coming step: for every parameter group, times the group's own scale."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group.get("scale", 1.0)

    def state(self) -> EngineState:
        """All that training goes on from, in copies of their own. A collective; the tensors are on rank 0 alone."""
        weights, buffers = self._kept(self._partitions.weights()), self._kept(buffers_of(self.model))
        whole = {**weights, **buffers}
        return EngineState(
            model={name: whole[name] for name in self.model.state_dict() if name in whole},
            optimizer=self._kept(self._partitions.optimizer()),
            average=self._kept(self._partitions.average()),
            scaler=self._scale.state(),
        )

    def load(self, state: EngineState) -> None:
        """Take over whole tensors, on every rank, whatever world size or ZeRO stage wrote them.

        An average that the state has none of begins at its weights. Raises UserError for another optimizer's state.
        """
        self._partitions.set_weights(state.model)
        with torch.no_grad():
            for name, buffer in buffers_of(self.model):
                buffer.copy_(state.model[name])
        self._partitions.set_optimizer(state.optimizer)
        if state.average:
            self._partitions.set_average(state.average)
        self._scale.load(state.scaler)
        self.predictor.forget()

    def _kept(self, tensors: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Copies in rank 0's host memory; every rank goes through all, since whole tensors are gathered on the way."""
        return {name: value.detach().to("cpu", copy=True) for name, value in tensors if self.world.rank == 0}

    def _loss_scale(self) -> float:
        """The factor on a micro-step's loss. DeepSpeed divides by their number, of which fp16 is to notice nothing.

        So a lane's gradients in half precision, and whether they overflow, are the same on any number of ranks.
        """
        return self._scale.factor * self._micro_steps if self._half is torch.float16 else 1.0


def _optimizer(
    model: nn.Module, settings: EngineSettings, device: torch.device, rates: Mapping[str, float]
) -> torch.optim.Optimizer:
    groups = parameter_groups(model, settings.weight_decay, rates)
    if settings.optimizer == "adamw":
        return adamw(groups, device, settings.betas, settings.eps)
    return sgd(groups, device, settings.momentum, settings.nesterov)
