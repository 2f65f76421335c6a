"""Benchmark: a training step of ours beside the plain conv3d network, in one run.

python -m tests.benchmarks.models [--quick] [--out FILE]; on a GPU the sizes of the papers, on a CPU the demo's.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pretrain.models.batchnorm import LaneBatchNorm, commit_statistics
from pretrain.models.count import macs
from pretrain.models.groups import weight_decay_groups
from pretrain.models.network import VideoNetwork
from pretrain.models.paths import ON_CPU, PATHS, Convolution
from pretrain.models.zoo import ModelSettings, build_model

Maker = Callable[[VideoNetwork], tuple[nn.Module, torch.memory_format]]


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
        precision = "bf16" if self.half else "fp32"
        threads = f", {self.threads} threads" if self.threads else ""
        return (
            f"{self.model.name}-{self.model.depth} ×{self.model.width:g}, {self.batch}×{self.frames}×{self.size}², "
            f"{precision}{threads}"
        )


def plain_network(model: VideoNetwork) -> nn.Module:
    """The same network as anyone would write it: nn.Conv3d, nn.BatchNorm3d, contiguous memory."""
    plain = copy.deepcopy(model)
    plain.use(PATHS["plain"])
    for parent in list(plain.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Convolution):
                child.__class__ = nn.Conv3d  # type: ignore[assignment]
            elif isinstance(child, LaneBatchNorm):
                norm = nn.BatchNorm3d(child.num_features, child.eps, child.momentum).to(child.weight)
                norm.load_state_dict(child.state_dict())
                setattr(parent, name, norm)
    return _Stages(plain)


class _Stages(nn.Module):
    """A network's layers as a plain chain, without the choices of `VideoNetwork.forward`."""

    def __init__(self, model: VideoNetwork) -> None:
        super().__init__()
        names = [name for group in model.stages for name in group]
        self.layers = nn.Sequential(*(_unwrapped(model.get_submodule(name)) for name in names))
        self.pool, self.fc = nn.AdaptiveAvgPool3d(1), model.get_submodule(model.head)

    def forward(self, clips: Tensor) -> Tensor:
        return self.fc(self.pool(self.layers(clips)).flatten(1))


def _unwrapped(module: nn.Module) -> nn.Module:
    """`module` with every chain of ours as an nn.Sequential."""
    for name, child in list(module.named_children()):
        setattr(module, name, _unwrapped(child))
    if isinstance(module, nn.Sequential):
        return nn.Sequential(*module)
    return module


def contenders(case: Case, device: torch.device, compiling: bool) -> dict[str, Maker]:
    """What is compared, by name: makers of (network, memory format of its clips)."""
    found: dict[str, Maker] = {
        "plain conv3d": lambda model: (plain_network(model), torch.contiguous_format),
        "plain conv3d, channels last": lambda model: (
            plain_network(model).to(memory_format=torch.channels_last_3d),
            torch.channels_last_3d,
        ),
    }
    if compiling:
        found["plain conv3d, compiled"] = lambda model: (
            torch.compile(plain_network(model)),
            torch.contiguous_format,
        )
        found["plain conv3d, channels last, compiled"] = lambda model: (
            torch.compile(plain_network(model).to(memory_format=torch.channels_last_3d)),
            torch.channels_last_3d,
        )
    for name in PATHS if device.type == "cuda" else ON_CPU:
        if compiling or not PATHS[name].compiled:
            found[f"ours, {name}"] = lambda model, name=name: (_ours(model, name), torch.channels_last_3d)
    return found


def _ours(model: VideoNetwork, path: str) -> VideoNetwork:
    mine = copy.deepcopy(model)
    mine.use(PATHS[path])
    return mine


class Step:
    """A training step of one contender: forward, backward, SGD with momentum, running statistics."""

    def __init__(self, network: nn.Module, order: torch.memory_format, case: Case, device: torch.device) -> None:
        self._network, self._half, self._device = network.train(), case.half, device
        draw = torch.Generator().manual_seed(0)
        shape = (case.batch, case.model.in_channels, case.frames, case.size, case.size)
        self._clips = torch.randn(shape, generator=draw).to(device).contiguous(memory_format=order)
        self._targets = torch.randint(400, (case.batch,), generator=draw).to(device)
        self._sgd = torch.optim.SGD(weight_decay_groups(network, 1e-4), lr=1e-3, momentum=0.9, nesterov=True)

    def seconds(self) -> float:
        """Of one step."""
        _wait(self._device)
        begin = time.perf_counter()
        self._sgd.zero_grad(set_to_none=True)
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._half):
            logits = self._network(self._clips)
        F.cross_entropy(logits.float(), self._targets).backward()
        self._sgd.step()
        commit_statistics(self._network)
        _wait(self._device)
        return time.perf_counter() - begin


