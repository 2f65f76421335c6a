"""Part of the models benchmark: the contenders, each a training step, and what one of them takes.

Ours is timed as a run computes it: by the engine, after DeepSpeed has made the weights its own. `network alone` is
the network without it, as torch's own optimizer trains it. The peers are R(2+1)D as anyone writes it, with all that
torch offers for it: autocast, channels_last_3d, torch.compile, a fused optimizer.
"""

from __future__ import annotations

import gc
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from pretrain.engine.autotune.choose import AutotuneResult, autotune, candidate_names
from pretrain.engine.deepspeed_config import EngineSettings
from pretrain.engine.distributed import World, leave_world, start_world
from pretrain.engine.engine import Engine
from pretrain.engine.precision import MicroStep, Precision, autocast
from pretrain.models.compute.batchnorm import commit_statistics
from pretrain.models.compute.compute_path import COMPUTE_PATHS
from pretrain.models.groups import parameter_groups
from pretrain.models.network import VideoNetwork
from pretrain.models.zoo import ModelSettings, build_model
from tests.benchmarks.support.busy import Taken, shares, taken
from tests.benchmarks.support.plain import PlainR2Plus1D

CLASSES = 400
RATE, DECAY, MOMENTUM = 1e-3, 1e-4, 0.9


@dataclass(frozen=True)
class Case:
    """One comparison: a network, its clips, precision and threads (0: as many as there are)."""

    model: ModelSettings
    frames: int
    size: int
    batch: int
    half: bool
    threads: int = 0

    @property
    def name(self) -> str:
        """As the table has it."""
        threads = f", {self.threads} threads" if self.threads else ""
        return (
            f"{self.model.name}-{self.model.depth} ×{self.model.width:g}, {self.batch}×{self.frames}×{self.size}², "
            f"{self.precision}{threads}"
        )

    @property
    def precision(self) -> Precision:
        """Of the convolutions."""
        return "bf16" if self.half else "fp32"

    @property
    def clip(self) -> tuple[int, int, int, int]:
        """The shape of one, C T H W."""
        return self.model.in_channels, self.frames, self.size, self.size


@dataclass(frozen=True)
class Contender:
    """One of the compared: ours by a compute path, through the engine or not; the plain network where that is empty."""

    compute_path: str = ""
    engine: bool = False
    channels_last: bool = False
    compiled: bool = False

    @property
    def name(self) -> str:
        """As the table has it."""
        if self.compute_path:
            return f"ours, {self.compute_path}" + ("" if self.engine else ", network alone")
        return ("plain channels last" if self.channels_last else "plain conv3d") + ", compiled" * self.compiled

    @property
    def order(self) -> torch.memory_format:
        """Of the clips that it is given; a run's lie as the decoder's frames do."""
        last = self.channels_last or (self.compute_path and not self.engine)
        return torch.channels_last_3d if last else torch.contiguous_format


def fresh_network(case: Case, device: torch.device) -> VideoNetwork:
    """The same weights for every contender."""
    torch.manual_seed(0)
    return build_model(case.model, CLASSES, case.frames, case.size).to(device)


def plain_network(model: VideoNetwork, settings: ModelSettings) -> PlainR2Plus1D:
    """The same network, with the same weights, as anyone writes it."""
    assert settings.depth is not None
    plain = PlainR2Plus1D(settings.depth, model.get_submodule(model.head).out_features, settings.width)  # type: ignore[arg-type]
    plain.load_state_dict(model.state_dict())
    return plain.to(next(model.parameters()))


