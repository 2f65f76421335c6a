"""Benchmark: training as users start it, beside its network alone, its loader alone, and plain DDP with autocast.

python -m tests.benchmarks.training [--quick] [--all] [--rounds N] [--windows N] [--ranks N,N] [--out FILE]

The same clips of real video by the same recipe, one process tree after the other, in turns; figures are medians over
the windows of all rounds, ratios those of rounds. On a GPU R(2+1)D-34 at 16 frames of 112², 32 clips, bf16, within 8
minutes, or 3 with --quick; with --all -152 at 32 frames, too, whose stages are computed twice. On a CPU the demo's
network. e2e: training over its network alone, which takes its steps by the engine as training does, on clips that lie
ready. The bound of training: on a GPU the slower of network and loader; on a CPU, whose cores they share, the sum of
their work, 1 / (1 / network + 1 / loader), by the clock and by CPU seconds, which other work on the machine disturbs
less (of several threads they count waiting, too). The first step's seconds are from the command's start: of a first
start, which finds no cache of paths or kernels, and of later ones.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from cluster.jobs.process_usage import started_by, usage_of
from cluster.jobs.training import TrainingJob
from pretrain.engine.distributed import free_port
from pretrain.engine.mfu import peak_flops, product_flops
from pretrain.models.count import macs, parameters
from pretrain.models.zoo import build_model
from pretrain.planning.measured import MeasuredFigure
from pretrain.report.run_data import read_metrics
from pretrain.settings import TrainSettings, state_bytes
from sharding.base.settings import validate
from tests.benchmarks.support.loader_stores import segmented
from tests.benchmarks.support.training_figures import Seen, Window, judged, median, row, saved, table

ROOT = Path(__file__).parents[2]
VIDEOS = ("bikes.mp4", "slackline.mp4", "cup.mp4")
CACHES = {
    "REELSCALE_CACHE": "reelscale",
    "XDG_CACHE_HOME": "",
    "TRITON_CACHE_DIR": "triton",
    "TORCHINDUCTOR_CACHE_DIR": "inductor",
}  # by their folder
NEVER = 10**9


def cases(device: torch.device, quick: bool, ranks: Sequence[int], every: bool = False) -> dict[str, dict[str, Any]]:
    """Recipes by name; on a GPU the one that is judged, or `every`."""
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
            for depth, frames, recomputed in ((34, 16, 0), (152, 32, 5))[: 2 if every else 1]
        }
    network = {"depth": 10, "width": 0.125 if quick else 0.25}
    clip = {"frames": 8, "resize": [36, 44] if quick else [56, 56], "crop": 32 if quick else 48}
    demo = common | {
        "lane_batch": 2 if quick else 16,
        "log_steps": 1 if quick else 5,
        "data": {"clip": clip, "loader": {"workers": 1} if quick else {}},
        "model": network,
        "engine": {"precision": "fp32"} | ({"compute_path": "channels-last"} if quick else {}),
    }
    return {f"the demo's network, 16 × 8 × {clip['crop']}², fp32": demo}


class Bench:
    """A recipe's contenders on a store, with their own caches. `windows` of a run are looked at, after a first one."""

    def __init__(self, folder: Path, recipe: dict[str, Any], store: str, windows: int) -> None:
        self.folder, self.windows = folder, windows
        folder.mkdir(parents=True)
        self.recipe = {**recipe, "data": {**recipe["data"], "store": store}}
        self.path: Path | None = None
        self._runs = 0
        self._caches = {name: str(folder / "caches" / inside) for name, inside in CACHES.items()}

    @property
    def job(self) -> TrainSettings:
        """The recipe as settings."""
        return validate(TrainingJob, self.recipe, "the benchmark's recipe").train

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
        job = validate(TrainingJob, recipe, "the benchmark's recipe").train
        steps = job.log_steps * (times * self.windows + 1)
        recipe["schedule"] = {**recipe["schedule"], "epoch_clips": steps * job.batch}
        file = self.folder / f"run{self._runs}.yaml"
        file.write_text(yaml.safe_dump(recipe))
        if seen.name.startswith("ours"):
            commands = [["cluster.cli", "pretrain", str(file), f"run={run}", f"ranks={seen.ranks}"]]
        else:
            commands = [
                ["tests.benchmarks.support.training_rank", seen.name, str(file), str(run), str(steps)]
            ] * seen.ranks
        try:
            windows, first = watched(commands, run, job.batch * job.log_steps, self._caches)
            seen.rounds.append(windows)
            seen.first_lines.append(first)
        except subprocess.CalledProcessError as error:
            seen.failed = error.stderr.strip().splitlines()[-1][:100] if error.stderr.strip() else str(error)
        measured = run / "compute_path.json"
        if self.path is None and measured.exists():
            self.path = self.folder / measured.name
            shutil.copy(measured, self.path)
        shutil.rmtree(run)


