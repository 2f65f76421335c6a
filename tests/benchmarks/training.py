"""Benchmark: training as users start it, beside its network alone, its loader alone, and plain DDP with autocast.

python -m tests.benchmarks.training [--quick] [--rounds N] [--ranks N,N] [--out FILE]

The same clips of real video by the same recipe, one process tree after the other, in turns; figures are medians over
the windows of all rounds, ratios those of rounds. On a GPU R(2+1)D-34 at 16 frames and -152 at 32, whose stages are
computed twice, of 112², 32 clips, bf16; on a CPU the demo's network. The bound of training: on a GPU the slower of
network and loader; on a CPU, whose cores they share, the sum of their work, 1 / (1 / network + 1 / loader), by the
clock and by CPU seconds, which other work on the machine disturbs less (of several threads they count waiting, too).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from cluster.jobs.training import TrainingJob
from cluster.usage import started_by, usage_of
from pretrain.engine.peak import mfu, peak_flops
from pretrain.engine.world import free_port
from pretrain.models.count import macs
from pretrain.models.zoo import build_model
from pretrain.report_runs import read_metrics
from sharding.settings import validate
from tests.benchmarks.loader_stores import segmented

ROOT = Path(__file__).parents[2]
VIDEOS = ("bikes.mp4", "slackline.mp4", "cup.mp4")
BOUND_GOAL, SAVING_GOAL, SAVED_EVERY = 0.95, 0.02, 600.0
NEVER = 10**9


@dataclass(frozen=True)
class Window:
    """What a contender did between two of its lines; nan where it does not tell, or nothing was seen."""

    clips: float
    seconds: float
    cpu_seconds: float
    told: dict[str, float]


@dataclass
class Seen:
    """A contender's windows, round by round."""

    name: str
    ranks: int
    rounds: list[list[Window]] = field(default_factory=list)
    failed: str = ""

    @property
    def windows(self) -> list[Window]:
        """Of all rounds."""
        return [window for each in self.rounds for window in each]

    def seconds_a_clip(self, number: int | None = None) -> float:
        """By the clock, the median of one round or of all."""
        return median([window.seconds / window.clips for window in self._of(number)])

    def cpu_a_clip(self, number: int | None = None) -> float:
        """CPU seconds of all its processes."""
        return median([window.cpu_seconds / window.clips for window in self._of(number)])

    def told(self, name: str) -> float:
        """The median of what a run's own lines say."""
        return median([window.told.get(name, float("nan")) for window in self.windows])

    def _of(self, number: int | None) -> list[Window]:
        return self.windows if number is None else self.rounds[number]


def median(values: Sequence[float]) -> float:
    """Of those that are known; nan without any."""
    known = [value for value in values if value == value]
    return statistics.median(known) if known else float("nan")


def cases(device: torch.device, quick: bool, ranks: Sequence[int]) -> dict[str, dict[str, Any]]:
    """Recipes by name."""
    common = {
        "launcher": "none",
        "monitor": {"port": 0},
        "lanes": max(ranks),
        "validation": {"every_steps": NEVER},
        "checkpoint": {"every_steps": NEVER},
        "schedule": {"lr": 0.001, "epoch_clips": 1_000_000, "epochs": 1, "warmup_epochs": 0, "decay": "constant"},
    }
    if device.type == "cuda":
        clip = {"resize": [128, 171], "crop": 112}
        return {
            f"R(2+1)D-{depth}, 32 × {frames} × 112², bf16": common
            | {
                "lane_batch": 32,
                "log_steps": 10,
                "data": {"clip": clip | {"frames": frames}},
                "model": {"depth": depth},
                "engine": {"precision": "bf16", "recomputed": recomputed},
            }
            for depth, frames, recomputed in ((34, 16, 0), (152, 32, 5))
        }
    network = {"depth": 10, "width": 0.125 if quick else 0.25}
    clip = {"frames": 8, "resize": [36, 44] if quick else [56, 56], "crop": 32 if quick else 48}
    demo = common | {
        "lane_batch": 2 if quick else 16,
        "log_steps": 1 if quick else 5,
        "data": {"clip": clip, "loader": {"workers": 1} if quick else {}},
        "model": network,
        "engine": {"precision": "fp32"} | ({"path": "channels-last"} if quick else {}),
    }
    return {f"the demo's network, 16 × 8 × {clip['crop']}², fp32": demo}


