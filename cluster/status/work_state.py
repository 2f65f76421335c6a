"""Replies of processes, and the files of runs → how each run, store and evaluation is. Pure: nothing is asked here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, cast

from cluster.status.outcomes import outcome_and_reason, process_state
from cluster.status.pages import Figures
from cluster.status.problems import Evidence, Heard, counted, problems_now
from cluster.status.scraping import Reply
from cluster.status.states import Outcome, Problem, Videos, WorkState
from cluster.submission.run_state import RunState
from pretrain.report.run_data import Event

PRESSING_SECONDS = 300.0  # that an event counts as one of now, as alerts have it


class Key(NamedTuple):
    """Which work processes belong to."""

    kind: str
    run: str
    folder: str


@dataclass(frozen=True)
class Files:
    """What a run's folder says: its state, the figures of the last logged step, its attempts, the log's problems."""

    state: RunState
    event: Event = field(default_factory=dict)
    attempts: int | None = None
    problems: list[Problem] = field(default_factory=list)


def grouped(replies: Iterable[tuple[Reply, Figures]]) -> dict[Key, list[tuple[Reply, Figures]]]:
    """Replies by what their processes work on: by their files, and where one was named by hand by what it serves."""
    groups: dict[Key, list[tuple[Reply, Figures]]] = {}
    for reply, figures in replies:
        target = reply.target
        run = target.run or figures.labels("reelscale_ready").get("run", "") or target.place
        kind = target.kind or figures.labels("reelscale_run_info").get("kind", "")
        groups.setdefault(Key(kind, run, target.folder), []).append((reply, figures))
    for key in [key for key in groups if not key.folder]:
        homes = [other for other in groups if other.folder and other[:2] == key[:2]]
        if len(homes) == 1:
            groups[homes[0]] += groups.pop(key)
    return groups


def work_state(key: Key, replies: Sequence[tuple[Reply, Figures]], files: Files | None, now: float) -> WorkState:
    """How a run, store or evaluation is, by its processes' replies and, as far as they are here, its files."""
    heard = [Heard(process_state(reply, figures), figures) for reply, figures in replies]
    heard.sort(key=lambda each: (each.process.rank is None, each.process.rank))
    size = next((size for each in heard if (size := _world_size(each.figures)) is not None), None)
    withheld = [reply.withheld for reply, _ in replies if reply.withheld]
    evidence = Evidence(key.run, key.folder, key.kind, heard, withheld, size, now)
    processes = [each.process for each in heard]
    answering = [each for each in processes if each.health != "does not answer"]
    state = files.state if files else None
    by_files = cast(Outcome, state.outcome) if state else None
    is_over = not answering and by_files in ("stopped", "finished")
    problems = [] if is_over else problems_now(evidence)
    alerts = {each.alert for each in problems}
    problems += files.problems if files else [each for each in counted(evidence) if each.alert not in alerts]
    pressing = [each for each in problems if each.age_seconds is None or each.age_seconds <= PRESSING_SECONDS]
    last_word = state.last_word_seconds if state else None
    outcome, reason = outcome_and_reason(processes, size, by_files, last_word, pressing)
    common = WorkState(
        run=key.run,
        folder=key.folder,
        kind=key.kind,
        outcome=outcome,
        reason=reason,
        last_word_seconds=last_word,
        asked_to_stop=state.asked_to_stop if state else False,
        world_size=size,
        answering=len(answering),
        nodes=sorted({each.node for each in processes if each.node}),
        processes=processes,
        problems=problems,
    )
    if key.kind in ("shard", "evaluate"):
        return _with_videos(common, evidence.first, now)
    return _with_steps(common, evidence, files, now)


def eta_seconds(
    step: int | None, of: int | None, samples: float | None, clips_per_second: float | None
) -> float | None:
    """Seconds that a run has left at this rate; None where that cannot be said."""
    if step is None or of is None:
        return None
    if step >= of:
        return 0.0
    if not (step and samples and clips_per_second):
        return None
    return (of - step) * (samples / step) / clips_per_second


def _with_steps(work: WorkState, evidence: Evidence, files: Files | None, now: float) -> WorkState:
    """`work` with what is known of a run that trains: its processes' figures go before those of its files."""
    first, event = evidence.first, files.event if files else {}
    state = files.state if files else None
    step = _first_of(first.whole("reelscale_train_step"), state.step if state else None)
    of = _first_of(first.whole("reelscale_train_steps"), state.of if state else None)
    rate = first.value("reelscale_train_clips_per_second") if work.answering else None
    gets_on = work.outcome in ("running", "troubled")
    samples = _first_of(first.value("reelscale_train_samples"), event.get("samples"))
    started = first.value("reelscale_train_started_timestamp_seconds")
    saved = first.value("reelscale_checkpoint_last_timestamp_seconds")
    wait = evidence.most("reelscale_train_data_wait_ratio")
    mfu = first.value("reelscale_train_mfu_ratio")
    saved_by_files = state.checkpoint_age_seconds if state else None
    return replace(
        work,
        step=step,
        of=of,
        share=min(1.0, step / of) if step is not None and of else None,
        eta_seconds=eta_seconds(step, of, samples, rate) if gets_on else None,
        elapsed_seconds=None if started is None else now - started,
        loss=_first_of(first.value("reelscale_train_loss"), event.get("loss")),
        top1=_first_of(first.value("reelscale_train_top1_ratio"), event.get("top1")),
        clips_per_second=_first_of(rate, event.get("clips_per_second") if gets_on else None),
        data_wait_ratio=wait[0] if wait else event.get("data_wait_ratio"),
        mfu=_first_of(mfu, event.get("mfu")),
        checkpoint=state.checkpoint if state else None,
        checkpoint_age_seconds=saved_by_files if saved is None else max(0.0, now - saved),
        attempts=_first_of(first.whole("reelscale_train_attempts"), files.attempts if files else None),
    )


def _with_videos(work: WorkState, figures: Figures, now: float) -> WorkState:
    """`work` with what is known of videos that are sharded or scored."""
    began = figures.value("process_start_time_seconds")
    elapsed = None if began is None else now - began
    if work.kind == "shard":
        videos = figures.by("reelscale_shard_videos_total", "outcome")
        remaining, left = (
            figures.whole("reelscale_shard_remaining_videos"),
            figures.value("reelscale_shard_left_seconds"),
        )
        failed, rate = videos.get("failed", 0.0), remaining / left if remaining and left else None
        failures = figures.by("reelscale_shard_failures_total", "kind")
    else:
        videos = figures.by("reelscale_evaluate_videos_total", "outcome")
        remaining, failures = figures.whole("reelscale_evaluate_remaining_videos"), {}
        failed, rate = videos.get("damaged", 0.0), sum(videos.values()) / elapsed if elapsed else None
        left = remaining / rate if remaining is not None and rate else None
    done = int(sum(videos.values()))
    return replace(
        work,
        share=done / (done + remaining) if remaining is not None and done + remaining else None,
        eta_seconds=0.0 if remaining == 0 else left,
        elapsed_seconds=elapsed,
        videos=Videos(
            done=done,
            remaining=remaining,
            failed=int(failed),
            failures={kind: int(count) for kind, count in failures.items() if count},
            videos_per_second=rate,
            oldest_job_seconds=figures.value("reelscale_shard_oldest_job_seconds"),
        ),
    )


def _world_size(figures: Figures) -> int | None:
    size = figures.labels("reelscale_run_info").get("world_size", "")
    return int(size) if size.isdecimal() else None


def _first_of(*values: Any) -> Any:
    """The first that is not None."""
    return next((value for value in values if value is not None), None)
