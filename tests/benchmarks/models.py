"""Benchmark: a training step of ours, as the engine takes it, beside the plain conv3d network, in one run.

python -m tests.benchmarks.models [--quick] [--all] [--depth N] [--frames N] [--rounds N] [--out FILE]
On a GPU R(2+1)D-34, 32 clips of 16 × 112², bf16, within 8 minutes, or 3 with --quick; --all, --depth, --frames: -18,
-34 and -152 at 8, 16 and 32 frames. On a CPU the demo's network, on one thread and two, and in bf16 where the
processor is faster in it.

clips/s and MFU (of the matrix product that was measured in the same run) are of the best step, `median` of the median
one. busy: the share of the median step in which the device computed; host: in which the host sent it work. On a GPU
every contender of ours has a process of its own; on a CPU all take their steps in turns. What ours is without the
engine (`network alone`) compares with what this benchmark measured before it knew the engine.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

from pretrain.engine.autotune.choose import candidate_names
from pretrain.engine.mfu import mfu, product_flops
from pretrain.models.count import macs
from pretrain.models.zoo import ModelSettings, build_model
from pretrain.planning.measured import MeasuredFigure
from tests.benchmarks.support.children import ChildFailed, in_a_child
from tests.benchmarks.support.models_steps import CLASSES, Case, Contender, chosen, rows

PLAIN = Contender().name
GOALS = {"ours / best peer": 1.25, "ours / plain": 3.0, "of the matrix product": 0.36}  # on a GPU


def peers(device: torch.device, quick: bool) -> list[Contender]:
    """The plain network in both orders of memory, eager and compiled.

    Quick: without what compiles long; on a GPU but the one that is the best there.
    """
    contenders = []
    for channels_last in (False, True):
        contenders.append(Contender(channels_last=channels_last))
        if not quick or (device.type == "cuda" and channels_last):
            contenders.append(Contender(channels_last=channels_last, compiled=True))
    return contenders


def ours(device: torch.device, quick: bool, choice: str) -> list[Contender]:
    """By each compute path through the engine, and without it: on a GPU the run's choice, with `quick` alone."""
    compute_paths = candidate_names(device)
    alone = (
        compute_paths
        if device.type == "cpu"
        else [compute_path for compute_path in compute_paths if compute_path == choice]
    )
    if quick and alone:
        compute_paths = alone
    return [Contender(compute_path, engine=True) for compute_path in compute_paths] + [
        Contender(compute_path) for compute_path in alone
    ]


def groups(contenders: Sequence[Contender], device: torch.device) -> list[list[Contender]]:
    """Those that share a process."""
    if device.type == "cpu":
        return [list(contenders)]
    plain = [each for each in contenders if not each.compute_path]
    return [plain, *([each] for each in contenders if each.compute_path)]


def patience(case: Case) -> float:
    """Seconds for one contender, compiling and all."""
    return 240.0 if (case.model.depth or 0) < 100 else 1200.0