class Bench:
    """A recipe's contenders on a store. `windows` of a run are looked at, after a first one."""

    def __init__(self, folder: Path, recipe: dict[str, Any], store: str, windows: int) -> None:
        self.folder, self.windows = folder, windows
        folder.mkdir(parents=True)
        self.recipe = {**recipe, "data": {**recipe["data"], "store": store}}
        self.path: Path | None = None
        self._runs = 0

    @property
    def job(self) -> TrainingJob:
        """The recipe as settings."""
        return validate(TrainingJob, self.recipe, "the benchmark's recipe")

    def run(self, seen: Seen, times: int = 1, **changes: Any) -> None:
        """One round of a contender, `ours` or a mode of `training_rank`, over so many times the windows."""
        if seen.failed:
            return
        self._runs += 1
        run = self.folder / f"run{self._runs}"
        run.mkdir()
        if self.path:
            shutil.copy(self.path, run)
        recipe = self.recipe | changes
        job = validate(TrainingJob, recipe, "the benchmark's recipe")
        steps = job.log_steps * (times * self.windows + 1)
        recipe["schedule"] = {**recipe["schedule"], "epoch_clips": steps * job.batch}
        file = self.folder / f"run{self._runs}.yaml"
        file.write_text(yaml.safe_dump(recipe))
        if seen.name.startswith("ours"):
            commands = [["cluster.cli", "pretrain", str(file), f"run={run}", f"ranks={seen.ranks}"]]
        else:
            commands = [["tests.benchmarks.training_rank", seen.name, str(file), str(run), str(steps)]] * seen.ranks
        try:
            seen.rounds.append(watched(commands, run, job.batch * job.log_steps))
        except subprocess.CalledProcessError as error:
            seen.failed = error.stderr.strip().splitlines()[-1][:100] if error.stderr.strip() else str(error)
        measured = run / "path.json"
        if self.path is None and measured.exists():
            self.path = self.folder / measured.name
            shutil.copy(measured, self.path)
        shutil.rmtree(run)


def watched(commands: list[list[str]], run: Path, clips: int) -> list[Window]:
    """Run a contender's processes; a window for each line of its metrics but the first, of so many clips.

    Raises CalledProcessError for one that fails, with what it said.
    """
    cores = os.cpu_count() or 1
    shared = {"WORLD_SIZE": str(len(commands)), "LOCAL_WORLD_SIZE": str(len(commands)), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": str(max(1, cores // len(commands)))}
    log, processes = (run.parent / f"{run.name}.log").open("w+"), []
    for rank, command in enumerate(commands):
        environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        if command[0] != "cluster.cli":
            environment |= shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(
            subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=environment, stdout=log, stderr=log)
        )
    spent: list[float] = []
    while all(process.poll() in (None, 0) for process in processes) and any(each.poll() is None for each in processes):
        fresh = len(_lines(run)) - len(spent)
        if fresh:
            spent += [sum(_cpu_seconds(process.pid) for process in processes)] * fresh
        time.sleep(0.02)
    failed = next((process for process in processes if process.poll()), None)
    for process in processes:
        if failed:
            process.kill()
        process.wait()
    log.seek(0)
    with log:
        if failed:
            raise subprocess.CalledProcessError(failed.returncode, failed.args, stderr=log.read())
    told, windows = _lines(run), []
    for number in range(1, len(told)):
        seen = number < len(spent) and spent[number] != spent[number - 1]
        cpu = spent[number] - spent[number - 1] if seen else float("nan")
        numbers = {name: float(value) for name, value in told[number].items() if isinstance(value, int | float)}
        windows.append(Window(clips, clips / told[number]["clips_per_second"], cpu, numbers))
    return windows


def _lines(run: Path) -> list[dict[str, Any]]:
    return read_metrics(run / "metrics.jsonl")[0]


def _cpu_seconds(pid: int) -> float:
    """Of a process and of all below it that still run."""
    try:
        total, left = usage_of(pid).cpu_seconds, [pid]
    except ProcessLookupError:
        return 0.0
    while left:
        children = started_by(left.pop())
        total += sum(usage.cpu_seconds for usage in children.values())
        left += children
    return total


