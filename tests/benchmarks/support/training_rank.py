"""Part of the training benchmark: a rank of what training is compared with, told as a run tells itself.

python -m tests.benchmarks.support.training_rank MODE RECIPE FOLDER STEPS, started as torchrun starts a rank. The modes:
model: our network's training step, by the engine, on clips that lie ready; loader: clips and nothing else;
plain: DDP and autocast around R(2+1)D as anyone writes it, with our loader; exchange: the sum over the ranks of a
step's gradients.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from cluster.jobs.training import TrainingJob
from cluster.terminal.output import end_process
from pretrain.data.device.transforms import network_input
from pretrain.data.loader import ClipBatch, Loader
from pretrain.data.sources import Sources, open_sources, order_of
from pretrain.engine.autotune.choose import evaluation_compute_path
from pretrain.engine.distributed import World, leave_world, start_world
from pretrain.engine.engine import Engine
from pretrain.losses import loss as loss_of
from pretrain.models.count import parameters
from pretrain.models.groups import parameter_groups
from pretrain.models.network import seed_dropout
from pretrain.models.zoo import build_model
from pretrain.settings import TrainSettings
from pretrain.training.setup import lanes_of
from sharding.base.settings import load_settings
from tests.benchmarks.support.plain import PlainR2Plus1D

Step = Callable[[], float]  # takes one; seconds that it waited for clips


class Contender:
    """What every mode has: the run's settings, its share of the lanes, its samples."""

    def __init__(self, job: TrainSettings, folder: Path, world: World) -> None:
        self.job, self.folder, self.world = job, folder, world
        self.half = job.engine.precision == "bf16"
        self.lanes = lanes_of(world, job.lanes)
        self.sources: Sources = open_sources(job.data)
        self.classes = len(self.sources.classes)

    def loader(self) -> Loader:
        """As the trainer has it."""
        job = self.job
        order = order_of(self.sources, job.data, job.seed, job.lanes, job.lane_batch)
        clip, settings, device = job.data.clip, job.data.loader, self.world.device
        return Loader(self.sources, order, clip, settings, self.lanes, device, reading=job.data.reading)

    def autocast(self) -> AbstractContextManager[object]:
        """bf16 where the run is."""
        return torch.autocast(self.world.device.type, torch.bfloat16, enabled=self.half)

    def optimizer(self, network: nn.Module) -> torch.optim.Optimizer:
        """SGD as the run's."""
        engine = self.job.engine
        groups = parameter_groups(network, engine.weight_decay, {})
        return torch.optim.SGD(groups, lr=1e-3, momentum=engine.momentum, nesterov=engine.nesterov)


def model_step(contender: Contender) -> Step:
    """Our network on clips that lie ready, by the engine as the trainer drives it, with every pass of a step."""
    job, clip, world = contender.job, contender.job.data.clip, contender.world
    network = build_model(job.model, contender.classes, clip.frames, clip.crop).to(world.device).train()
    path = evaluation_compute_path(contender.folder, job.engine.compute_path, world.device)
    if job.engine.recomputed != "auto":
        path = replace(path, recomputed=job.engine.recomputed)
    network.use(path)
    engine = Engine(network, job.engine, world, job.lanes, job.lane_batch, job.together, job.schedule.rates)
    numbers = [contender.lanes] if job.together else [[lane] for lane in contender.lanes]
    clips = job.lane_batch * len(numbers[0])
    video = torch.randn(clips, job.model.in_channels, clip.frames, clip.crop, clip.crop, device=world.device)
    targets = torch.eye(contender.classes, device=world.device)[torch.arange(clips) % contender.classes]

    def step() -> float:
        engine.set_learning_rate(1e-3)
        for lanes in numbers:
            seed_dropout(engine.model, lanes, world.device)
            engine.backward(loss_of(job.loss, engine.forward(video), targets))
            engine.step()
        return 0.0

    return step


def loader_step(contender: Contender) -> Step:
    """Clips up to the network's input, which lies in the same memory each time."""
    steps, clip = iter(contender.loader()), contender.job.data.clip
    video: Tensor | None = None

    def step() -> float:
        nonlocal video
        for clips in next(steps):
            video = network_input(clips.planes, clip, out=video)
        return 0.0

    return step


def plain_step(contender: Contender) -> Step:
    """DDP, autocast and the plain network, each lane a pass of it; recomputed where the run's is."""
    job, clip, device = contender.job, contender.job.data.clip, contender.world.device
    assert job.model.name == "r2plus1d" and job.model.depth is not None
    recomputed = job.engine.recomputed not in ("auto", 0)
    inner = Recomputed if recomputed else PlainR2Plus1D
    order = torch.channels_last_3d if device.type == "cuda" else torch.contiguous_format
    plain = inner(job.model.depth, contender.classes, job.model.width).to(device).to(memory_format=order)  # type: ignore[call-overload]
    network = DistributedDataParallel(plain, static_graph=recomputed)
    optimizer = contender.optimizer(plain)
    loader = contender.loader()
    steps = iter(loader)
    video: Tensor | None = None

    def one_pass(clips: ClipBatch) -> None:
        nonlocal video
        video = network_input(clips.planes, clip, out=video)
        with contender.autocast():
            logits = network(video.contiguous(memory_format=order))
        (F.cross_entropy(logits.float(), clips.targets) / len(contender.lanes)).backward()

    def step() -> float:
        before = loader.stats.wait_seconds
        optimizer.zero_grad(set_to_none=True)
        *first, last = next(steps)
        for clips in first:
            with network.no_sync():
                one_pass(clips)
        one_pass(last)
        optimizer.step()
        return loader.stats.wait_seconds - before

    return step


class Recomputed(PlainR2Plus1D):
    """The plain network, whose stages are computed again in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        for stage in (self.stem, self.layer1, self.layer2, self.layer3, self.layer4):
            x = checkpoint(stage, x, use_reentrant=False)
        return self.fc(self.avgpool(x).flatten(1))


def exchange_step(contender: Contender) -> Step:
    """All gradients in fp32, summed over the ranks."""
    job, clip = contender.job, contender.job.data.clip
    with torch.device("meta"):
        count = parameters(build_model(job.model, contender.classes, clip.frames, clip.crop))
    gradients = torch.zeros(count, device=contender.world.device)

    def step() -> float:
        contender.world.sum_(gradients)
        return 0.0

    return step


STEPS = {"model": model_step, "loader": loader_step, "plain": plain_step, "exchange": exchange_step}


def timed(mode: str, contender: Contender, steps: int) -> None:
    """Take steps; rank 0 tells of every `log_steps` in metrics.jsonl, as if all ranks were as fast as it."""
    job, device = contender.job, contender.world.device
    context = torch.no_grad() if mode == "loader" else nullcontext()
    with context:
        step, begin, waited = STEPS[mode](contender), time.perf_counter(), 0.0
        for number in range(1, steps + 1):
            waited += step()
            if number % job.log_steps or contender.world.rank:
                continue
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            seconds = time.perf_counter() - begin
            values = {
                "step": number,
                "clips_per_second": job.log_steps * job.batch / seconds,
                "data_wait_ratio": waited / seconds,
            }
            with (contender.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"event": "train", **values}) + "\n")
            begin, waited = time.perf_counter(), 0.0


def main() -> None:
    """One rank."""
    mode, recipe, folder, steps = sys.argv[1:]
    job = load_settings(TrainingJob, recipe).train
    world = start_world()
    torch.manual_seed(job.seed)
    timed(mode, Contender(job, Path(folder), world), int(steps))
    world.barrier()
    leave_world()
    end_process(0)


if __name__ == "__main__":
    main()
