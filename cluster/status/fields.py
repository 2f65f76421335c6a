"""A run's figures as short texts, each "label value"; what is not known has none."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cluster.status.outcomes import age
from cluster.status.states import ProcessState, Videos, WorkState
from sharding.base.printable import duration

Field = tuple[str, str]  # label, value
_BAR = 20


def fields(work: WorkState) -> list[Field]:
    """What is known of how far it is, how fast, and by whom."""
    shown = [*_of_videos(work.videos)] if work.videos else [*_of_steps(work)]
    if work.eta_seconds is not None and not work.has_ended:
        shown.append(("ETA", duration(work.eta_seconds)))
    if work.elapsed_seconds is not None:
        shown.append(("elapsed", duration(work.elapsed_seconds)))
    if not work.videos:
        shown += _of_training(work)
    return shown


def extremes(work: WorkState) -> list[Field]:
    """The process that is worst off in each of what may run out, and how badly."""
    shown: list[Field] = []
    many = len(work.processes) > 1
    measures: tuple[tuple[str, Callable[[ProcessState], float | None], int, Callable[[float], str]], ...] = (
        ("longest wait", lambda each: each.data_wait_ratio if many else None, 1, "{:.0%}".format),
        ("most memory", lambda each: each.memory_bytes, 1, size),
        ("least GPU use", lambda each: each.gpu_utilization_ratio, -1, "{:.0%}".format),
        ("GPU memory", lambda each: each.gpu_memory_ratio, 1, "{:.0%}".format),
    )
    for label, measure, sign, text in measures:
        values = [(value, each) for each in work.processes if (value := measure(each)) is not None]
        if values:
            value, process = max(values, key=lambda pair: sign * pair[0])
            shown.append((label, f"{text(value)} {process.named}" if many else text(value)))
    disks = [(free, name, each) for each in work.processes for name, free in each.disk_free_bytes.items()]
    if disks:
        free, name, process = min(disks, key=lambda disk: disk[0])
        where = f" of {process.named}" if many else ""
        shown.append(("disk left", f"{size(free)} ({name}{where})"))
    return shown


def size(count: float) -> str:
    """Bytes in GB, or TB where they are many."""
    return f"{count / 1e12:.1f} TB" if count >= 1e12 else f"{count / 1e9:.1f} GB"


def bar(share: float) -> str:
    """A bar of ASCII characters."""
    filled = round(_BAR * min(1.0, max(0.0, share)))
    return f"[{'#' * filled}{'-' * (_BAR - filled)}]"


def _of_steps(work: WorkState) -> Iterator[Field]:
    if work.step is not None:
        yield "step", f"{work.step:,}" if work.of is None else f"{work.step:,} of {work.of:,}"
    if work.share is not None:
        yield "", f"{bar(work.share)} {work.share:.0%}"


def _of_training(work: WorkState) -> Iterator[Field]:
    if work.loss is not None:
        yield "loss", f"{work.loss:.4g}"
    if work.top1 is not None:
        yield "top-1", f"{work.top1:.1%}"
    if (rate := work.clips_per_second) is not None:
        each = f" ({rate / work.world_size:.3g} a rank)" if work.world_size and work.world_size > 1 else ""
        yield "clips/s", f"{rate:,.3g}{each}" if rate < 1000 else f"{rate:,.0f}{each}"
    if work.mfu is not None:
        yield "MFU", f"{work.mfu:.0%}"
    if work.data_wait_ratio is not None:
        yield "wait", f"{work.data_wait_ratio:.0%}"
    if work.checkpoint_age_seconds is not None:
        of_step = "" if work.checkpoint is None else f"step {work.checkpoint:,}, "
        yield "checkpoint", f"{of_step}{age(work.checkpoint_age_seconds)} ago"
    else:
        yield "checkpoint", "none"
    if work.attempts is not None:
        yield "attempt", f"{work.attempts}"
    if work.processes:
        yield "ranks", f"{work.answering} of {work.world_size or len(work.processes)} answer"
    if work.nodes:
        yield "nodes", f"{len(work.nodes)}" if len(work.nodes) > 1 else work.nodes[0]
    if work.asked_to_stop:
        yield "asked to stop", "yes"


def _of_videos(videos: Videos) -> Iterator[Field]:
    total = None if videos.remaining is None else videos.done + videos.remaining
    yield "videos", f"{videos.done:,}" if total is None else f"{videos.done:,} of {total:,}"
    if total:
        yield "", f"{bar(videos.done / total)} {videos.done / total:.0%}"
    if videos.videos_per_second is not None:
        yield "videos/s", f"{videos.videos_per_second:.3g}"
    if videos.failed or videos.failures:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in videos.failures.items())
        yield "failed", f"{videos.failed:,}{f': {kinds}' if kinds else ''}"
    if videos.oldest_job_seconds is not None:
        yield "oldest job", duration(videos.oldest_job_seconds)