def compare(bench: Bench, ranks: Sequence[int], rounds: int, device: torch.device) -> dict[str, Any]:
    """Rows of all contenders at each number of ranks, what saving takes, and what is judged."""
    job, peak = bench.job, 0.0
    clip = job.data.clip
    with torch.device("meta"):
        per_clip = macs(build_model(job.model, 400, clip.frames, clip.crop), clip.frames, clip.crop, clip.crop)
    found = {
        (name, count): Seen(name, count)
        for count in ranks
        for name in ("ours", "model", "loader", "plain", *(["exchange"] if count > 1 else []))
    }
    saving = Seen("ours, saving every second step", max(ranks))
    for _ in range(rounds):
        peak = max(peak, peak_flops(device, job.engine.precision == "bf16"))  # a busy CPU shows less of it
        for seen in found.values():
            bench.run(seen)
        bench.run(saving, times=4, log_steps=1, checkpoint={"every_steps": 2})
    devices = max(ranks) if device.type == "cuda" else 1
    rows = [row(seen, found, per_clip, peak, seen.ranks if devices > 1 else 1) for seen in found.values()]
    result = {
        "gmacs_per_clip": per_clip / 1e9,
        "peak_tflops": peak / 1e12,
        "load": os.getloadavg()[0],
        "rows": rows,
        "saving": saved(saving, found["ours", max(ranks)]),
    }
    return result | {"judged": judged(result, found, ranks, device)}


def row(seen: Seen, found: dict[tuple[str, int], Seen], per_clip: float, peak: float, devices: int) -> dict[str, Any]:
    """A contender's figures."""
    if seen.failed or not seen.rounds:
        return {"name": seen.name, "ranks": seen.ranks, "failed": seen.failed}
    rate = 1 / seen.seconds_a_clip()
    figures: dict[str, Any] = {
        "name": seen.name,
        "ranks": seen.ranks,
        "clips_per_second": rate,
        "clips_per_second_by_round": [1 / seen.seconds_a_clip(number) for number in range(len(seen.rounds))],
        "cpu_ms_per_clip": 1e3 * seen.cpu_a_clip(),
        "data_wait_ratio": seen.told("data_wait_ratio") if seen.name in ("ours", "plain") else float("nan"),
        "mfu": mfu(rate, per_clip, peak, devices) if seen.name in ("ours", "plain", "model") else float("nan"),
    }
    if seen.name == "ours":
        figures["told"] = {name: seen.told(name) for name in ("mfu", "memory_bytes", "saving_ratio")}
        exchange = found.get(("exchange", seen.ranks))
        if exchange and exchange.rounds:
            figures["exchange_ratio"] = exchange.seconds_a_clip() * rate
    return figures


def saved(saving: Seen, ours: Seen) -> dict[str, float]:
    """Seconds that training pauses for a checkpoint: steps after (or with) one against the steps between."""
    pauses = []
    for windows in saving.rounds:
        halves = [median([window.seconds for window in windows[begin::2]]) for begin in (0, 1)]
        pauses.append(abs(halves[0] - halves[1]))
    seconds = median(pauses)
    return {"seconds": seconds, "share": seconds / SAVED_EVERY, "told_share": ours.told("saving_ratio")}


def share_of_bound(ours: Seen, model: Seen, loader: Seen, number: int, device: torch.device) -> float:
    """How near a round of training came to the bound that the module's head tells of, by the clock."""
    network, clips = model.seconds_a_clip(number), loader.seconds_a_clip(number)
    if device.type == "cuda":
        return max(network, clips) / ours.seconds_a_clip(number)
    return (network + loader.cpu_a_clip(number) / (os.cpu_count() or 1)) / ours.seconds_a_clip(number)


