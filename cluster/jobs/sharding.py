"""The job `shard`: the corpus's shard jobs spread over Ray tasks, or over processes of this machine."""

import os
import sys
from collections.abc import Generator, Sequence
from contextlib import closing
from typing import Annotated, Any

from pydantic import Field

from cluster.jobs.paths import absolute
from cluster.launch.choose import Launcher, choose_launcher
from cluster.launch.processes import spread
from cluster.launch.ray_cluster import cpus, ray_cluster, result_of
from cluster.launch.signals import raise_if_interrupted
from cluster.progress import progress
from sharding.index import inspect
from sharding.plan import ShardJob
from sharding.settings import load_settings
from sharding.shard import ShardResult, ShardSettings, finish, make_shard, prepare
from sharding.store import open_store


class ShardingJob(ShardSettings):
    """A corpus to be sharded and how it is run."""

    launcher: Launcher = "auto"
    workers: Annotated[int, Field(ge=0, description="shards made at a time; 0: one a core")] = 0


def run_sharding(corpus: str, url: str, config: str | None, overrides: Sequence[str]) -> dict[str, Any]:
    """Shard a corpus into a store, going on where an earlier call stopped; returns what the store then holds.

    Raises UserError for a corpus without a good video, and for a store made otherwise. Interrupted ends it
    within seconds; the shards made so far are kept.
    """
    job = load_settings(ShardingJob, config, list(overrides))
    settings = ShardSettings.model_validate({name: getattr(job, name) for name in ShardSettings.model_fields})
    corpus, store = absolute(corpus), open_store(url)
    prepared = prepare(corpus, store, settings)
    for note in prepared.notes:
        print(note, file=sys.stderr)
    done = len(prepared.jobs) - len(prepared.todo)
    if done:
        print(f"{done} of {len(prepared.jobs)} shards are there already", file=sys.stderr)
    failed = 0
    raise_if_interrupted()
    if prepared.todo:
        runner = _by_ray if choose_launcher(job.launcher) == "ray" else _by_processes
        with (
            progress("shard", sum(len(todo.videos) for todo in prepared.todo)) as advance,
            closing(runner(prepared.todo, corpus, store.url, settings, job.workers)) as results,
        ):
            for result in results:
                raise_if_interrupted()
                failed += result.failures
                advance(result.samples + result.failures)
    finish(store)
    found = inspect(store)
    kept = len(found["failures"]) - failed
    if done and kept > 0:
        print(
            f"{kept} videos failed before and are not tried again: shard into another STORE for that", file=sys.stderr
        )
    return found


def _by_ray(
    todo: list[ShardJob], corpus: str, url: str, settings: ShardSettings, workers: int
) -> Generator[ShardResult]:
    with ray_cluster() as ray:
        task = ray.remote(num_cpus=1, max_retries=3)(make_shard)
        room = workers or cpus(ray)
        waiting = list(todo)
        running: list[Any] = []
        while waiting or running:
            while waiting and len(running) < room:
                running.append(task.remote(waiting.pop(0), corpus, url, settings))
            ready, running = ray.wait(running, num_returns=1)
            yield result_of(ray, ready[0])


def _by_processes(
    todo: list[ShardJob], corpus: str, url: str, settings: ShardSettings, workers: int
) -> Generator[ShardResult]:
    room = min(workers or os.cpu_count() or 1, len(todo))
    if room == 1:
        for job in todo:
            yield make_shard(job, corpus, url, settings)
        return
    yield from spread(make_shard, [(job, corpus, url, settings) for job in todo], room)