class Step:
    """A training step of one contender: forward, backward, SGD with momentum, running statistics."""

    def __init__(
        self, contender: Contender, model: VideoNetwork, case: Case, world: World, choice: AutotuneResult | None
    ) -> None:
        """`model`: a network of the contender's own. `choice`: which layers are planar, as a run measured it."""
        device = world.device
        self._half, self._device = case.precision, device
        draw = torch.Generator().manual_seed(0)
        clips = torch.randn((case.batch, *case.clip), generator=draw).to(device)
        self._clips = clips.contiguous(memory_format=contender.order)
        self._targets = torch.randint(CLASSES, (case.batch,), generator=draw).to(device)
        self.take: Callable[[], None] = self._by_torch
        if contender.compute_path:
            model.use(choice.by_name(contender.compute_path) if choice else COMPUTE_PATHS[contender.compute_path])
        if contender.engine:
            settings = EngineSettings(precision=case.precision, weight_decay=DECAY, momentum=MOMENTUM)
            self._engine = Engine(model.train(), settings, world, lanes=1, lane_batch=case.batch)
            self.take = self._by_engine
            return
        network: nn.Module = model if contender.compute_path else plain_network(model, case.model)
        if not contender.compute_path:
            network = network.to(memory_format=contender.order)  # type: ignore[call-overload]
        groups = parameter_groups(network, DECAY, {})
        fused = True if device.type == "cuda" and not contender.compute_path else None
        self._sgd = torch.optim.SGD(groups, lr=RATE, momentum=MOMENTUM, nesterov=True, fused=fused)
        self._network = torch.compile(network.train()) if contender.compiled else network.train()

    def _by_torch(self) -> None:
        self._sgd.zero_grad(set_to_none=True)
        with autocast(self._device, self._half):
            logits = self._network(self._clips)
        F.cross_entropy(logits.float(), self._targets).backward()
        self._sgd.step()
        commit_statistics(self._network)

    def _by_engine(self) -> None:
        self._engine.set_learning_rate(RATE)
        loss = F.cross_entropy(self._engine.forward(self._clips), self._targets)
        self._engine.backward(loss)
        self._engine.step()


def chosen(case: Case, device: torch.device) -> Iterator[str]:
    """What a run measures as it begins, as JSON: the compute path that it takes, and which layers are planar."""
    _threads(case)
    start_world()  # with cuDNN's trials, as a run has them
    training = MicroStep(case.clip, case.batch, case.precision)
    yield autotune(fresh_network(case, device), training, device, candidate_names(device)).model_dump_json()
    leave_world()


def rows(
    contenders: Sequence[Contender], case: Case, choice: str, rounds: int, device: torch.device
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each contender's name and figures: in turns on a CPU, where only such times compare, on a GPU one by one.

    `choice`: what `chosen` gave, or nothing. Imports, compiling, DeepSpeed's start and cuDNN's trials are not timed.
    """
    _threads(case)
    world = start_world()
    known = AutotuneResult.model_validate(json.loads(choice)) if choice else None
    for together in [contenders] if device.type == "cpu" else [[each] for each in contenders]:
        yield from _timed(together, case, known, rounds, world)
    leave_world()


def _timed(
    contenders: Sequence[Contender], case: Case, choice: AutotuneResult | None, rounds: int, world: World
) -> Iterator[tuple[str, dict[str, Any]]]:
    device = world.device
    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    steps: dict[str, Step] = {}
    for contender in contenders:
        try:
            step = Step(contender, fresh_network(case, device), case, world, choice)
            for _ in range(2 if device.type == "cpu" else 6):
                taken(step.take, device)
            steps[contender.name] = step
        except Exception as error:  # out of memory, or no compiler: it is told in the table
            yield contender.name, {"failed": str(error).partition("\n")[0][:100] or repr(error)}
    times: dict[str, list[Taken]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            times[name].append(taken(step.take, device))
    for name, step in steps.items():
        seconds = [each.seconds for each in times[name]]
        row = {"seconds": min(seconds), "median_seconds": statistics.median(seconds)}
        if device.type == "cuda":
            row["peak_bytes"] = torch.cuda.max_memory_allocated()
        yield name, row | shares(step.take, device, times[name])


def _threads(case: Case) -> None:
    if case.threads:
        torch.set_num_threads(case.threads)