def matrix_product_flops(device: torch.device, half: bool, seconds: float = 1.0) -> float:
    """Floating-point operations a second of a large matrix product here and now: the limit MFU is counted against."""
    side = 8192 if device.type == "cuda" else 1536
    dtype = torch.bfloat16 if half else torch.float32
    left, right = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    best, deadline = float("inf"), time.perf_counter() + seconds
    while time.perf_counter() < deadline or best == float("inf"):
        _wait(device)
        begin = time.perf_counter()
        left @ right
        _wait(device)
        best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best


def compare(case: Case, device: torch.device, rounds: int, compiling: bool) -> dict[str, Any]:
    """One case's figures: each contender's best step of `rounds`, in turn on a CPU, one after the other on a GPU."""
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads or before)
    torch.manual_seed(0)
    model = build_model(case.model, 400, case.frames, case.size).to(device)
    flops = 6 * macs(model, case.frames, case.size, case.size)  # forward, and twice that backward
    limit = matrix_product_flops(device, case.half)
    rows: dict[str, dict[str, Any]] = {}
    makers = contenders(case, device, compiling)
    if device.type == "cuda":
        for name, maker in makers.items():
            torch.cuda.empty_cache()
            torch.compiler.reset()
            torch.cuda.reset_peak_memory_stats()
            rows[name] = _timed({name: maker}, model, case, device, rounds)[name]
            rows[name]["peak_bytes"] = torch.cuda.max_memory_allocated()
    else:
        rows = _timed(makers, model, case, device, rounds)
    torch.set_num_threads(before)
    for row in rows.values():
        if "seconds" in row:
            row["clips_per_second"] = case.batch / row["seconds"]
            row["mfu"] = flops * row["clips_per_second"] / limit
    return {"case": case.name, "matrix_product_tflops": limit / 1e12, "gflops_per_clip": flops / 1e9, "rows": rows}


def _timed(
    makers: dict[str, Maker], model: VideoNetwork, case: Case, device: torch.device, rounds: int
) -> dict[str, dict[str, Any]]:
    steps: dict[str, Step] = {}
    rows: dict[str, dict[str, Any]] = {}
    for name, maker in makers.items():
        try:
            steps[name] = Step(*maker(model), case, device)
            for _ in range(2):
                steps[name].seconds()
            rows[name] = {"seconds": float("inf")}
        except Exception as error:  # out of memory, or no compiler: it is told in the table
            steps.pop(name, None)
            rows[name] = {"failed": str(error).partition("\n")[0][:100]}
    for _ in range(rounds):
        for name, step in steps.items():
            rows[name]["seconds"] = min(rows[name]["seconds"], step.seconds())
    return rows


def cases(device: torch.device, quick: bool) -> list[Case]:
    """The papers' sizes on a GPU; the demo's network in both precisions on one thread and two on a CPU."""
    if device.type == "cuda":
        wanted = [(18, 8, 64), (18, 16, 32), (34, 8, 64), (34, 16, 32), (34, 32, 16), (152, 16, 8), (152, 32, 4)]
        wanted = [(34, 16, 32)] if quick else wanted
        return [Case(ModelSettings(depth=depth), frames, 112, batch, True) for depth, frames, batch in wanted]  # type: ignore[arg-type]
    demo = ModelSettings(depth=10, width=0.25)
    return [Case(demo, 8, 48, 16, half, threads) for half in (False, True) for threads in (1, 2)]


def table(result: dict[str, Any]) -> str:
    """A case's figures as text; the last column compares with the plain network as anyone writes it."""
    rows = result["rows"]
    base = rows["plain conv3d"].get("clips_per_second")
    lines = [f"\n{result['case']}  (matrix product: {result['matrix_product_tflops']:.2f} TFLOP/s)"]
    lines.append(f"  {'':40} {'clips/s':>10} {'MFU':>7} {'peak GiB':>9} {'× plain':>8}")
    for name, row in rows.items():
        if "failed" in row:
            lines.append(f"  {name:40} does not run: {row['failed']}")
            continue
        peak = f"{row['peak_bytes'] / 2**30:.1f}" if "peak_bytes" in row else "–"
        ratio = f"{row['clips_per_second'] / base:.2f}" if base else "–"
        lines.append(f"  {name:40} {row['clips_per_second']:10.1f} {100 * row['mfu']:6.1f}% {peak:>9} {ratio:>8}")
    return "\n".join(lines)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Run the cases, print their tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one case on a GPU, few rounds, nothing compiled")
    parser.add_argument("--rounds", type=int, default=0, help="timed steps of each (0: 8, or 3 where quick)")
    parser.add_argument("--out", type=Path, default=Path("bench/models.json"))
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, torch {torch.__version__}")
    results = []
    for case in cases(device, given.quick):
        compiling = device.type == "cuda" and not given.quick
        results.append(compare(case, device, given.rounds or (3 if given.quick else 8), compiling))
        print(table(results[-1]), flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"device": name, "torch": torch.__version__, "results": results}, indent=1))
    print(f"\nfigures: {given.out}")


if __name__ == "__main__":
    main()
