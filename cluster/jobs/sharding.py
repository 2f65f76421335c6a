"""The jobs `shard` and `shards retry`: shard jobs run by Ray tasks, or by processes of this machine."""

import os
import sys
import tempfile
from collections.abc import Generator, Iterable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from cluster.jobs.stats import ShardingStats
from cluster.launch.choose import Launcher, choose_launcher, require_room
from cluster.launch.on_ray.cluster import cpus, node_cpus, ray_cluster
from cluster.launch.on_ray.tasks import RayTasks
from cluster.launch.process_pool import TaskDone, TaskRestarted, run_in_processes
from cluster.launch.signals import raise_if_interrupted
from cluster.monitor.access import open_access
from cluster.monitor.endpoint import endpoint
from cluster.monitor.settings import MonitorSettings
from cluster.terminal.progress import progress, working
from pretrain.resilience.progress import Progress
from sharding import metrics
from sharding.base.errors import UserError
from sharding.base.printable import visible
from sharding.base.settings import Inline, Settings, load_settings, unit
from sharding.base.user_paths import absolute, require_writable
from sharding.corpora.manifest import CorpusSettings
from sharding.format.index import merge
from sharding.format.plan import ShardJob
from sharding.inspect.summary import summary
from sharding.make.prepare import Prepared, prepare, prepare_retry, stored_settings
from sharding.make.shard import ShardProgress, ShardSettings, WorkerSettings, make_shard
from sharding.storage.store import Store, open_store
from sharding.telemetry.build import set_run_info
from sharding.telemetry.host import watching_host


class ShardLaunchSettings(Settings):
    """How the making of shards is spread over processes."""

    launcher: Launcher = "auto"
    workers: Annotated[
        int, Field(json_schema_extra=unit("shards"), ge=0, le=2**16, description="shards made at a time; 0: one a core")
    ] = 0


class ShardingJob(Settings):
    """A corpus to be sharded, and how that is run."""

    shards: Annotated[ShardSettings, Inline(), Field(description="what the shards hold, the same for a whole store")]
    corpus: Annotated[CorpusSettings, Inline(), Field(description="how the corpus is read")]
    work: Annotated[WorkerSettings, Inline(), Field(description="how a worker transcodes a video")]
    launch: Annotated[ShardLaunchSettings, Inline(), Field(description="how the work is spread over processes")]
    monitor: Annotated[MonitorSettings, Field(description="where metrics are served while shards are made")] = (
        MonitorSettings()
    )


class RetryJob(Settings):
    """Failed videos of a store to be tried again, and how that is run."""

    work: Annotated[WorkerSettings, Inline(), Field(description="how a worker transcodes a video")]
    launch: Annotated[ShardLaunchSettings, Inline(), Field(description="how the work is spread over processes")]
    monitor: Annotated[MonitorSettings, Field(description="where metrics are served while shards are made")] = (
        MonitorSettings()
    )
    media: Annotated[
        str | None, Field(description="folder or URL that holds the corpus' files now, where they have been moved")
    ] = None


def run_sharding(corpus: str, url: str, config: str | None, overrides: list[str]) -> dict[str, Any]:
    """Shard a corpus into a store, going on where an earlier call stopped; returns what the store then holds.

    Raises UserError for a corpus without a good video, and for a store made with other settings. Interrupted ends it
    within seconds; the shards made so far are kept.
    """
    job = load_settings(ShardingJob, config, overrides)
    open_access(job.monitor)
    store = _writable(open_store(url))
    reading = job.corpus
    if reading.media:
        reading = reading.model_copy(update={"media": absolute(reading.media)})
    set_run_info("shard", recipe=Path(config).name if config else "")
    with working("listing the corpus and what the store has of it"):
        prepared = prepare(absolute(corpus), store, job.shards, reading)
    return _summary_once_made(prepared, job.shards, job)


def run_retry(url: str, config: str | None, overrides: list[str]) -> dict[str, Any]:
    """Try a store's failed videos and segments again, into new shards; returns what the store then holds."""
    job = load_settings(RetryJob, config, overrides)
    open_access(job.monitor)
    store = _writable(open_store(url))
    settings = stored_settings(store)
    root = absolute(job.media) if job.media else None
    set_run_info("shard", recipe=Path(config).name if config else "")
    return _summary_once_made(prepare_retry(store, settings, root), settings, job)


def _writable(store: Store) -> Store:
    """The store; raises UserError for a directory that cannot be written to. A remote one refuses its first write."""
    if not store.remote:
        require_writable(Path(store.url), store.url)
    return store


