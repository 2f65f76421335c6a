"""One rank of test_engine.py: runs every case of `cases.json` and saves what came out of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from pretrain.engine.engine import Engine, EngineSettings
from pretrain.engine.world import World, leave_world, start_world
from pretrain.models.batchnorm import LaneBatchNorm
from pretrain.models.network import VideoNetwork
from pretrain.models.zoo import ModelSettings, build_model

LANES, LANE_BATCH, CLASSES, RATE = 4, 4, 5, 0.01
MODEL = ModelSettings(depth=10, width=0.125)


def network() -> VideoNetwork:
    """The same network for every case, without ReLUs, of which one that rounding turns moves gradients by far more."""
    torch.manual_seed(11)
    model = build_model(MODEL, CLASSES, frames=4)
    for layer in model.modules():
        if isinstance(layer, LaneBatchNorm):
            layer.relu = False
    return model


def lane_clips(step: int, lane: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Made-up clips and targets of one lane at one step."""
    draw = torch.Generator().manual_seed(100 * step + lane)
    video = torch.randn(LANE_BATCH, 3, 4, 24, 24, generator=draw) + lane
    return video, torch.randint(CLASSES, (LANE_BATCH,), generator=draw)


def snapshot(model: VideoNetwork, momentum: dict[str, torch.Tensor]) -> dict[str, Any]:
    """Copies of the state dict, which goes on changing, and of the momentum."""
    return {
        "model": {name: value.clone() for name, value in model.state_dict().items()},
        "momentum": momentum,
    }


def run_case(case: dict[str, Any], world: World, folder: Path) -> dict[str, Any]:
    """Steps first..last of the case; snapshots by the number of steps taken."""
    model = network()
    if case["first"]:
        start = torch.load(folder / "reference.pt")[case["first"]]
        model.load_state_dict(start["model"])
    together = case.get("together", False)
    engine = Engine(model, EngineSettings(**case["settings"]), world, LANES, LANE_BATCH, together)
    if case["first"]:
        engine.load_momentum(start["momentum"])
    found: dict[str, Any] = {"norm": [], "taken": [], "dtypes": set()}
    share = LANES // world.size
    for step in range(case["first"], case["last"]):
        engine.set_learning_rate(RATE)
        lanes = [lane_clips(step, lane) for lane in range(world.rank * share, (world.rank + 1) * share)]
        if step == case.get("poisoned") and world.rank == world.size - 1:
            lanes[-1][0][0, 0, 0, 0, 0] = torch.inf
        if together:
            lanes = [(torch.cat([video for video, _ in lanes]), torch.cat([labels for _, labels in lanes]))]
        for video, labels in lanes:
            logits = engine.forward(video)
            engine.backward(functional.cross_entropy(logits, labels))
            found["taken"].append(engine.step())
            found["dtypes"].add(str(logits.dtype))
        found["norm"].append(engine.gradient_norm())
        found[step + 1] = snapshot(model, engine.momentum())
    model.eval()
    found["predicted"] = engine.predict(lane_clips(0, 0)[0])
    return found


def main() -> None:
    """Rank 0 writes FOLDER/<world size>.pt: the cases' results by name."""
    folder = Path(sys.argv[1])
    torch.set_num_threads(1)
    world = start_world(60.0)
    cases = json.loads((folder / "cases.json").read_text())
    found = {name: run_case(case, world, folder) for name, case in cases.items()}
    found["any"] = world.any(world.rank == world.size - 1), world.any(False)
    found["broadcast"] = world.broadcast(7 + world.rank)
    if world.rank == 0:
        torch.save(found, folder / f"{world.size}.pt")
    leave_world()


if __name__ == "__main__":
    main()
