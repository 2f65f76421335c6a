"""How a process is, and how the run is that it belongs to: one word and its reason, by what was heard alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

from cluster.status.pages import Figures
from cluster.status.scraping import Reply
from cluster.status.states import Outcome, Problem, ProcessState
from sharding.base.printable import visible

_OK = "ok: "
_NAMED = 4  # processes that a reason names one by one


def process_state(reply: Reply, figures: Figures) -> ProcessState:
    """A process as it answered: by its own labels, else by those of its file."""
    whose, target = figures.labels("reelscale_ready"), reply.target
    rank = whose.get("rank", "")
    used, total = (figures.value(f"reelscale_gpu_memory_{name}_bytes") for name in ("used", "total"))
    return ProcessState(
        rank=int(rank) if rank.isdecimal() else target.rank,
        node=whose.get("node") or target.node,
        place=target.place,
        health="does not answer" if reply.ready is None else "ready" if reply.ready else "not ready",
        line=reply.line.removeprefix(_OK),
        step=figures.whole("reelscale_train_step"),
        data_wait_ratio=figures.value("reelscale_train_data_wait_ratio"),
        memory_bytes=figures.value("reelscale_train_memory_bytes"),
        gpu_utilization_ratio=figures.value("reelscale_gpu_utilization_ratio"),
        gpu_memory_ratio=used / total if used is not None and total else None,
        disk_free_bytes=figures.by("reelscale_disk_free_bytes", "folder"),
    )


def missed(process: ProcessState, world_size: int | None) -> bool:
    """Whether a process should answer and does not: a rank that the run's newest attempt does without need not."""
    beyond = process.rank is not None and world_size is not None and process.rank >= world_size
    return process.health == "does not answer" and not beyond


def outcome_and_reason(
    processes: Sequence[ProcessState],
    world_size: int | None,
    by_files: Outcome | None,
    last_word_seconds: float | None,
    problems: Sequence[Problem],
) -> tuple[Outcome, str]:
    """A run's outcome, and why it is that one.

    What its processes say goes before what its files do (`by_files`, None without them). `problems`: those of now.
    """
    answering = [each for each in processes if each.health != "does not answer"]
    if not answering and by_files in ("stopped", "finished"):
        return by_files, ""
    if silent := [each for each in processes if missed(each, world_size)]:
        return "silent", f"{named(silent)} {'does' if len(silent) == 1 else 'do'} not answer: {visible(silent[0].line)}"
    if not processes:
        return by_files or "silent", _by_its_files(by_files, last_word_seconds)
    if not answering:
        return "silent", "nothing of it answers"
    if stalled := [each for each in answering if each.health == "not ready"]:
        who = f"{named(stalled)}: " if len(processes) > 1 else ""
        return "stalled", f"{who}not ready: {visible(stalled[0].line)}"
    pressing = [each for each in problems if each.severity != "note"]
    if pressing:
        return "troubled", pressing[0].what
    if all(each.line.startswith("starting") for each in answering):
        return "starting", visible(answering[0].line.removeprefix("starting "))
    return "running", visible(answering[0].line)


def named(processes: Sequence[ProcessState]) -> str:
    """Processes in words, not more than a few of them one by one."""
    names = [visible(each.named) for each in processes[:_NAMED]]
    rest = len(processes) - len(names)
    return ", ".join(names) + (f" and {rest} more" if rest else "")


def age(seconds: float) -> str:
    """A time in its largest unit: 12 s, 3 min, 5 h, 2 d."""
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{math.floor(seconds / size)} {unit}"
    return f"{seconds:.0f} s"


def _by_its_files(outcome: Outcome | None, last_word_seconds: float | None) -> str:
    if last_word_seconds is None:
        return "it has never said a word"
    if outcome == "silent":
        return f"killed, or long without a word: the last one {age(last_word_seconds)} ago"
    return f"by its files alone, the last word {age(last_word_seconds)} ago: none of its processes is known here"