def _summary_once_made(prepared: Prepared, settings: ShardSettings, job: ShardingJob | RetryJob) -> dict[str, Any]:
    for note in prepared.notes:
        print(visible(note), file=sys.stderr)
    remaining = prepared.remaining_count
    if remaining < prepared.planned_count:
        print(
            f"{prepared.planned_count - remaining} of {prepared.planned_count} shards are there already",
            file=sys.stderr,
        )
    raise_if_interrupted()
    if remaining:
        metrics.PLANNED_JOBS.set(remaining)
        with watching_host(_folders_written(prepared.store)):
            _make_shards(prepared, settings, job)
    with working("writing the store's index"):
        if merge(prepared.store) is None:
            raise _no_good_video(prepared.store)
        made = summary(prepared.store)
    failed = sum(made["failures"].values())
    if failed:
        store = visible(prepared.store.url)
        print(f"{failed} failed; to try them again: reelscale shards retry {store}", file=sys.stderr)
    return made


def _folders_written(store: Store) -> dict[str, Path]:
    """Folders of this machine, by their names in metrics, in which shards are made and, but in a bucket, kept."""
    folders = {"temporary": Path(tempfile.gettempdir())}
    return folders if store.remote else {**folders, "store": Path(store.url)}


def _make_shards(prepared: Prepared, settings: ShardSettings, job: ShardingJob | RetryJob) -> None:
    runner = _by_ray
    if choose_launcher(job.launch.launcher) == "none":
        require_room(job.launch.workers, "workers")
        runner = _by_processes
    stats, getting_on = ShardingStats(prepared.remaining_videos), Progress("video")  # before they are served
    with (
        endpoint(job.monitor, "shard", prepared.store.url, getting_on) as served,
        progress("shard", prepared.remaining_videos) as advance,
        closing(runner(prepared, settings, job.work, job.launch.workers, stats)) as results,
    ):
        counted = 0
        if served:
            print(served.line, file=sys.stderr)
        for update in results:
            raise_if_interrupted()
            if update is not None:
                getting_on.advance()
                stats.add(update)
            else:
                stats.refresh()
            advance(stats.videos - counted, stats.line())
            counted = stats.videos


def _by_ray(
    prepared: Prepared, settings: ShardSettings, work: WorkerSettings, workers: int, stats: ShardingStats
) -> Generator[ShardProgress | None]:
    """The progress of jobs that Ray runs, and None now and then while they are silent."""
    todo = _arguments(prepared, settings, work, stats)
    with ray_cluster() as ray, closing(todo):
        require_fitting_node(work.decoder_threads, node_cpus(ray))
        tasks = RayTasks[tuple[Any, ...]](ray, make_shard, _name, cpus=work.decoder_threads)

        def room() -> int:
            return workers or max(1, cpus(ray) // work.decoder_threads)

        with closing(tasks.run(todo, room)) as events:
            yield from _updates(events)


def require_fitting_node(threads: int, node_cpus: Sequence[float]) -> None:
    """Raise UserError where no node has a CPU for each of a worker's threads: Ray would wait for one for ever.

    `node_cpus`: CPUs of each node. Where none has any, those that work have yet to join.
    """
    most = int(max(node_cpus, default=0))
    if 1 <= most < threads:
        remedy = f"set decoder_threads={most} or less, or launcher=none"
        raise UserError(f"no node has {threads} CPUs", f"decoder_threads={threads}", remedy)


def _by_processes(
    prepared: Prepared, settings: ShardSettings, work: WorkerSettings, workers: int, stats: ShardingStats
) -> Generator[ShardProgress | None]:
    room = min(workers or max(1, (os.cpu_count() or 1) // work.decoder_threads), prepared.remaining_count)
    todo = _arguments(prepared, settings, work, stats)
    with closing(todo), closing(run_in_processes(make_shard, todo, room, _name)) as events:
        yield from _updates(events)


def _arguments(
    prepared: Prepared, settings: ShardSettings, work: WorkerSettings, stats: ShardingStats
) -> Generator[tuple[Any, ...]]:
    """The arguments of `make_shard` for each job that remains, noted as begun when they are taken."""
    with closing(prepared.remaining_jobs()) as jobs:
        for job, root in jobs:
            stats.began(job.id)
            yield job, root, prepared.store.url, settings, work


def _updates(events: Iterable[Any]) -> Generator[ShardProgress | None]:
    """What tasks told and returned; one that begins anew is a line on standard error."""
    for event in events:
        if isinstance(event, TaskRestarted):
            print(visible(f"{_name(*event.arguments)} begins anew: {event.reason}"), file=sys.stderr)
        elif isinstance(event, TaskDone):
            yield event.result
        else:
            yield None if event is None else event.value


def _name(job: ShardJob, *_: Any) -> str:
    return f"shard {job.id}"


def _no_good_video(store: Store) -> UserError:
    made = summary(store)
    lines = [f"{failure['uri']}: {failure['reason']}" for failure in made["failure_examples"][:5]]
    total = sum(made["failures"].values())
    more = f"\n  … and {total - 5} more" if total > 5 else ""
    remedy = f"mend or replace these videos, then try them again: reelscale shards retry {store.url}"
    examples = "".join(f"\n  {visible(line)}" for line in lines)
    return UserError(f"no good video in the corpus:{examples}{more}", store.url, remedy)
