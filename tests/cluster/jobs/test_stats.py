"""Statistics of sharding: no progress is counted twice, even of a job made twice, and stragglers are named."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import REGISTRY

import cluster.jobs.sharding
from cluster.jobs.sharding import ShardingJob
from cluster.jobs.stats import ShardingStats
from sharding import metrics
from sharding.base.settings import validate
from sharding.make.shard import ShardProgress


class Clock:
    """A clock that a test advances."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def job(number: int, videos: int) -> list[ShardProgress]:
    """The reports of a job from its beginning to its end; every third video fails."""
    steps = [
        ShardProgress(
            f"g0-{number:06d}",
            "train",
            videos=done,
            good_videos=done - done // 3,
            samples=done - done // 3,
            frames=100 * done,
            bytes_in=10 * done,
            failures={"empty": done // 3} if done >= 3 else {},
        )
        for done in range(1, videos + 1)
    ]
    last = steps[-1]
    end = ShardProgress(**{**vars_of(last), "done": True, "bytes_out": 7})
    return [*steps, end]


def outcome(name: str) -> float:
    """How many videos have ended so, over all tests of this process."""
    return REGISTRY.get_sample_value("reelscale_shard_videos_total", {"outcome": name}) or 0.0


def vars_of(progress: ShardProgress) -> dict:
    return {name: getattr(progress, name) for name in ShardProgress.__dataclass_fields__}


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 8)), min_size=1, max_size=6))
def test_a_job_made_a_second_time_after_a_death_counts_once(jobs: list[tuple[int, int]]) -> None:
    total = sum(videos for videos, _ in jobs)
    before = [outcome(name) for name in ("good", "failed")]
    stats = ShardingStats(total)
    for number, (videos, lost_after) in enumerate(jobs):
        told = job(number, videos)
        for progress in [*told[: min(lost_after, videos)], *told]:
            stats.add(progress)
    assert (stats.videos, stats.frames, stats.bytes_in) == (total, 100 * total, 10 * total)
    assert stats.failures == Counter(empty=sum(videos // 3 for videos, _ in jobs)) + Counter()
    assert stats.jobs == len(jobs) and stats.bytes_out == 7 * len(jobs)
    failed = sum(videos // 3 for videos, _ in jobs)
    assert stats.samples == total - failed
    more = [outcome(name) - old for name, old in zip(("good", "failed"), before, strict=True)]
    assert more == [total - failed, failed]


def test_what_another_command_made_is_not_counted() -> None:
    stats = ShardingStats(10)
    stats.add(ShardProgress("a", "train", videos=4, done=True, made_by_another=True))
    assert (stats.total, stats.videos) == (6, 0)


def samples(metric: Any) -> list[float]:
    """A metric's values, as Prometheus reads them."""
    return [sample.value for family in metric.collect() for sample in family.samples]


def gauge(metric: Any) -> float:
    """A gauge's only value."""
    (value,) = samples(metric)
    return value


def test_gauges_go_on_while_no_job_reports() -> None:
    clock = Clock()
    stats = ShardingStats(60, clock)
    assert (gauge(metrics.REMAINING), gauge(metrics.OLDEST_SECONDS)) == (60, 0)
    assert samples(metrics.LEFT_SECONDS) == []
    stats.began("g0-000000")
    clock.now += 40
    stats.refresh()
    assert gauge(metrics.OLDEST_SECONDS) == 40 and gauge(metrics.REMAINING) == 60


def test_what_remains_is_right_from_the_moment_that_it_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    class Served(Exception):
        """What a scrape in the first moment reads."""

    def scraped_at_once(*arguments: object) -> None:
        raise Served(gauge(metrics.REMAINING))

    monkeypatch.setattr(cluster.jobs.sharding, "endpoint", scraped_at_once)
    metrics.REMAINING.unset()
    job = validate(ShardingJob, {"launcher": "none"}, "the test's settings")
    prepared: Any = SimpleNamespace(remaining_videos=8, store=SimpleNamespace(url="store"))
    with pytest.raises(Served) as served:
        cluster.jobs.sharding._make_shards(prepared, job.shards, job)
    assert served.value.args == (8,)


def test_rates_time_left_and_stragglers() -> None:
    clock = Clock()
    stats = ShardingStats(1000, clock)
    for number in range(5):
        stats.began(f"g0-{number:06d}")
    for number in range(4):
        clock.now += 10
        for progress in job(number, 20):
            stats.add(progress)
    assert stats.rates()[:2] == (2.0, 200.0) and stats.seconds_left() == 460.0
    assert stats.straggler() is None
    clock.now += 200
    assert stats.straggler() == ("g0-000004", 240.0)
    assert "g0-000004 has run for 4 min" in stats.line() and "failed 24 (empty 24)" in stats.line()
