"""Part of the benchmarks: which share of a step the device is busy for, and which the host."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")  # what a GPU does, by its category in a Chrome trace


class Taken(NamedTuple):
    """A step's seconds by the clock, those of them until its last call returned, and the process' CPU seconds."""

    seconds: float
    sent: float
    cpu: float


def taken(step: Callable[[], object], device: torch.device) -> Taken:
    """One step, begun when nothing runs on the device, waited for at its end."""
    wait(device)
    begin, spent = time.perf_counter(), time.process_time()
    step()
    sent = time.perf_counter() - begin
    wait(device)
    return Taken(time.perf_counter() - begin, sent, time.process_time() - spent)


def shares(step: Callable[[], object], device: torch.device, steps: Sequence[Taken]) -> dict[str, float]:
    """`busy_share` of the device and, on a GPU, `host_share`: the part of a step that the host takes to send it.

    On a GPU the seconds in which anything ran on it, in 3 more steps that are traced, over those of the median step,
    which was not: tracing slows the host alone. On a CPU the process' CPU seconds over those of all its threads.
    """
    if device.type == "cpu":
        seconds = sum(each.seconds for each in steps) * torch.get_num_threads()
        return {"busy_share": sum(each.cpu for each in steps) / seconds}
    busy = busy_seconds(traced(step, device, 3)) / 3 or float("nan")  # of a driver that lets nobody look
    return {
        "busy_share": min(busy / statistics.median(each.seconds for each in steps), 1.0),
        "host_share": statistics.median(each.sent / each.seconds for each in steps),
    }


def traced(step: Callable[[], object], device: torch.device, steps: int) -> list[dict[str, Any]]:
    """The events of a Chrome trace of so many steps."""
    with tempfile.TemporaryDirectory(prefix="trace-") as folder:
        file = Path(folder) / "trace.json"
        wait(device)
        activity = ProfilerActivity.CUDA if device.type == "cuda" else ProfilerActivity.CPU
        with profile(activities=[activity]) as profiled:
            for _ in range(steps):
                step()
            wait(device)
        profiled.export_chrome_trace(str(file))
        return list(json.loads(file.read_text())["traceEvents"])


def busy_seconds(events: Iterable[dict[str, Any]], kinds: Sequence[str] = ON_DEVICE) -> float:
    """Seconds in which at least one event of these categories ran."""
    spans = sorted((each["ts"], each["ts"] + each["dur"]) for each in events if each.get("cat") in kinds)
    busy, until = 0.0, float("-inf")
    for begin, end in spans:
        busy += max(0.0, end - max(begin, until))
        until = max(until, end)
    return busy / 1e6  # a trace counts microseconds


def wait(device: torch.device) -> None:
    """Until all that was sent to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
