"""The job `evaluate`: a split's videos shared out to Ray tasks, or scored in this process."""

import sys
import uuid
from collections.abc import Generator
from contextlib import closing
from typing import Annotated, Any

from pydantic import Field

from cluster.launch.choose import Launcher, choose_launcher
from cluster.launch.on_ray.cluster import cpus, ray_cluster
from cluster.launch.on_ray.tasks import RayTasks
from cluster.launch.process_pool import TaskDone, TaskRestarted, WorkerDied
from cluster.launch.signals import raise_if_interrupted
from cluster.monitor.access import open_access
from cluster.monitor.endpoint import endpoint
from cluster.monitor.settings import MonitorSettings
from cluster.terminal.progress import progress, working
from pretrain.data.workers.pool import DecoderDied, LoaderSettings, decoder_count
from pretrain.evaluation.evaluate import EvaluateSettings, Scorer, Subject, open_subject
from pretrain.evaluation.summary import folder_of, fusion_of, partial_scores_of, require_sound, write_evaluation
from pretrain.evaluation.video_score import VideoScore
from pretrain.resilience.progress import Progress
from sharding.base import environment
from sharding.base.errors import CommandFailed
from sharding.base.settings import Inline, Settings, unit
from sharding.base.user_paths import absolute, writable_folder
from sharding.telemetry.build import set_run_info
from sharding.telemetry.declare import counter, gauge
from sharding.telemetry.host import watching_host

_ROWS_A_TASK = 64
_TASKS_A_WORKER = 8  # at least, so that an evaluation of few videos is kept in pieces, too

VIDEOS = counter(
    "reelscale_evaluate_videos_total",
    "Videos that were scored (`good`), or could not be read (`damaged`).",
    "`evaluate`",
    "outcome",
    ["good", "damaged"],
)
REMAINING = gauge("reelscale_evaluate_remaining_videos", "Videos still to be scored.", "`evaluate`")


class EvaluationLaunchSettings(Settings):
    """How the scoring of videos is spread over processes."""

    launcher: Launcher = "auto"
    workers: Annotated[
        int,
        Field(
            json_schema_extra=unit("tasks"),
            ge=0,
            le=2**16,
            description="Ray tasks that score at a time; 0: as many as the cluster has room for",
        ),
    ] = 0


class EvaluationJob(Settings):
    """An evaluation, and how it is run."""

    evaluation: Annotated[EvaluateSettings, Inline(), Field(description="which network is scored on which videos")]
    launch: Annotated[EvaluationLaunchSettings, Inline(), Field(description="how the scoring is spread out")]
    monitor: Annotated[MonitorSettings, Field(description="where metrics are served while videos are scored")] = (
        MonitorSettings()
    )


def run_evaluation(job: EvaluationJob) -> dict[str, Any]:
    """Evaluate, going on where an earlier call stopped; write the evaluation's folder and return its summary.

    Raises UserError for what cannot be evaluated or fused, before anything is scored, and for too many damaged videos.
    """
    settings = _with_absolute_paths(job.evaluation)
    open_access(job.monitor)
    launcher = choose_launcher(job.launch.launcher)
    with working("opening the run and its videos"):
        subject = open_subject(settings)
    writable_folder(str(folder_of(subject)), "run")
    fusion = fusion_of(subject, settings)
    set_run_info("evaluate", network=subject.train.model.label, store_version=subject.split.index.version)
    for note in subject.notes:
        print(note, file=sys.stderr)
    folders = {"run": subject.run, "cache": environment.cache_folder()}
    with watching_host(folders), partial_scores_of(subject) as partial:
        scored = partial.read()
        todo = [row for row in subject.rows if row not in scored]
        if scored:
            print(f"{len(scored)} of {len(subject.rows)} videos are scored already", file=sys.stderr)
        if launcher == "ray":
            runner = _by_ray(settings, job.launch.workers, subject, todo)
        else:
            runner = _in_this_process(settings, subject, todo)
        getting_on = Progress("video")
        REMAINING.set(len(todo))
        with (
            endpoint(job.monitor, "evaluate", settings.run, getting_on) as served,
            progress("evaluate", len(subject.rows)) as advance,
            closing(runner) as results,
        ):
            if served:
                print(served.line, file=sys.stderr)
            advance(len(scored))
            damaged: list[VideoScore] = []
            for scores in results:
                raise_if_interrupted()
                getting_on.advance()
                _count(scores)
                partial.add(scores)
                scored |= {score.row: score for score in scores}
                if more := [score for score in scores if score.damaged is not None]:
                    _print_damaged(more, damaged)
                    damaged += more
                    require_sound(damaged, subject, settings.damaged)
                advance(len(scores))
        summary = write_evaluation(subject, settings, list(scored.values()), fusion)
        partial.clear()
    return summary


