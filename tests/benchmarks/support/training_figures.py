"""Part of the training benchmark: from what was seen of its contenders to figures, judged and as a table."""

from __future__ import annotations

import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from pretrain.engine.mfu import mfu

BOUND_GOAL, SAVING_GOAL, SAVED_EVERY = 0.95, 0.02, 600.0
START_GOAL = 25.0  # seconds to the first step on a GPU


@dataclass(frozen=True)
class Window:
    """What a contender did between two of its lines; nan where it does not tell, or nothing was seen."""

    clips: float
    seconds: float
    cpu_seconds: float
    logged: dict[str, float]


@dataclass
class Seen:
    """A contender's windows, round by round."""

    name: str
    ranks: int
    rounds: list[list[Window]] = field(default_factory=list)
    first_lines: list[float] = field(default_factory=list)  # seconds from each round's start to its first line
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

    def logged(self, name: str) -> float:
        """The median of what a run's own lines say."""
        return median([window.logged.get(name, float("nan")) for window in self.windows])

    def _of(self, number: int | None) -> list[Window]:
        return self.windows if number is None else self.rounds[number]


def median(values: Sequence[float]) -> float:
    """Of those that are known; nan without any."""
    numbers = [value for value in values if value == value]
    return statistics.median(numbers) if numbers else float("nan")


def row(
    seen: Seen, seen_by_name: dict[tuple[str, int], Seen], per_clip: float, peak: float, devices: int
) -> dict[str, Any]:
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
        "data_wait_ratio": seen.logged("data_wait_ratio") if seen.name in ("ours", "plain") else float("nan"),
        "mfu": mfu(rate, per_clip, peak, devices) if seen.name in ("ours", "plain", "model") else float("nan"),
    }
    if seen.name == "ours":
        figures["told"] = {name: seen.logged(name) for name in ("mfu", "memory_bytes", "saving_ratio")}
        exchange = seen_by_name.get(("exchange", seen.ranks))
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
    return {"seconds": seconds, "share": seconds / SAVED_EVERY, "told_share": ours.logged("saving_ratio")}


def share_of_bound(ours: Seen, model: Seen, loader: Seen, number: int, device: torch.device) -> float:
    """How near a round of training came to the bound that the module's head tells of, by the clock."""
    network, clips = model.seconds_a_clip(number), loader.seconds_a_clip(number)
    if device.type == "cuda":
        return max(network, clips) / ours.seconds_a_clip(number)
    return (network + loader.cpu_a_clip(number) / (os.cpu_count() or 1)) / ours.seconds_a_clip(number)


def judged(
    result: dict[str, Any], seen_by_name: dict[tuple[str, int], Seen], ranks: Sequence[int], device: torch.device
) -> list[dict[str, Any]]:
    """Ours against its network alone, its bound and the plain loop, more ranks against the fewest, start and saving."""
    lines: list[dict[str, Any]] = []
    on_gpu = device.type == "cuda"

    def add(what: str, values: Sequence[float], goal: float | None, most: bool = False) -> None:
        value = median(values)
        passed = None
        if goal is not None and value == value:
            passed = value <= goal if most else value >= goal
        lines.append({"what": what, "value": value, "goal": goal, "passed": passed})

    for count in ranks:
        ours, model, loader, plain = (seen_by_name[name, count] for name in ("ours", "model", "loader", "plain"))
        by_ranks = f"{count} rank{'s' * (count > 1)}"
        both = range(min(len(ours.rounds), len(model.rounds)))
        shares = [model.seconds_a_clip(n) / ours.seconds_a_clip(n) for n in both]
        add(f"training / network alone (e2e), {by_ranks}", shares, BOUND_GOAL if on_gpu else None)
        rounds = range(min(len(each.rounds) for each in (ours, model, loader)))
        shares = [share_of_bound(ours, model, loader, n, device) for n in rounds]
        add(f"ours / bound, by the clock, {by_ranks}", shares, BOUND_GOAL)
        if not on_gpu:
            shares = [(model.cpu_a_clip(n) + loader.cpu_a_clip(n)) / ours.cpu_a_clip(n) for n in rounds]
            add(f"ours / bound, by CPU seconds, {by_ranks}", shares, BOUND_GOAL)
        both = range(min(len(ours.rounds), len(plain.rounds)))
        add(f"ours / plain DDP, {by_ranks}", [plain.seconds_a_clip(n) / ours.seconds_a_clip(n) for n in both], 1.0)
    for count in ranks[1:]:
        few, many = seen_by_name["ours", ranks[0]], seen_by_name["ours", count]
        rounds = range(min(len(few.rounds), len(many.rounds)))
        times = count // ranks[0] if on_gpu else 1  # ranks of a CPU share its cores
        shares = [few.seconds_a_clip(n) / many.seconds_a_clip(n) / times for n in rounds]
        add(f"ours on {count} ranks / on {ranks[0]}" + (f" / {times}" if times > 1 else ""), shares, BOUND_GOAL)
    for name, seconds in result["first_step"].items():
        add(f"seconds to the first step, {name} start", [seconds], START_GOAL if on_gpu else None, most=True)
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
        goal = "" if each["goal"] is None else f"  (goal {each['goal']:g}) {said}"
        lines.append(f"  {each['what']:<44} {each['value']:>8.4g}{goal}")
    return "\n".join(lines)


def _percent(share: float) -> str:
    return f"{100 * share:.1f}%" if share == share else "–"