def watched(
    commands: list[list[str]], run: Path, clips: int, variables: Mapping[str, str]
) -> tuple[list[Window], float]:
    """Run a contender's processes; a window for each line of its metrics but the first, of so many clips.

    And seconds from their start until the first line was seen; nan without any.

    Raises CalledProcessError for one that fails, with what it said.
    """
    cores = os.cpu_count() or 1
    shared = {"WORLD_SIZE": str(len(commands)), "LOCAL_WORLD_SIZE": str(len(commands)), "MASTER_ADDR": "127.0.0.1"}
    shared |= {"MASTER_PORT": str(free_port()), "OMP_NUM_THREADS": str(max(1, cores // len(commands)))}
    log, processes = (run.parent / f"{run.name}.log").open("w+"), []
    begin, first = time.perf_counter(), float("nan")
    for rank, command in enumerate(commands):
        environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
        environment |= variables
        if command[0] != "cluster.cli":
            environment |= shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        processes.append(
            subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, env=environment, stdout=log, stderr=log)
        )
    spent: list[float] = []
    while all(process.poll() in (None, 0) for process in processes) and any(each.poll() is None for each in processes):
        fresh = len(_lines(run)) - len(spent)
        if fresh:
            first = first if spent else time.perf_counter() - begin
            spent += [sum(_cpu_seconds(process.pid) for process in processes)] * fresh
        time.sleep(0.02)
    if not spent and _lines(run):  # all written since the last look, on a busy machine
        first = time.perf_counter() - begin
    failed = next((process for process in processes if process.poll()), None)
    for process in processes:
        if failed:
            process.kill()
        process.wait()
    log.seek(0)
    with log:
        if failed:
            raise subprocess.CalledProcessError(failed.returncode, failed.args, stderr=log.read())
    lines, windows = _lines(run), []
    for number in range(1, len(lines)):
        seen = number < len(spent) and spent[number] != spent[number - 1]
        cpu = spent[number] - spent[number - 1] if seen else float("nan")
        numbers = {name: float(value) for name, value in lines[number].items() if isinstance(value, int | float)}
        windows.append(Window(clips, clips / lines[number]["clips_per_second"], cpu, numbers))
    return windows, first


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
        model = build_model(job.model, 400, clip.frames, clip.crop)
    per_clip = macs(model, clip.frames, clip.crop, clip.crop)
    seen_by_name = {
        (name, count): Seen(name, count)
        for count in ranks
        for name in ("ours", "model", "loader", "plain", *(["exchange"] if count > 1 else []))
    }
    saving = Seen("ours, saving every second step", max(ranks))
    for _ in range(rounds):
        half = job.engine.precision == "bf16"
        peak = max(peak, peak_flops(device, half) or product_flops(device, half))  # a busy CPU shows less of it
        # The first of all that starts, a line a step: its first line is the first step of a first start.
        bench.run(saving, times=4, log_steps=1, checkpoint={"every_steps": 2})
        for seen in seen_by_name.values():
            bench.run(seen)
    devices = max(ranks) if device.type == "cuda" else 1
    rows = [row(seen, seen_by_name, per_clip, peak, seen.ranks if devices > 1 else 1) for seen in seen_by_name.values()]
    result = {
        "gmacs_per_clip": per_clip / 1e9,
        "precision": job.engine.precision,
        "checkpoint_bytes": state_bytes(job, count := parameters(model), 1) - 4 * count,
        "peak_tflops": peak / 1e12,
        "load": os.getloadavg()[0],
        "rows": rows,
        "saving": saved(saving, seen_by_name["ours", max(ranks)]),
        "first_step": {"first": median(saving.first_lines[:1]), "later": median(saving.first_lines[1:])},
    }
    return result | {"judged": judged(result, seen_by_name, ranks, device)}


def measured_figures(results: Mapping[str, Mapping[str, Any]], device: str) -> list[dict[str, Any]]:
    """What `reelscale plan --measured` takes of the cases: a rank's clips/s, a checkpoint's pause, a start's seconds.

    Of a GPU; what ranks on a CPU do, which share its cores, says nothing of another number of them.
    """
    figures = []
    for result in results.values():
        common = {"device": device, "precision": result["precision"]}
        for each in result["rows"]:
            if each["name"] == "ours" and "clips_per_second" in each:
                rate = each["clips_per_second"] / each["ranks"]
                gmacs = result["gmacs_per_clip"]
                figures.append(MeasuredFigure(figure="training_clips_per_second", value=rate, gmacs=gmacs, **common))
        pause, start, size = result["saving"]["seconds"], result["first_step"]["later"], result["checkpoint_bytes"]
        if pause == pause:
            figures.append(MeasuredFigure(figure="checkpoint_pause_seconds", value=pause, bytes=size, **common))
        if start == start:
            figures.append(MeasuredFigure(figure="start_seconds", value=start, **common))
    return [figure.tree() for figure in figures]


def main() -> None:
    """Make a store, run the cases, print their tables, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one round of a few steps, on a CPU of a tiny network")
    parser.add_argument("--all", action="store_true", help="on a GPU, R(2+1)D-152, too")
    parser.add_argument("--rounds", type=int, help="3 unless given, on a GPU 2")
    parser.add_argument("--windows", type=int, default=6, help="of each run that are looked at")
    parser.add_argument("--ranks", help="numbers of processes, the fewest first; unless given 1,2, or 1 to all GPUs")
    parser.add_argument("--out", type=Path, default=Path("bench/training.json"))
    args = parser.parse_args()
    begin, device = time.perf_counter(), torch.device("cuda" if torch.cuda.is_available() else "cpu")
    most = torch.cuda.device_count() if device.type == "cuda" else 2
    ranks = [int(each) for each in args.ranks.split(",")] if args.ranks else [n for n in (1, 2, 4) if n <= most]
    tiny = args.quick and device.type == "cpu"
    rounds, windows = args.rounds or (3 if device.type == "cpu" else 2), args.windows
    if args.quick:
        rounds, windows = 1, 2 if tiny else 3
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="bench-train-") as name:
        store, _ = segmented(Path(name), VIDEOS[:1] if tiny else VIDEOS, 1 if args.quick else 6, plain=False)
        for number, (case, recipe) in enumerate(cases(device, args.quick, ranks, args.all).items()):
            bench = Bench(Path(name) / f"case{number}", recipe, store, windows)
            results[case] = compare(bench, ranks, rounds, device)
            print(table(case, results[case]), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    measured = measured_figures(results, torch.cuda.get_device_name()) if device.type == "cuda" else []
    figures = {"torch": torch.__version__, "device": str(device), "measured": measured, "cases": results}
    args.out.write_text(json.dumps(figures, indent=1))
    print(f"\nfigures: {args.out}; took {(time.perf_counter() - begin) / 60:.1f} minutes")


if __name__ == "__main__":
    main()
