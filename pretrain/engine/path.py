"""Which path a run computes by: the fastest as measured on its machine, kept with the run."""

from __future__ import annotations

import copy
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path as FilePath

import torch
from torch import Tensor

from pretrain.engine.world import World
from pretrain.models.count import macs
from pretrain.models.network import VideoNetwork
from pretrain.models.paths import ON_CPU, PATHS, Path

log = logging.getLogger("reelscale")

_FILE = "path.json"
_MACS_ON_CPU = 2e9  # of the clips measured with: enough to tell paths apart, and over in seconds


def run_path(folder: FilePath, model: VideoNetwork, clip: Sequence[int], batch: int, half: bool, world: World) -> str:
    """The name of the fastest path for `batch` clips of shape C T H W, the same on every rank of the run.

    Rank 0 measures once and keeps what it saw in the run's folder, so that a run that goes on takes the same path
    on the same kind of device. `half`: under bf16 autocast.
    """
    names = list(ON_CPU if world.device.type == "cpu" else PATHS)
    chosen = 0
    if world.rank == 0:
        device = _device_name(world.device)
        known = _kept(folder)
        if known.get("device") != device or known.get("half") != half or known.get("path") not in names:
            if world.device.type == "cpu":
                batch = max(min(2, batch), min(batch, int(_MACS_ON_CPU / macs(model, *clip[1:]))))
            clips = torch.randn(batch, *clip, generator=torch.Generator().manual_seed(0)).to(world.device)
            seconds = measure(model, clips, half, names)
            known = {"path": min(seconds, key=seconds.__getitem__), "device": device, "half": half, "seconds": seconds}
            (folder / _FILE).write_text(json.dumps(known, indent=1))
            told = ", ".join(f"{name} {batch / taken:.3g}" for name, taken in seconds.items())
            log.info("path %s, of clips/s by path: %s", known["path"], told)
        chosen = names.index(str(known["path"]))
    return names[world.broadcast(chosen)]


def evaluation_path(folder: FilePath, wanted: str, device: torch.device) -> Path:
    """The path that a run took on such a device, or was told to; the default where it ran on another.

    Without compiling, which pays only over many steps.
    """
    known = _kept(folder)
    name = known.get("path") if wanted == "auto" and known.get("device") == _device_name(device) else wanted
    return replace(PATHS[name], compiled=False) if name in PATHS else VideoNetwork.path


def measure(model: VideoNetwork, clips: Tensor, half: bool, names: Sequence[str], repeats: int = 3) -> dict[str, float]:
    """Seconds of a training pass over `clips` by each path: the best of `repeats`, taken in turn.

    A path that does not run here (out of memory, no compiler) is left out with a warning. The network stays as
    it is. Raises RuntimeError if no path runs.
    """
    # On a busy CPU only what is timed in turn compares; a GPU has no room for several copies.
    groups = [list(names)] if clips.device.type == "cpu" else [[name] for name in names]
    seconds: dict[str, float] = {}
    for group in groups:
        seconds |= _timed_in_turn(model, clips, half, group, repeats)
        if clips.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.compiler.reset()  # what one path compiled counts against the next one's limit
    if not seconds:
        raise RuntimeError("no path runs this network on this device; the warnings above say why")
    return seconds


def _timed_in_turn(
    model: VideoNetwork, clips: Tensor, half: bool, names: Sequence[str], repeats: int
) -> dict[str, float]:
    copies: dict[str, VideoNetwork] = {}
    seconds: dict[str, float] = {}
    for number in range(repeats + 1):
        for name in names:
            try:
                if number == 0:
                    copies[name] = copy.deepcopy(model).to(clips.device).train()
                    copies[name].use(PATHS[name])
                if name in copies:
                    taken = _pass(copies[name], clips, half)
                    seconds[name] = min(seconds.get(name, taken), taken) if number > 1 else taken
            except Exception as error:
                log.warning("the path %s does not run here: %s", name, str(error).partition("\n")[0])
                copies.pop(name, None)
                seconds.pop(name, None)
    return seconds


def _pass(network: VideoNetwork, clips: Tensor, half: bool) -> float:
    _wait(clips.device)
    begin = time.perf_counter()
    network.zero_grad(set_to_none=True)
    with torch.autocast(clips.device.type, torch.bfloat16, enabled=half):
        logits = network(clips)
    logits.float().square().mean().backward()
    _wait(clips.device)
    return time.perf_counter() - begin


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _kept(folder: FilePath) -> dict[str, object]:
    try:
        found = json.loads((folder / _FILE).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
