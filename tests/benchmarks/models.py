"""Benchmark: a training step of ours beside the plain conv3d network, in one run.

python -m tests.benchmarks.models [--quick] [--depth N] [--frames N] [--out FILE]
On a GPU R(2+1)D-18, -34 and -152 at 8, 16 and 32 frames of 112²; on a CPU the demo's network, on one thread and two.
"""

from __future__ import annotations

import argparse
import copy
import json
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import nn

from pretrain.engine.path import measured, worth_trying
from pretrain.engine.peak import mfu, product_flops
from pretrain.engine.precision import Pass
from pretrain.models.batchnorm import commit_statistics
from pretrain.models.count import macs
from pretrain.models.groups import parameter_groups
from pretrain.models.network import VideoNetwork
from pretrain.models.paths import PATHS
from pretrain.models.paths import Path as ComputePath
from pretrain.models.zoo import ModelSettings, build_model
from tests.benchmarks.plain import PlainR2Plus1D

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


def plain_network(model: VideoNetwork, settings: ModelSettings) -> nn.Module:
    """The same network, with the same weights, as anyone writes it."""
    assert settings.depth is not None
    plain = PlainR2Plus1D(settings.depth, model.get_submodule(model.head).out_features, settings.width)  # type: ignore[arg-type]
    plain.load_state_dict(model.state_dict())
    return plain.to(next(model.parameters()))


def contenders(case: Case, ours: Mapping[str, ComputePath], compiling: bool) -> dict[str, Maker]:
    """What is compared, by name: makers of (network, memory format of its clips)."""
    plain = partial(plain_network, settings=case.model)
    found: dict[str, Maker] = {}
    for name, order in (("plain conv3d", torch.contiguous_format), ("plain channels last", torch.channels_last_3d)):
        found[name] = lambda model, order=order: (plain(model).to(memory_format=order), order)
        if compiling:
            found[f"{name}, compiled"] = lambda model, order=order: (
                torch.compile(plain(model).to(memory_format=order)),
                order,
            )
    for name, path in ours.items():
        found[f"ours, {name}"] = lambda model, path=path: (_ours(model, path), torch.channels_last_3d)
    return found


def _ours(model: VideoNetwork, path: ComputePath) -> VideoNetwork:
    mine = copy.deepcopy(model)
    mine.use(path)
    return mine


class Step:
    """A training step of one contender: forward, backward, SGD with momentum, running statistics."""

    def __init__(self, network: nn.Module, order: torch.memory_format, case: Case, device: torch.device) -> None:
        self._network, self._half, self._device = network.train(), case.half, device
        draw = torch.Generator().manual_seed(0)
        shape = (case.batch, case.model.in_channels, case.frames, case.size, case.size)
        self._clips = torch.randn(shape, generator=draw).to(device).contiguous(memory_format=order)
        self._targets = torch.randint(400, (case.batch,), generator=draw).to(device)
        self._sgd = torch.optim.SGD(parameter_groups(network, 1e-4, {}), lr=1e-3, momentum=0.9, nesterov=True)

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