def compare(case: Case, device: torch.device, rounds: int, quick: bool) -> dict[str, Any]:
    """One case's figures: each contender's of `rounds` steps.

    `chosen` is the compute path of ours that a run would take, `planar` its convolutions that run as 2D ones.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(case.threads or before)
    limit = product_flops(device, case.half, seconds=1.0)
    torch.set_num_threads(before)
    with torch.device("meta"):
        per_clip = macs(build_model(case.model, CLASSES, case.frames, case.size), case.frames, case.size, case.size)
    try:
        with closing(in_a_child(chosen, case, device, patience=patience(case))) as said:
            choice = next(said)
    except (ChildFailed, StopIteration) as error:
        choice = ""
        _progress(f"what a run would choose is not known: {error}")
    measured = json.loads(choice) if choice else {"compute_path": "", "planar": [], "clips_per_second": {}}
    contenders = peers(device, quick) + ours(device, quick, measured["compute_path"])
    rows_by_name = {}
    for together in groups(contenders, device):
        rows_by_name |= _figures(together, case, choice, rounds, device)
    for row in rows_by_name.values():
        if "seconds" in row:
            row["clips_per_second"] = case.batch / row["seconds"]
            row["median_clips_per_second"] = case.batch / row["median_seconds"]
            row["mfu"] = mfu(row["clips_per_second"], per_clip, limit, 1)
    figures = {"case": case.name, "matrix_product_tflops": limit / 1e12, "gflops_per_clip": 6 * per_clip / 1e9}
    figures["precision"] = case.precision
    figures |= {
        "chosen": measured["compute_path"],
        "planar": measured["planar"],
        "run_measured": measured["clips_per_second"],
    }
    lasting = {each.name: rows_by_name[each.name] for each in contenders}
    compute_path = measured["compute_path"] or fastest(contenders, rows_by_name)
    return figures | {"rows": lasting, "summary": summary(lasting, compute_path, device)}


def fastest(contenders: Sequence[Contender], rows_by_name: Mapping[str, Mapping[str, Any]]) -> str:
    """The compute path of ours that is the fastest through the engine; empty where none runs."""
    seconds = {
        each.compute_path: rows_by_name[each.name].get("seconds", math.inf) for each in contenders if each.engine
    }
    compute_path = min(seconds, key=lambda each: seconds[each], default="")
    return compute_path if compute_path and seconds[compute_path] < math.inf else ""


def _figures(
    contenders: Sequence[Contender], case: Case, choice: str, rounds: int, device: torch.device
) -> dict[str, dict[str, Any]]:
    rows_by_name: dict[str, dict[str, Any]] = {}
    longest = patience(case) * (len(contenders) if device.type == "cpu" else 1)
    begin = time.perf_counter()
    try:
        with closing(in_a_child(rows, contenders, case, choice, rounds, device, patience=longest)) as said:
            while len(rows_by_name) < len(contenders):  # and not until it ends: after a fault that may take minutes
                name, row = next(said)
                rows_by_name[name] = row
                _progress(f"{name}: after {time.perf_counter() - begin:.0f} s")
    except (ChildFailed, StopIteration) as error:
        for each in contenders:
            rows_by_name.setdefault(each.name, {"failed": str(error) or "ended without a word"})
    return rows_by_name


def summary(rows_by_name: Mapping[str, Mapping[str, Any]], compute_path: str, device: torch.device) -> dict[str, Any]:
    """Ours by a run's compute path, through the engine, against the best peer, the plain one and the product."""
    peer = {name: row for name, row in rows_by_name.items() if not name.startswith("ours") and "seconds" in row}
    engine = {
        name: row
        for name, row in rows_by_name.items()
        if name == Contender(compute_path, engine=True).name and compute_path
    }
    own = next((row for row in engine.values() if "seconds" in row), None)
    best = max(peer, key=lambda name: peer[name]["clips_per_second"], default=None)
    result: dict[str, Any] = {"best_peer": best, "ours": next(iter(engine), None)}
    values = dict.fromkeys(GOALS, math.nan)
    medians = math.nan
    if own and best:
        values["ours / best peer"] = peer[best]["seconds"] / own["seconds"]
        medians = peer[best]["median_seconds"] / own["median_seconds"]
    if own and PLAIN in peer:
        values["ours / plain"] = peer[PLAIN]["seconds"] / own["seconds"]
    if own:
        values["of the matrix product"] = own["mfu"]
    result["judged"] = [
        {
            "what": what,
            "value": value,
            "goal": GOALS[what] if device.type == "cuda" else None,
            "passed": value >= GOALS[what] if device.type == "cuda" else None,
        }
        for what, value in values.items()
    ]
    return result | {"ours_over_best_peer_by_medians": medians}


def cases(device: torch.device, depth: int | None = None, frames: int | None = None, every: bool = False) -> list[Case]:
    """On a GPU the size that is judged, or the papers' all; on a CPU the demo's network on one thread and two."""
    if device.type == "cpu":
        demo = ModelSettings(depth=10, width=0.25)
        return [Case(demo, 8, 48, 16, half, threads) for half in (False, True) for threads in (1, 2)]
    if depth is None and frames is None and not every:
        depth, frames = 34, 16
    batches = {18: {8: 64, 16: 32, 32: 16}, 34: {8: 64, 16: 32, 32: 16}, 152: {8: 32, 16: 32, 32: 32}}
    return [
        Case(ModelSettings(depth=each), length, 112, batch, True)  # type: ignore[arg-type]
        for each, by_frames in batches.items()
        for length, batch in by_frames.items()
        if depth in (None, each) and frames in (None, length)
    ]


