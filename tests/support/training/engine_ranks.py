"""The ranks of the engine's tests: each runs its cases of `cases.json`, and rank 0 saves what came out of them."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode

from pretrain.engine.deepspeed_config import EngineSettings
from pretrain.engine.distributed import World, leave_world, start_world
from pretrain.engine.engine import Engine, EngineState
from pretrain.models.compute import bn_add_relu as normalise
from pretrain.models.compute.batchnorm import LaneBatchNorm
from pretrain.models.compute.compute_path import COMPUTE_PATHS
from pretrain.models.groups import parameter_groups
from pretrain.models.network import VideoNetwork
from pretrain.models.zoo import ModelSettings, build_model
from tests.support.training.forked_worlds import all_ranks_end_well

SIZES = (1, 2, 4)
SLOW = ("deepspeed.runtime.engine", "torch._dynamo", "torch._functorch.partitioners", "torch._inductor.compile_fx")
LANES, LANE_BATCH, CLASSES, RATE = 4, 4, 5, 0.01
MODEL = ModelSettings(depth=10, width=0.125)
BASELINES = {
    "p3d": ModelSettings(name="p3d", depth=26, width=0.125),
    "s3d": ModelSettings(name="s3d", width=0.0625),
    "lstm": ModelSettings(name="lstm", width=0.0625),
    "fused3d": ModelSettings(name="fused3d", width=0.0625),
}
FRAMES = {"fused3d": 10}  # of clips, of others 4


def network(relu: bool = False, seed: int = 11, baseline: str | None = None) -> VideoNetwork:
    """The same network for every case; without ReLUs, of which one that rounding turns moves gradients by far more."""
    torch.manual_seed(seed)
    model = build_model(BASELINES[baseline] if baseline else MODEL, CLASSES, FRAMES.get(baseline or "", 4))
    for layer in model.modules():
        if isinstance(layer, LaneBatchNorm):
            layer.relu &= relu
    return model


def lane_clips(step: int, lane: int, baseline: str | None = None) -> tuple[Tensor, Tensor]:
    """Made-up clips and targets of one lane at one step."""
    draw = torch.Generator().manual_seed(100 * step + lane)
    channels, frames = BASELINES[baseline].in_channels if baseline else 3, FRAMES.get(baseline or "", 4)
    video = torch.randn(LANE_BATCH, channels, frames, 24, 24, generator=draw) + lane
    return video, torch.randint(CLASSES, (LANE_BATCH,), generator=draw)


class Waits(TorchDispatchMode):
    """Counts what is a wait of the host on a GPU: values asked of a tensor, tensors of numbers, whole devices' ends."""

    count = 0
    waiting = (
        torch.ops.aten._local_scalar_dense.default,
        torch.ops.aten.lift_fresh.default,  # torch.tensor(number): a copy out of memory that is not pinned
        torch.ops.aten.nonzero.default,
        torch.ops.aten.masked_select.default,
    )

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func in self.waiting
        return func(*args, **(kwargs or {}))

    def __enter__(self) -> Any:
        from deepspeed.accelerator import get_accelerator

        self.device = get_accelerator()
        self.device.synchronize = self._synchronize
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        del self.device.synchronize

    def _synchronize(self, device: Any = None) -> None:
        self.count += 1


def run_case(case: dict[str, Any], world: World, folder: Path) -> dict[str, Any]:
    """Steps first..last of the case; the states after those in `kept`, and after the last."""
    first, last, lanes = case.get("first", 0), case["last"], case.get("lanes", LANES)
    start = torch.load(folder / "references.pt")[case["resumed"]][first] if "resumed" in case else None
    model = network(case.get("relu", False), 12 if start else 11, case.get("baseline"))
    if "compute_path" in case:
        model.use(replace(COMPUTE_PATHS[case["compute_path"]], recomputed=case.get("recomputed_groups", 2)))
    with mock.patch.object(normalise, "has_kernels", lambda device: case.get("kernels", False)):
        return run_steps(case, model, world, start, first, last, lanes)