def compare(case: Case, device: torch.device, rounds: int, compiling: bool) -> dict[str, Any]:
    """One case's figures: each contender's best step of `rounds`, in turn on a CPU, one after the other on a GPU.

    `chosen` is the path of ours that a run would take, `planar` its convolutions that run as 2D ones.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads or before)
    torch.manual_seed(0)
    model = build_model(case.model, 400, case.frames, case.size).to(device)
    per_clip = macs(model, case.frames, case.size, case.size)
    limit = product_flops(device, case.half, seconds=1.0)
    names = [name for name in worth_trying(device) if compiling or not PATHS[name].fused]
    clip = (case.model.in_channels, case.frames, case.size, case.size)
    choice = measured(model, Pass(clip, case.batch, "bf16" if case.half else "fp32"), device, names)
    if compiling and device.type == "cpu":
        names.append("planar-fused")
    rows: dict[str, dict[str, Any]] = {}
    makers = contenders(case, {name: choice.by_name(name) for name in names}, compiling)
    if device.type == "cuda":
        for name, maker in makers.items():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
            rows[name] = _timed({name: maker}, model, case, device, rounds)[name]
            rows[name]["peak_bytes"] = torch.cuda.max_memory_allocated()
    else:
        rows = _timed(makers, model, case, device, rounds)
    torch.set_num_threads(before)
    for row in rows.values():
        if "seconds" in row:
            row["clips_per_second"] = case.batch / row["seconds"]
            row["mfu"] = mfu(row["clips_per_second"], per_clip, limit, 1)
    figures = {"case": case.name, "matrix_product_tflops": limit / 1e12, "gflops_per_clip": 6 * per_clip / 1e9}
    return figures | {"chosen": f"ours, {choice.path}", "planar": choice.planar, "rows": rows}


def _timed(
    makers: Mapping[str, Maker], model: VideoNetwork, case: Case, device: torch.device, rounds: int
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


def cases(device: torch.device, depth: int | None = None, frames: int | None = None) -> list[Case]:
    """The papers' sizes on a GPU; the demo's network in both precisions on one thread and two on a CPU."""
    if device.type == "cpu":
        demo = ModelSettings(depth=10, width=0.25)
        return [Case(demo, 8, 48, 16, half, threads) for half in (False, True) for threads in (1, 2)]
    batches = {18: {8: 64, 16: 32, 32: 16}, 34: {8: 64, 16: 32, 32: 16}, 152: {8: 16, 16: 8, 32: 4}}
    return [
        Case(ModelSettings(depth=each), length, 112, batch, True)  # type: ignore[arg-type]
        for each, by_frames in batches.items()
        for length, batch in by_frames.items()
        if depth in (None, each) and frames in (None, length)
    ]


def table(result: dict[str, Any]) -> str:
    """A case's figures as text; the last column compares with the plain network as anyone writes it."""
    rows = result["rows"]
    base = rows["plain conv3d"].get("clips_per_second")
    lines = [f"\n{result['case']}  (matrix product: {result['matrix_product_tflops']:.2f} TFLOP/s)"]
    lines.append(f"  {'':40} {'clips/s':>10} {'MFU':>7} {'peak GiB':>9} {'× plain':>8}")
    for name, row in rows.items():
        told = f"{name} (a run's choice)" if name == result["chosen"] else name
        if "failed" in row:
            lines.append(f"  {told:40} does not run: {row['failed']}")
            continue
        peak = f"{row['peak_bytes'] / 2**30:.1f}" if "peak_bytes" in row else "–"
        ratio = f"{row['clips_per_second'] / base:.2f}" if base else "–"
        lines.append(f"  {told:40} {row['clips_per_second']:10.1f} {100 * row['mfu']:6.1f}% {peak:>9} {ratio:>8}")
    return "\n".join(lines)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    """Run the cases, print their tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds, nothing compiled")
    parser.add_argument("--depth", type=int, help="on a GPU, only the network of this depth: 18, 34 or 152")
    parser.add_argument("--frames", type=int, help="on a GPU, only clips of so many frames: 8, 16 or 32")
    parser.add_argument("--rounds", type=int, default=0, help="timed steps of each (0: 12, or 3 where quick)")
    parser.add_argument("--out", type=Path, default=Path("bench/models.json"))
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    torch.backends.cudnn.benchmark = True  # for all alike, as a run has it
    torch._dynamo.config.recompile_limit = 256
    print(f"{name}, torch {torch.__version__}")
    given.out.parent.mkdir(parents=True, exist_ok=True)
    results = []
    for case in cases(device, given.depth, given.frames):
        results.append(compare(case, device, given.rounds or (3 if given.quick else 12), not given.quick))
        print(table(results[-1]), flush=True)
        given.out.write_text(json.dumps({"device": name, "torch": torch.__version__, "results": results}, indent=1))
    print(f"\nfigures: {given.out}")


if __name__ == "__main__":
    main()