def _count(scores: list[VideoScore]) -> None:
    for score in scores:
        VIDEOS.labels(outcome="good" if score.damaged is None else "damaged").inc()
    REMAINING.dec(len(scores))


def _with_absolute_paths(settings: EvaluateSettings) -> EvaluateSettings:
    update: dict[str, Any] = {"run": absolute(settings.run)}
    update["store"] = absolute(settings.store) if settings.store else None  # also of an empty text
    if settings.fuse:
        update["fuse"] = settings.fuse.model_copy(update={"run": absolute(settings.fuse.run)})
    return settings.model_copy(update=update)


def _print_damaged(more: list[VideoScore], before: list[VideoScore]) -> None:
    """Print each damage once: a damaged record is that of many videos."""
    printed = {score.damaged for score in before}
    for damage in dict.fromkeys(score.damaged for score in more if score.damaged not in printed):
        print(f"damaged: {damage}; counted as wrong", file=sys.stderr)


def _in_this_process(settings: EvaluateSettings, subject: Subject, todo: list[int]) -> Generator[list[VideoScore]]:
    if not todo:
        return
    with Scorer(subject, decoder_count(LoaderSettings(workers=settings.decoders)), settings.stall_seconds) as scorer:
        for score in scorer.scores(todo, settings.batch):
            yield [score]


def _by_ray(settings: EvaluateSettings, workers: int, subject: Subject, todo: list[int]) -> Generator[list[VideoScore]]:
    """The scores of `workers` Ray tasks at a time."""
    if not todo:
        return
    with ray_cluster() as ray:
        workers = min(workers or cpus(ray), len(todo))
        size = max(1, min(_ROWS_A_TASK, len(todo) // (_TASKS_A_WORKER * workers)))
        shared, name = ray.put(subject), uuid.uuid4().hex
        shares = ((name, shared, todo[begin : begin + size], settings) for begin in range(0, len(todo), size))
        gpus = 1 if ray.cluster_resources().get("GPU", 0) else 0
        tasks = RayTasks[tuple[Any, ...]](ray, _score, _name, gpus=gpus, retried=(DecoderDied,))
        try:
            with closing(tasks.run(shares, lambda: workers)) as events:
                for event in events:
                    if isinstance(event, TaskRestarted):
                        print(f"{_name(*event.arguments)} begins anew: {event.reason}", file=sys.stderr)
                    elif isinstance(event, TaskDone):
                        yield event.result
        except WorkerDied as error:
            raise CommandFailed(f"{error}; the same command goes on") from error


def _name(name: str, shared: Any, rows: list[int], *_: Any) -> str:
    return f"scoring videos {rows[0]} to {rows[-1]}"


_scorers: dict[str, Scorer] = {}  # of this worker process: that of the evaluation that it works for


def _score(name: str, shared: Any, rows: list[int], settings: EvaluateSettings, _: object) -> list[VideoScore]:
    """The scores of rows of a subject, which a worker process fetches once; `name` identifies the evaluation."""
    if name not in _scorers:
        import ray

        for scorer in _scorers.values():
            scorer.close()
        _scorers.clear()
        _scorers[name] = Scorer(ray.get(shared), 1, settings.stall_seconds)
    try:
        return list(_scorers[name].scores(rows, settings.batch))
    except BaseException:  # batches that it had asked for would come to the next
        _scorers.pop(name).close()
        raise
