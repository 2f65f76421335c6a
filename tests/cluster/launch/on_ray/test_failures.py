"""Why a try failed: the rank that was lost first, in one line, whatever the others saw of it."""

from __future__ import annotations

from cluster.launch.on_ray.failures import failure_of, start_failure
from sharding.base.errors import CommandFailed, NotRetryable, StoreUnreachable, UserError


class RayActorError(Exception):
    """As Ray names it."""


class WorkerHealthCheckFailedError(Exception):
    """As Ray Train wraps it."""

    def __init__(self, inner: Exception) -> None:
        super().__init__("the health check failed\nmore of it")
        self.health_check_failure = inner


SEEN = CommandFailed("training failed: another rank is gone (Connection closed by peer)")
HOSTS = {0: "10.0.0.1", 1: "10.0.0.2", 2: "10.0.0.3"}


def test_a_death_is_the_cause_of_what_others_saw() -> None:
    dead = WorkerHealthCheckFailedError(RayActorError("The actor died because its node has died. Node Id: 12"))
    failure = failure_of({0: SEEN, 1: SEEN, 2: dead}, HOSTS, 3)
    assert failure.line == "rank 2 of 3 on 10.0.0.3 is lost: its node died, or cannot be reached"
    assert failure.error is None and failure.ranks_ran


def test_a_process_and_a_node_without_memory_are_told_apart() -> None:
    """Ray names memory among the causes of any death."""
    killed = RayActorError("The worker died. Some common causes include: (1) the OOM killer due to high memory usage")
    assert failure_of({1: killed}, {}, 2).line == "rank 1 of 2 is lost: its process died"
    full = RayActorError("Task was killed due to the node running low on memory.")
    assert "ran out of memory" in failure_of({1: full}, {}, 2).line


def test_an_error_of_a_ranks_own_is_named() -> None:
    failure = failure_of({0: SEEN, 1: OSError("no space left\non the disk")}, HOSTS, 2)
    assert failure.line == "rank 1 of 2 on 10.0.0.2 failed: OSError: no space left"
    assert failure_of({0: SEEN}, HOSTS, 2).line.endswith(f"failed: {SEEN}")


def test_what_another_try_would_meet_again_is_kept() -> None:
    mistake, given_up = UserError("a", "b", "c"), NotRetryable("went wrong")
    assert failure_of({0: RayActorError("died"), 1: mistake}, HOSTS, 2).error is mistake
    assert failure_of({0: given_up, 1: SEEN}, HOSTS, 2).error is given_up


def test_a_store_that_answered_before_is_only_away() -> None:
    away = failure_of({0: SEEN, 1: StoreUnreachable("the store does not answer: timed out", "s3://b", "r")}, HOSTS, 2)
    assert away.line == "rank 1 of 2 on 10.0.0.2 failed: the store does not answer: timed out"
    assert isinstance(away.final(began=False), StoreUnreachable) and away.final(began=True) is None
    mistake = failure_of({1: UserError("a", "b", "c")}, HOSTS, 2)
    assert mistake.final(began=True) is mistake.error is not None


def test_ranks_that_did_not_start_were_none_that_failed() -> None:
    failure = start_failure(RuntimeError("ray::Worker.start() (pid=1)\n  File x\nConnectionError: no route to host\n"))
    assert failure.line == "the ranks did not start (ConnectionError: no route to host)" and not failure.ranks_ran
    assert start_failure(RuntimeError()).line == "the ranks did not start (RuntimeError)"