def table(result: dict[str, Any]) -> str:
    """A case's figures as text; the last column compares with the plain network as anyone writes it."""
    rows_by_name, judgement = result["rows"], result["summary"]
    base = rows_by_name[PLAIN].get("clips_per_second")
    lines = [f"\n{result['case']}  (matrix product: {result['matrix_product_tflops']:.2f} TFLOP/s)"]
    lines.append(
        f"  {'':40} {'clips/s':>9} {'median':>9} {'MFU':>7} {'busy':>7} {'host':>7} {'peak GiB':>9} {'× plain':>8}"
    )
    for name, row in rows_by_name.items():
        label = f"{name} (a run's choice)" if name == judgement["ours"] else name
        if "failed" in row:
            lines.append(f"  {label:40} does not run: {row['failed']}")
            continue
        peak = f"{row['peak_bytes'] / 2**30:.1f}" if "peak_bytes" in row else "–"
        ratio = f"{row['clips_per_second'] / base:.2f}" if base else "–"
        lines.append(
            f"  {label:40} {row['clips_per_second']:9.1f} {row['median_clips_per_second']:9.1f}"
            f" {_percent(row['mfu']):>7} {_percent(row['busy_share']):>7}"
            f" {_percent(row.get('host_share', math.nan)):>7} {peak:>9} {ratio:>8}"
        )
    return "\n".join([*lines, f"  {verdict(rows_by_name, judgement)}"])


def verdict(rows_by_name: Mapping[str, Mapping[str, Any]], judgement: Mapping[str, Any]) -> str:
    """The comparison that counts, in one line."""
    parts = []
    for key, label in (("best_peer", "best peer"), ("ours", "ours (a run's choice)")):
        row = rows_by_name.get(judgement[key] or "", {})
        rate = f"{row['clips_per_second']:.1f} clips/s" if "seconds" in row else "not measured"
        parts.append(f"{label}: {judgement[key] or 'none'}, {rate}")
    for each in judgement["judged"]:
        value = _percent(each["value"]) if each["what"].startswith("of") else f"= {each['value']:.2f}"
        said = f"{each['what']} {value}"
        if each["what"] == "ours / best peer":
            said += f" (by medians {judgement['ours_over_best_peer_by_medians']:.2f})"
        if each["goal"] is not None:
            goal = f"{100 * each['goal']:g} %" if each["what"].startswith("of") else f"{each['goal']:g}"
            said += f" (goal {goal}: {'PASS' if each['passed'] else 'falls short'})"
        parts.append(said)
    return "; ".join(parts)


def measured_figures(results: Sequence[Mapping[str, Any]], device: str) -> list[dict[str, Any]]:
    """What `reelscale plan --measured` takes of the results: clips/s of the networks by a run's choice."""
    rates = (
        (result, result["rows"].get(result["summary"]["ours"] or "", {}).get("median_clips_per_second"))
        for result in results
    )
    return [
        MeasuredFigure(
            figure="network_clips_per_second",
            value=rate,
            device=device,
            precision=result["precision"],
            gmacs=result["gflops_per_clip"] / 6,
        ).tree()
        for result, rate in rates
        if rate is not None
    ]


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share == share else "–"


def _product_seconds(dtype: torch.dtype) -> float:
    """Of a small matrix product on this processor, the median of some."""
    square = torch.randn(128, 128, dtype=dtype)
    return Timer("square @ square", globals={"square": square}).blocked_autorange(min_run_time=0.1).median


def _progress(line: str) -> None:
    print(f"  … {line}", file=sys.stderr, flush=True)


def main() -> None:
    """Run the cases, print their tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds, and compiled but what is best on a GPU")
    parser.add_argument("--all", action="store_true", help="on a GPU, all networks and clips")
    parser.add_argument("--depth", type=int, help="on a GPU, only the network of this depth: 18, 34 or 152")
    parser.add_argument("--frames", type=int, help="on a GPU, only clips of so many frames: 8, 16 or 32")
    parser.add_argument("--rounds", type=int, help="steps of each contender")
    parser.add_argument("--out", type=Path, default=Path("bench/models.json"))
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    print(f"{name}, torch {torch.__version__}")
    begin, results = time.perf_counter(), []
    args.out.parent.mkdir(parents=True, exist_ok=True)
    worth = cases(device, args.depth, args.frames, args.all)
    if device.type == "cpu" and _product_seconds(torch.bfloat16) > _product_seconds(torch.float32):
        print("bf16 is left out: this processor is slower in it than in fp32, and a step takes seconds")
        worth = [case for case in worth if not case.half]
    for case in worth:
        most = 12 if device.type == "cpu" else 30
        results.append(compare(case, device, args.rounds or (most // 4 if args.quick else most), args.quick))
        print(table(results[-1]), flush=True)
        figures = {"device": name, "torch": torch.__version__, "measured": measured_figures(results, name)}
        args.out.write_text(json.dumps(figures | {"results": results}, indent=1))
    print(f"\nfigures: {args.out}; took {(time.perf_counter() - begin) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