def run_steps(
    case: dict[str, Any],
    model: VideoNetwork,
    world: World,
    start: dict[str, Any] | None,
    first: int,
    last: int,
    lanes: int,
) -> dict[str, Any]:
    """What `run_case` says, of a network that is ready."""
    together, baseline = case.get("together", False), case.get("baseline")
    batch = 2 if case.get("small") else LANE_BATCH
    engine = Engine(model, EngineSettings(**case["settings"]), world, lanes, batch, together)
    if start:
        engine.load(EngineState(**start))
    results: dict[str, Any] = {
        "offsets": {value.data_ptr() % 16 for value in model.parameters()},
        "norm": [],
        "taken": [],
        "dtypes": set(),
        "skipped": [],
        "waits": [],
    }
    results["states"] = {first: asdict(engine.state())}
    share = lanes // world.size
    for step in range(first, last):
        engine.set_learning_rate(RATE)
        clips = [lane_clips(step, lane, baseline) for lane in range(world.rank * share, (world.rank + 1) * share)]
        if case.get("small"):
            clips = [(video[:2, :, :, :16, :16].contiguous(), labels[:2]) for video, labels in clips]
        if step in case.get("pixels", []) and world.rank == world.size - 1:
            clips[-1][0][0, 0, 0, 0, 0] = torch.inf
        if together:
            clips = [(torch.cat([video for video, _ in clips]), torch.cat([labels for _, labels in clips]))]
        with Waits() if case.get("counted") else contextlib.nullcontext() as waits:
            for number, (video, labels) in enumerate(clips):
                logits = engine.forward(video)
                loss = functional.cross_entropy(logits, labels) * case.get("factor", 1.0)
                if step in case.get("losses", []) and world.rank == number == 0:
                    loss = loss + torch.inf  # whose gradients are finite
                engine.backward(loss)
                results["taken"].append(engine.step())
                results["dtypes"].add(str(logits.dtype))
        if waits:
            results["waits"].append(waits.count)
        finite, norm = engine.verdict.tolist()
        engine.record_verdict(finite == 1)
        results["norm"].append(norm)
        results["skipped"].append(engine.was_skipped)
        if step + 1 in [*case.get("kept", []), last]:
            results["states"][step + 1] = asdict(engine.state())
    if case.get("recomputed"):
        batches = [lane_clips(9, lane)[0] for lane in range(LANES)]
        engine.predictor.recompute_statistics(batches[world.rank :: world.size])
        results["recomputed"] = {name: value.clone() for name, value in model.named_buffers()}
    model.eval()
    for averaged in [False, True] if case["settings"].get("average") else [False]:
        clip = lane_clips(0, 0, baseline)[0]
        results["averaged" if averaged else "predicted"] = engine.predictor.predict(clip, averaged)
    return results


class PlainNorm(LaneBatchNorm):
    """torch's own normalisation in the place of ours."""

    def forward(self, input: Tensor, added: Tensor | None = None, zeros: int = 0) -> Tensor:
        """Normalised, plus `added`, through the ReLU where there is one."""
        output = nn.BatchNorm3d.forward(self, input)
        output = output if added is None else output + added
        return functional.relu(output) if self.relu else output


def plain_ddp(steps: int, world: World) -> dict[str, Tensor]:
    """A lane a rank by torch's own means: DDP, BatchNorm3d and SGD. The running statistics are the ranks' mean."""
    model = network(relu=True)
    for module in model.modules():
        if isinstance(module, LaneBatchNorm):
            module.__class__ = PlainNorm
    whole = DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = torch.optim.SGD(parameter_groups(model, 0.01, {}), lr=RATE, momentum=0.9, nesterov=True)
    for step in range(steps):
        video, labels = lane_clips(step, world.rank)
        optimizer.zero_grad()
        functional.cross_entropy(whole(video), labels).backward()
        optimizer.step()
    for name, buffer in model.named_buffers():
        if "running" in name:
            world.sum_(buffer)
            buffer /= world.size
    return model.state_dict()


def run_rank(rank: int, size: int, port: int, folder: Path) -> None:
    """One rank of so many. Rank 0 writes FOLDER/<world size>.pt: the cases' results by name."""
    log = os.open(folder / f"{size}-{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    world = start_world(200.0)
    cases = json.loads((folder / "cases.json").read_text())
    results: dict[str, Any] = {}
    for name, case in cases.items():
        if size in case.get("sizes", [1, 2]):
            results[name] = run_case(case, world, folder)
    if size == 2:
        results["ddp"] = plain_ddp(cases["pair0"]["last"], world)
    results["hosts"] = world.hosts()
    results["broadcast"] = world.broadcast(7 + rank)
    if rank == 0:
        torch.save(results, folder / f"{size}.pt")
    leave_world()


def main() -> None:
    """Every rank of every world size, each a fork of this process, which has loaded what takes long to load."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    for name in SLOW:
        importlib.import_module(name)
    sys.exit(not all_ranks_end_well(run_rank, SIZES, folder))


if __name__ == "__main__":
    main()
