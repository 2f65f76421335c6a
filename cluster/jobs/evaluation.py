"""The job `evaluate`: a split's videos shared out to Ray tasks, or scored in this process."""

import sys
import uuid
from collections.abc import Generator
from contextlib import closing
from typing import Annotated, Any

from pydantic import Field

from cluster.jobs.user_paths import absolute, writable_folder
from cluster.launch.choose import Launcher, choose_launcher
from cluster.launch.ray_cluster import cpus, first_ready, is_gone, ray_cluster, result_of
from cluster.launch.signals import raise_if_interrupted
from cluster.terminal.progress import progress
from pretrain.data.workers.pool import DecoderDied, LoaderSettings, decoder_count
from pretrain.evaluation.evaluate import EvaluateSettings, Scorer, Subject, open_subject
from pretrain.evaluation.summary import folder_of, other_of, partial_scores_of, require_sound, write_evaluation
from pretrain.evaluation.video_score import VideoScore
from sharding.base.errors import CannotGoOn

_ROWS_A_TASK = 64
_TASKS_A_WORKER = 8  # at least, so that an evaluation of few videos is kept in pieces, too
_TRIES = 3  # of rows whose worker dies


class EvaluationJob(EvaluateSettings):
    """An evaluation and how it is run."""

    launcher: Launcher = "auto"
    workers: Annotated[
        int, Field(ge=0, le=2**16, description="Ray tasks at a time; 0: as many as the cluster has room for")
    ] = 0


def run_evaluation(job: EvaluationJob) -> dict[str, Any]:
    """Evaluate, going on where an earlier call stopped; write the evaluation's folder and return its summary.

    Raises UserError for what cannot be evaluated or fused, before anything is scored, and for too many damaged videos.
    """
    places: dict[str, Any] = {"run": absolute(job.run), "store": absolute(job.store) if job.store else None}
    if job.fuse:
        places["fuse"] = job.fuse.model_copy(update={"run": absolute(job.fuse.run)})
    job = job.model_copy(update=places)
    launcher = choose_launcher(job.launcher)
    subject = open_subject(job)
    writable_folder(str(folder_of(subject, job)), "run")
    other = other_of(subject, job)
    for note in subject.notes:
        print(note, file=sys.stderr)
    with partial_scores_of(subject, job) as pieces:
        found = pieces.read()
        todo = [row for row in subject.rows if row not in found]
        if found:
            print(f"{len(found)} of {len(subject.rows)} videos are scored already", file=sys.stderr)
        runner = _by_ray if launcher == "ray" else _in_this_process
        with progress("evaluate", len(subject.rows)) as advance, closing(runner(job, subject, todo)) as results:
            advance(len(found))
            damaged: list[VideoScore] = []
            for scores in results:
                raise_if_interrupted()
                pieces.add(scores)
                found |= {score.row: score for score in scores}
                if more := [score for score in scores if score.damaged is not None]:
                    _tell_damaged(more, damaged)
                    damaged += more
                    require_sound(damaged, subject, job.damaged)
                advance(len(scores))
        summary = write_evaluation(subject, job, list(found.values()), other)
        pieces.clear()
    return summary


def _tell_damaged(more: list[VideoScore], before: list[VideoScore]) -> None:
    """Each once: a damaged record is that of many videos."""
    met = {score.damaged for score in before}
    for told in dict.fromkeys(score.damaged for score in more if score.damaged not in met):
        print(f"damaged: {told}; counted as wrong", file=sys.stderr)


def _in_this_process(job: EvaluationJob, subject: Subject, todo: list[int]) -> Generator[list[VideoScore]]:
    if not todo:
        return
    with Scorer(subject, decoder_count(LoaderSettings())) as scorer:
        for score in scorer.scores(todo, job.clips, job.batch):
            yield [score]


def _by_ray(job: EvaluationJob, subject: Subject, todo: list[int]) -> Generator[list[VideoScore]]:
    """Scores as tasks give them. A task whose worker is gone is given to another one, three times at most."""
    if not todo:
        return
    with ray_cluster() as ray:
        workers = min(job.workers or cpus(ray), len(todo))
        size = max(1, min(_ROWS_A_TASK, len(todo) // (_TASKS_A_WORKER * workers)))
        gpu = 1 if ray.cluster_resources().get("GPU", 0) else 0
        # Processes are kept, also those with a GPU: each has the network from its first task on.
        task = ray.remote(num_cpus=1, num_gpus=gpu, max_retries=0, max_calls=0)(_task)
        shared, name = [ray.put(subject)], uuid.uuid4().hex
        shares = [(todo[begin : begin + size], 1) for begin in range(0, len(todo), size)]
        running: dict[Any, tuple[list[int], int]] = {}
        while shares or running:
            while shares and len(running) < workers:
                rows, tries = shares.pop(0)
                running[task.remote(name, shared, rows, job.clips, job.batch)] = rows, tries
            ready = first_ready(ray, list(running))
            rows, tries = running.pop(ready)
            try:
                yield result_of(ray, ready)
            except Exception as error:
                if not (isinstance(error, DecoderDied) or is_gone(ray, error)):
                    raise
                reason = str(error) if isinstance(error, DecoderDied) else type(error).__name__
                told = f"a worker that scored videos {rows[0]} to {rows[-1]} is gone ({reason})"
                if tries == _TRIES:
                    raise CannotGoOn(f"{told}, as {_TRIES - 1} before it; the same command goes on") from error
                print(f"{told}; another takes them", file=sys.stderr)
                shares.insert(0, (rows, tries + 1))


_opened: dict[str, Scorer] = {}  # of this worker process: the evaluation that it works for


def _task(name: str, shared: list[Any], rows: list[int], clips: int, batch: int) -> list[VideoScore]:
    """The scores of rows of a subject, which a worker process fetches once. `name`: of the evaluation."""
    if name not in _opened:
        import ray

        for scorer in _opened.values():
            scorer.close()
        _opened.clear()
        _opened[name] = Scorer(ray.get(shared[0]), workers=1)
    try:
        return list(_opened[name].scores(rows, clips, batch))
    except BaseException:  # what it had asked for is in the way of the next
        _opened.pop(name).close()
        raise