def judged(
    result: dict[str, Any], found: dict[tuple[str, int], Seen], ranks: Sequence[int], device: torch.device
) -> list[dict[str, Any]]:
    """Ours against its bound and the plain loop, more ranks against the fewest, and saving."""
    lines: list[dict[str, Any]] = []

    def add(what: str, values: Sequence[float], goal: float, most: bool = False) -> None:
        value = median(values)
        passed = value <= goal if most else value >= goal
        lines.append({"what": what, "value": value, "goal": goal, "passed": passed if value == value else None})

    for count in ranks:
        ours, model, loader, plain = (found[name, count] for name in ("ours", "model", "loader", "plain"))
        told = f"{count} rank{'s' * (count > 1)}"
        rounds = range(min(len(each.rounds) for each in (ours, model, loader)))
        shares = [share_of_bound(ours, model, loader, n, device) for n in rounds]
        add(f"ours / bound, by the clock, {told}", shares, BOUND_GOAL)
        if device.type == "cpu":
            shares = [(model.cpu_a_clip(n) + loader.cpu_a_clip(n)) / ours.cpu_a_clip(n) for n in rounds]
            add(f"ours / bound, by CPU seconds, {told}", shares, BOUND_GOAL)
        both = range(min(len(ours.rounds), len(plain.rounds)))
        add(f"ours / plain DDP, {told}", [plain.seconds_a_clip(n) / ours.seconds_a_clip(n) for n in both], 1.0)
    for count in ranks[1:]:
        few, many = found["ours", ranks[0]], found["ours", count]
        rounds = range(min(len(few.rounds), len(many.rounds)))
        times = count // ranks[0] if device.type == "cuda" else 1  # ranks of a CPU share its cores
        shares = [few.seconds_a_clip(n) / many.seconds_a_clip(n) / times for n in rounds]
        add(f"ours on {count} ranks / on {ranks[0]}" + (f" / {times}" if times > 1 else ""), shares, BOUND_GOAL)
    add("saving, a share of 10 minutes", [result["saving"]["share"]], SAVING_GOAL, most=True)
    return lines


def table(name: str, result: dict[str, Any]) -> str:
    """A case's figures as text."""
    lines = [
        f"\n{name}  ({result['gmacs_per_clip']:.2f} GMACs a clip, peak {result['peak_tflops']:.3g} TFLOP/s, "
        f"load {result['load']:.1f})",
        f"  {'':10} {'ranks':>5} {'clips/s':>9} {'CPU ms':>8} {'MFU':>7} {'waits':>7} {'exchange':>9}  by round",
    ]
    for each in result["rows"]:
        if "clips_per_second" not in each:
            lines.append(f"  {each['name']:10} {each['ranks']:>5}  does not run: {each['failed']}")
            continue
        rounds = " ".join(f"{value:.4g}" for value in each["clips_per_second_by_round"])
        lines.append(
            f"  {each['name']:10} {each['ranks']:>5} {each['clips_per_second']:>9.1f} {each['cpu_ms_per_clip']:>8.2f}"
            f" {_percent(each['mfu']):>7} {_percent(each['data_wait_ratio']):>7}"
            f" {_percent(each.get('exchange_ratio', float('nan'))):>9}  {rounds}"
        )
    saving = result["saving"]
    for each in result["rows"]:
        told = {name: value for name, value in each.get("told", {}).items() if value == value}
        if told:
            lines.append(f"  a run on {each['ranks']} tells {', '.join(f'{n} {v:.4g}' for n, v in told.items())}")
    lines.append(f"  saving: training pauses {1e3 * saving['seconds']:.0f} ms a checkpoint")
    for each in result["judged"]:
        said = {True: "pass", False: "MISS", None: "not seen"}[each["passed"]]
        lines.append(f"  {each['what']:<44} {each['value']:>8.4g}  (goal {each['goal']:g}) {said}")
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share == share else "–"


def main() -> None:
    """Make a store, run the cases, print their tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of a few steps of a tiny network")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--windows", type=int, default=6, help="of each run that are looked at")
    parser.add_argument("--ranks", help="numbers of processes, the fewest first; unless given 1,2, or 1 to all GPUs")
    parser.add_argument("--out", type=Path, default=Path("bench/training.json"))
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    most = torch.cuda.device_count() if device.type == "cuda" else 2
    ranks = [int(each) for each in given.ranks.split(",")] if given.ranks else [n for n in (1, 2, 4) if n <= most]
    rounds, windows = (1, 2) if given.quick else (given.rounds, given.windows)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-train-") as name:
        store, _ = segmented(Path(name), VIDEOS[:1] if given.quick else VIDEOS, 1 if given.quick else 6, plain=False)
        for number, (case, recipe) in enumerate(cases(device, given.quick, ranks).items()):
            bench = Bench(Path(name) / f"case{number}", recipe, store, windows)
            results[case] = compare(bench, ranks, rounds, device)
            print(table(case, results[case]), flush=True)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps({"torch": torch.__version__, "device": str(device), "cases": results}, indent=1))
    print(f"\nfigures: {given.out}")


if __name__ == "__main__":
    main()
