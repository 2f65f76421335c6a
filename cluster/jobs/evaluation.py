"""The job `evaluate`: a split's videos shared out to Ray tasks, or scored in this process."""

from typing import Annotated, Any

from pydantic import Field

from cluster.jobs.paths import absolute, writable_folder
from cluster.launch.choose import Launcher, choose_launcher
from cluster.launch.ray_cluster import cpus, first_ready, ray_cluster, result_of
from cluster.launch.signals import raise_if_interrupted
from cluster.progress import progress
from pretrain.data.pool import LoaderSettings, workers_of
from pretrain.evaluate import EvaluateSettings, VideoScore, open_subject, score_videos, write_evaluation

_ROWS_A_TASK = 64


class EvaluationJob(EvaluateSettings):
    """An evaluation and how it is run."""

    launcher: Launcher = "auto"
    workers: Annotated[
        int, Field(ge=0, le=2**16, description="Ray tasks at a time; 0: as many as the cluster has room for")
    ] = 0


def run_evaluation(job: EvaluationJob) -> dict[str, Any]:
    """Evaluate, write the run's `evaluation` folder, and return its summary. Raises UserError."""
    places: dict[str, Any] = {"run": absolute(job.run), "store": absolute(job.store) if job.store else None}
    if job.fuse:
        places["fuse"] = job.fuse.model_copy(update={"run": absolute(job.fuse.run)})
    job = job.model_copy(update=places)
    subject = open_subject(job)
    writable_folder(f"{job.run}/evaluation", "run")
    rows = list(range(len(subject.split)))
    if choose_launcher(job.launcher) == "none":
        found: list[VideoScore] = []
        with progress("evaluate", len(rows)) as advance:
            for score in score_videos(subject, rows, job.clips, job.batch, workers_of(LoaderSettings())):
                raise_if_interrupted()
                found.append(score)
                advance(1)
    else:
        found = _score_by_ray(job, rows)
    return write_evaluation(subject, job, found)


def _score_by_ray(job: EvaluationJob, rows: list[int]) -> list[VideoScore]:
    with ray_cluster() as ray, progress("evaluate", len(rows)) as advance:
        workers = min(job.workers or cpus(ray), len(rows))
        size = max(1, min(_ROWS_A_TASK, -(-len(rows) // workers)))
        gpu = 1 if ray.cluster_resources().get("GPU", 0) else 0
        task = ray.remote(num_cpus=1, num_gpus=gpu, max_retries=3)(_task)
        config = job.model_dump(mode="json")
        todo = [rows[begin : begin + size] for begin in range(0, len(rows), size)]
        running: dict[Any, int] = {}
        found: list[VideoScore] = []
        while todo or running:
            while todo and len(running) < workers:
                share = todo.pop(0)
                running[task.remote(config, share)] = len(share)
            ready = first_ready(ray, list(running))
            found += result_of(ray, ready)
            advance(running.pop(ready))
        return found


def _task(config: dict[str, Any], rows: list[int]) -> list[VideoScore]:
    job = EvaluationJob.model_validate(config)
    return list(score_videos(open_subject(job), rows, job.clips, job.batch, workers=1))
