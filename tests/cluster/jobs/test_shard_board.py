"""The board on which workers of a Ray cluster report: restarted if it dies, and no report counted twice."""

from __future__ import annotations

import time

import pytest

from cluster.jobs.sharding import _Board, _new_progress, _of_running_jobs
from cluster.launch.on_ray.cluster import actor_here, ray_cluster
from sharding.make.shard import ShardProgress


@pytest.mark.cluster
@pytest.mark.timeout(300)
def test_a_board_that_died_begins_anew() -> None:
    with ray_cluster() as ray:
        board = actor_here(ray, _Board)
        ray.get(board.tell.remote(ShardProgress("g0-000000", "train", videos=1)))
        ray.kill(board, no_restart=False)
        reports: list[ShardProgress] = []
        deadline = time.monotonic() + 200
        while not reports and time.monotonic() < deadline:
            board.tell.remote(ShardProgress("g0-000000", "train", videos=2))
            reports = _new_progress(ray, board)
            time.sleep(0.1)
        assert [progress.videos for progress in reports] == [2]


def test_a_report_after_the_end_of_its_job_is_dropped() -> None:
    reports = [ShardProgress("g0-000000", "train", videos=4), ShardProgress("g0-000001", "train", videos=2)]
    assert _of_running_jobs(reports, {"reference": "g0-000001"}.values()) == reports[1:]
