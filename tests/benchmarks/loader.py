"""Benchmark: random clips of stored video by our decode path and by what others offer, on one core.

python -m tests.benchmarks.loader [--quick] [--rounds N] [--leak] [--s3] [--out FILE]

The same clips of 16 frames at stride 1, of segments of ten seconds of real videos, to uint8 pictures (ours: planes,
half the bytes of RGB) and to the network's normalised input. All ways take turns on one core; rates are clips a CPU
second, of all processes a way needs, and beside it clips a second by the clock; a round's ratios are of that round
alone. `x264 + webdataset` has the same video as libx264 makes it unless told otherwise. `bare libavcodec` decodes
packets that lie ready and copies nothing out: the limit. With --leak or --s3 those parts run instead (see
`loader_leak`, `loader_s3`).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cluster.jobs.process_usage import started_by
from pretrain.data.device.transforms import network_input
from pretrain.data.loader import Loader, LoaderSettings
from pretrain.data.sources import DataSettings, order_of
from pretrain.planning.measured import MeasuredFigure
from tests.benchmarks.support import loader_ways as ways
from tests.benchmarks.support.loader_ways import Sink, Task, Way

VIDEOS = ("bikes.mp4", "slackline.mp4", "cup.mp4")
LANE_BATCH = 8
SPENT_A_ROUND = 0.5  # CPU seconds at least, by which a way repeats the clips
GOALS = {"decord": 3.0, "PyAV": 2.0, "bare": 0.8, "today": 5.0}


@dataclass
class Contender:
    """A way, and per round its CPU seconds, its seconds by the clock, and bytes read, each a clip."""

    name: str
    peer: str  # the goal it belongs to
    floats: bool
    way: Way
    repeats: int = 1
    cpu: list[float] = field(default_factory=list)
    clock: list[float] = field(default_factory=list)
    bytes: float = 0.0

    def run(self, clips: int) -> None:
        """One round."""
        cpu, clock, read = spent(), time.perf_counter(), 0
        for _ in range(self.repeats):
            read += self.way()
        total = self.repeats * clips
        self.cpu.append((spent() - cpu) / total)
        self.clock.append((time.perf_counter() - clock) / total)
        self.bytes = read / total


def spent() -> float:
    """CPU seconds of this process and of those it started that still run."""
    return time.process_time() + sum(usage.cpu_seconds for usage in started_by(os.getpid()).values())


def loader_way(task: Task, floats: bool, sink: Sink, stack: ExitStack) -> Way:
    """All of the loader with one worker, from the first step to the last; its process lives on."""
    order = order_of(task.sources, task.data, task.seed, 1, task.lane_batch)
    settings = LoaderSettings(workers=1)
    loader = stack.enter_context(
        Loader(task.sources, order, task.clip, settings, range(1), last=len(task.steps)),
    )
    begin = loader.state_dict()

    def way() -> int:
        loader.load_state_dict(begin)
        before = loader.stats.bytes
        for step in loader:
            for clips in step:
                sink(network_input(clips.planes, task.clip) if floats else clips.planes)
        return loader.stats.bytes - before

    return way


def contenders(task: Task, stack: ExitStack, sink: Sink = lambda clip: None) -> tuple[list[Contender], list[str]]:
    """All of them, ours first, to uint8 and to floats; and why some are left out."""
    competing, missing = [Contender("bare libavcodec", "bare", False, ways.bare(task))], []
    for floats in (False, True):
        competing += [
            Contender("ours, in one process", "ours", floats, ways.ours(task, floats, sink)),
            Contender("ours, loader of 1 worker", "loader", floats, loader_way(task, floats, sink, stack)),
            Contender("PyAV, RGB", "PyAV", floats, ways.pyav(task, False, floats, sink)),
            Contender("PyAV, RGB 128 x 171", "PyAV", floats, ways.pyav(task, True, floats, sink)),
        ]
        makers: dict[str, tuple[str, Callable[[], Way]]] = {
            "decord": ("decord", lambda floats=floats: ways.decord_fresh(task, floats, sink)),  # type: ignore[misc]
            "decord, readers kept": ("decord", lambda floats=floats: ways.decord_kept(task, floats, sink)),  # type: ignore[misc]
            "torchcodec": ("torchcodec", lambda floats=floats: ways.torchcodec(task, floats, sink)),  # type: ignore[misc]
        }
        for name, (peer, make) in makers.items():
            try:
                competing.append(Contender(name, peer, floats, make()))
            except (ImportError, OSError, RuntimeError) as error:
                missing.append(f"{name} is left out: {str(error).strip().splitlines()[0]}")
        if task.tar is not None:
            competing += [
                Contender("x264 + webdataset, RGB", "today", floats, ways.today(task, False, floats, sink)),
                Contender("x264 + webdataset, 128 x 171", "today", floats, ways.today(task, True, floats, sink)),
            ]
    return competing, list(dict.fromkeys(missing))


def compared(task: Task, rounds: int) -> dict[str, Any]:
    """Rows of all contenders, and the ratios that are judged."""
    with ExitStack() as stack:
        competing, missing = contenders(task, stack)
        for contender in competing:
            contender.run(len(task.clips))  # warms up
            cost = contender.cpu.pop() * len(task.clips)
            contender.clock.clear()
            contender.repeats = max(1, round(SPENT_A_ROUND / cost))
        for _ in range(rounds):
            for contender in competing:
                contender.run(len(task.clips))
    ours = {contender.floats: contender for contender in competing if contender.peer == "ours"}
    rows = [row(contender, ours[contender.floats]) for contender in competing]
    return {
        "clips": len(task.clips),
        "rounds": rounds,
        "missing": missing,
        "rows": rows,
        "judged": judged(competing, ours),
    }


def row(contender: Contender, ours: Contender) -> dict[str, Any]:
    """Figures of one contender; `ratio`: how much faster ours is."""
    return {
        "name": contender.name,
        "output": "input" if contender.floats else "uint8",
        "clips_per_cpu_second": 1 / statistics.median(contender.cpu),
        "best": 1 / min(contender.cpu),
        "clips_per_second": 1 / statistics.median(contender.clock),
        "best_by_clock": 1 / min(contender.clock),
        "cpu_ms_per_clip": 1e3 * statistics.median(contender.cpu),
        "bytes_per_clip": contender.bytes,
        "ratio": ratio(contender.cpu, ours.cpu),
        "ratio_by_clock": ratio(contender.clock, ours.clock),
        "cpu_ms_per_round": [round(1e3 * each, 3) for each in contender.cpu],
    }


def ratio(theirs: list[float], ours: list[float]) -> float:
    """The median over rounds of how often ours fits into theirs."""
    return statistics.median(their / my for their, my in zip(theirs, ours, strict=True))


def judged(competing: list[Contender], ours: dict[bool, Contender]) -> list[dict[str, Any]]:
    """Ours against the best form of each peer, whose goal is a ratio at least."""
    lines = []
    for peer, goal in GOALS.items():
        for floats in (False, True):
            forms = [each for each in competing if each.peer == peer and (each.floats == floats or peer == "bare")]
            if forms:
                best = min(forms, key=lambda form: statistics.median(form.cpu))
                value = ratio(best.cpu, ours[floats].cpu)
                lines.append(
                    {
                        "what": f"ours / {best.name}",
                        "output": "input" if floats else "uint8",
                        "ratio": value,
                        "ratio_by_clock": ratio(best.clock, ours[floats].clock),
                        "goal": goal,
                        "passed": value >= goal,
                    }
                )
    return lines


def measured_figures(results: dict[str, Any]) -> list[dict[str, Any]]:
    """What `reelscale plan --measured` takes of the comparison: clips of 16 frames a core second, of a directory."""
    row = next(each for each in results["rows"] if each["name"] == "ours, loader of 1 worker")  # to planes
    figures = (
        MeasuredFigure(figure="clips_per_core_second", value=row["clips_per_cpu_second"], frames=16),
        MeasuredFigure(figure="bytes_per_clip", value=row["bytes_per_clip"], frames=16),
    )
    return [figure.tree() for figure in figures]


def table(results: dict[str, Any]) -> str:
    """Both tables as text."""
    head = (
        f"{'way':<30} {'to':<6} {'clips/CPU s':>12} {'best':>8} {'clips/s':>9} {'best':>8} {'CPU ms':>8} {'bytes':>9}"
        f" {'ours x':>7} {'by clock':>9}"
    )
    lines = [head]
    for each in results["rows"]:
        lines.append(
            f"{each['name']:<30} {each['output']:<6} {each['clips_per_cpu_second']:>12,.0f} {each['best']:>8,.0f}"
            f" {each['clips_per_second']:>9,.0f} {each['best_by_clock']:>8,.0f} {each['cpu_ms_per_clip']:>8.2f}"
            f" {each['bytes_per_clip']:>9,.0f} {each['ratio']:>7.2f} {each['ratio_by_clock']:>9.2f}"
        )
    lines += ["", *results["missing"], ""]
    for each in results["judged"]:
        said = "pass" if each["passed"] else "MISS"
        lines.append(
            f"{each['what']:<44} to {each['output']:<6} {each['ratio']:>6.2f}  (goal {each['goal']:g}) {said}"
            f"  by the clock {each['ratio_by_clock']:.2f}"
        )
    return "\n".join(lines)


def comparison(folder: Path, quick: bool, rounds: int) -> dict[str, Any]:
    """The stores made, the ways compared and told."""
    from tests.benchmarks.support.loader_stores import segmented

    store, tar = segmented(folder, VIDEOS[:1] if quick else VIDEOS, 1 if quick else 3)
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    core = max(before)
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    try:
        steps = 2 if quick else 8
        results = compared(ways.task(DataSettings(store=store), steps, LANE_BATCH, tar=tar), 1 if quick else rounds)
    finally:
        os.sched_setaffinity(0, before)
        torch.set_num_threads(threads)
    load = os.getloadavg()[0]
    print(f"{results['clips']} clips, {results['rounds']} rounds, one of {os.cpu_count()} cores, load {load:.1f}\n")
    print(table(results), flush=True)
    return results | {"load": load}


def main() -> None:
    """Run the parts that are asked for, print what they find, and write it as JSON where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--quick", action="store_true", help="one video, one round; less of everything")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--leak", action="store_true", help="memory over 100,000 clips of one worker, instead")
    parser.add_argument("--s3", action="store_true", help="an S3 store beside a directory, instead")
    parser.add_argument("--clips", type=int, help="so many clips of --leak")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-loader-") as name:
        folder = Path(name)
        if args.leak:
            from tests.benchmarks.support.loader_leak import leak

            results["leak"] = leak(folder / "leak", args.clips or (2_000 if args.quick else 100_000))
        if args.s3:
            from tests.benchmarks.support.loader_s3 import s3

            results["s3"] = s3(folder / "s3", args.quick)
        if not args.leak and not args.s3:
            results["compared"] = comparison(folder / "compared", args.quick, args.rounds)
            results["measured"] = measured_figures(results["compared"])
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
