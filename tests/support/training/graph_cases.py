"""A stand-in for the capture of CUDA graphs, and engines that train with it and without, the same steps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from pretrain.engine.capture import Capture, Captured
from pretrain.engine.deepspeed_config import EngineSettings
from pretrain.engine.distributed import World, leave_world, start_world
from pretrain.engine.engine import Engine, EngineState
from pretrain.models.compute.batchnorm import LaneBatchNorm
from pretrain.models.compute.compute_path import COMPUTE_PATHS
from pretrain.models.groups import freeze
from pretrain.models.network import VideoNetwork
from tests.support.training.engine_ranks import LANE_BATCH, RATE, lane_clips, network
from tests.support.training.forked_worlds import all_ranks_end_well

ROOT = Path(__file__).parents[3]
WARM_UPS = 3
SIZES = (1, 2)


class StandIn:
    """CudaGraphs for a CPU: a replay computes anew from the memory that was captured, into the same memory.

    As with a graph, what Python counts is not counted by a replay, and a backward pass can be computed but once.
    """

    def __init__(self, network: VideoNetwork) -> None:
        self.network, self.made = network, list[Passes]()

    def __call__(self, function: Callable[[], Tensor], weights: Sequence[Tensor]) -> Captured:
        """Capture: a few passes of which all is forgotten but what the function itself leaves behind."""
        self.made.append(Passes(self.network, function, weights))
        return self.made[-1]

    @property
    def replays(self) -> list[tuple[int, int]]:
        """How often each capture went forward and backward."""
        return [(passes.forwards, passes.backwards) for passes in self.made]


class Passes:
    """What StandIn captured."""

    def __init__(self, network: VideoNetwork, function: Callable[[], Tensor], weights: Sequence[Tensor]) -> None:
        self._layers = [module for module in network.modules() if isinstance(module, LaneBatchNorm)]
        self._function, self._weights = function, weights
        self.forwards, self.backwards, self.released = 0, 0, False
        for _ in range(WARM_UPS):
            torch.rand(1)  # as a kernel that is tried might
            output = function()
            gradients: Sequence[Tensor | None] = [None] * len(weights)
            if output.requires_grad:
                gradients = torch.autograd.grad(output, weights, torch.ones_like(output), allow_unused=True)
        self.output = output.detach().clone()
        pairs = zip(gradients, weights, strict=True)
        self.gradients = [None if each is None else torch.empty_like(weight) for each, weight in pairs]
        self._live: Tensor | None = None

    def forward(self) -> None:
        """Compute the output anew."""
        assert not self.released
        lanes = [layer.lanes for layer in self._layers]
        with torch.enable_grad():
            self._live = self._function()
        self.output.copy_(self._live.detach())
        for layer, count in zip(self._layers, lanes, strict=True):
            layer.lanes = count
        self.forwards += 1

    def backward(self, gradient: Tensor) -> None:
        """Compute the gradients anew."""
        assert not self.released and self._live is not None
        found = torch.autograd.grad(self._live, self._weights, gradient.clone(), allow_unused=True)
        for to, each in zip(self.gradients, found, strict=True):
            if to is not None and each is not None:
                to.copy_(each)
        self._live = None
        self.backwards += 1

    def release(self) -> None:
        """No more of it."""
        self.released = True


CASES: dict[str, dict[str, Any]] = {
    **{f"lanes{lanes}-zero{zero}": {"lanes": lanes, "zero": zero} for zero in (0, 1, 2) for lanes in (1, 2)},
    "bf16": {"lanes": 2, "zero": 1, "precision": "bf16"},
    "fp16": {"lanes": 2, "zero": 1, "precision": "fp16"},
    "recomputed": {"lanes": 2, "zero": 1, "recomputed": 3},
    "frozen": {"lanes": 2, "zero": 1, "rates": {"stem": 0.0, "conv2": 0.0}},
    "ranks": {"lanes": 4, "zero": 2, "size": 2},
    "one-fails": {"lanes": 4, "zero": 2, "size": 2, "fails": 1},
    "zero3": {"lanes": 1, "zero": 3},
    "together": {"lanes": 2, "zero": 1, "together": True},
    "not-asked-for": {"lanes": 1, "zero": 1, "cuda_graph": False},
}


def run(case: dict[str, Any], world: World, capture: Callable[[VideoNetwork], Capture] | None) -> dict[str, Any]:
    """A run with everything in it that may come between two passes; what came of it, and of the stand-in."""
    model = network(relu=True).to(world.device)
    model.use(replace(COMPUTE_PATHS["planar"], recomputed=case.get("recomputed", 0)))
    rates = case.get("rates", {})
    freeze(model, rates)
    names = ("zero", "precision", "cuda_graph")
    settings = EngineSettings(**{"precision": "fp32", **{name: case[name] for name in names if name in case}})
    lanes, together = case["lanes"], case.get("together", False)
    captured = capture(model) if capture else None
    engine = Engine(model, settings, world, lanes, LANE_BATCH, together, rates, captured)
    share = range(world.rank * lanes // world.size, (world.rank + 1) * lanes // world.size)
    results: dict[str, Any] = {"logits": [], "states": [], "skipped": [], "norms": []}

    def step(number: int, broken: bool = False) -> None:
        model.train()
        engine.set_learning_rate(RATE)
        clips = [lane_clips(number, lane) for lane in share]
        if together:
            clips = [(torch.cat([video for video, _ in clips]), torch.cat([labels for _, labels in clips]))]
        for video, labels in clips:
            video, buffer = video.to(world.device), engine.input_buffer
            if buffer is not None and number % 2:  # as a trainer may that writes its clips there
                video = buffer.copy_(video)
            logits = engine.forward(video)
            loss = functional.cross_entropy(logits, labels.to(world.device))
            engine.backward(loss * float("inf") if broken else loss)
            engine.step()
            results["logits"].append(logits.detach().cpu())
        taken, norm = engine.verdict.tolist()
        engine.record_verdict(taken > 0)
        results["skipped"].append(engine.was_skipped)
        results["norms"].append(norm)
        results["states"].append(asdict(engine.state()))

    def validate() -> None:
        model.eval()
        results["logits"].append(engine.predictor.predict(lane_clips(50, 0)[0][:3].to(world.device)).cpu())

    step(0)
    step(1)
    saved = engine.state()
    validate()
    step(2)
    step(3, broken=True)
    engine.predictor.recompute_statistics(lane_clips(60 + number, 0)[0].to(world.device) for number in range(2))
    step(4)
    if world.size == 1:
        engine.load(EngineState(**asdict(saved)))  # as after a diverged loss
        step(5)
    frozen = next(layer for layer in model.layer4.modules() if isinstance(layer, LaneBatchNorm))
    frozen.frozen = True
    step(6)
    results["passes"] = len(share) if not together else 1
    results["replays"] = captured.replays if isinstance(captured, StandIn) else None
    results["buffer"] = engine.input_buffer is not None
    return results


def _failing(_: VideoNetwork) -> Capture:
    def capture(function: Callable[[], Tensor], weights: Sequence[Tensor]) -> Captured:
        function()
        raise RuntimeError("operation not permitted when stream is capturing")

    return capture


def run_rank(rank: int, size: int, port: int, folder: Path) -> None:
    """One rank of so many, which runs its cases with a capture and without. Rank 0 writes FOLDER/<world size>.pt.

    On a CPU the capture is the stand-in; on a GPU what is the engine's own there.
    """
    log = os.open(folder / f"{size}-{rank}.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    world = start_world(200.0, deterministic=True)
    results: dict[str, Any] = {}
    for name in json.loads((folder / "cases.json").read_text()):
        case = CASES[name]
        if case.get("size", 1) == size:
            eager = run({**case, "cuda_graph": False}, world, None)
            capture = StandIn if world.device.type == "cpu" else None
            graphed = run(case, world, _failing if case.get("fails") == rank else capture)
            results[name] = {"eager": eager, "graphed": graphed}
    if rank == 0:
        torch.save(results, folder / f"{size}.pt")
    leave_world()


def run_cases(folder: Path, names: Sequence[str], gpu: bool = False) -> dict[str, dict[str, Any]]:
    """The cases' results by name, with a capture and without; of one process a rank."""
    (folder / "cases.json").write_text(json.dumps(list(names)))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if not gpu:
        environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    command = [sys.executable, "-m", "tests.support.training.graph_cases", str(folder)]
    done = subprocess.run(command, cwd=ROOT, env=environment, timeout=270)
    assert done.returncode == 0, "\n".join(path.read_text()[-3000:] for path in folder.glob("*.log"))
    return {
        name: result for path in folder.glob("*.pt") for name, result in torch.load(path, weights_only=False).items()
    }


def main() -> None:
    """Every rank of every world size, each a fork of this process."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    names = json.loads((folder / "cases.json").read_text())
    sizes = {CASES[name].get("size", 1) for name in names}
    sys.exit(not all_ranks_end_well(run_rank, sizes, folder))


if __name__ == "__main__":
    main()
