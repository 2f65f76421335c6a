"""What befalls a run or a sharding job, as series; which alert it must fire, and what must fire none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.cluster.monitor.prometheus.fleet import (
    FAULT,
    RUN,
    STORE,
    Fleet,
    always,
    evaluation,
    gone,
    halted,
    sharding,
    training,
)

Story = Callable[[], Fleet]


@dataclass(frozen=True)
class Fault:
    """A course of things that goes wrong at `begins`; the alert that it fires, with these labels and this text."""

    story: Story
    alert: str
    description: str
    labels: dict[str, str]
    begins: int = FAULT


def changed(*changes: tuple[Any, ...], fleet: Callable[[], Fleet] = training) -> Story:
    """A fleet of which metrics go another way from the fault on: (metric, course, labels)."""

    def story() -> Fleet:
        made = fleet()
        for metric, course, *labels in changes:
            made.change(metric, course, **(labels[0] if labels else {}))
        return made

    return story


def silent(rank: int = 1, port: int = 9481) -> list[tuple[Any, ...]]:
    """A rank that answers no more, and the others wait for it."""
    stands = [(f"reelscale_train_{name}", halted(2)) for name in ("step", "step_seconds_count")]
    return [
        *stands,
        ("reelscale_train_samples", halted(16)),
        ("up", lambda t, before: 0, {"instance": f"127.0.0.1:{port}"}),
        ("reelscale_*", gone, {"rank": rank}),
    ]


def jumps(to: float) -> Callable[[float, float | None], float]:
    return lambda t, before: to


def stalled(fleet: Callable[[], Fleet] = training) -> Story:
    return changed(
        ("reelscale_ready", jumps(0)),
        ("reelscale_train_step", halted(2)),
        ("reelscale_train_samples", halted(16)),
        ("reelscale_train_step_seconds_count", halted(2)),
        fleet=fleet,
    )


def spiked() -> Fleet:
    """Just before the fault there were four spikes, too few among so many steps to be told."""
    fleet = training()
    fleet.add("reelscale_loss_spikes_total", lambda t: 4 if t >= FAULT - 10 else 0, **_first_rank())
    return fleet


def starving() -> Story:
    """0.8 of the time of rank 1 goes into waiting; the steps take four times as long."""
    return changed(
        ("reelscale_train_data_wait_seconds_sum", lambda t, before: 6 + 0.8 * (t - FAULT), {"rank": 1}),
        ("reelscale_train_step", lambda t, before: 1200 + 0.5 * (t - FAULT)),
        ("reelscale_train_step_seconds_count", lambda t, before: 1200 + 0.5 * (t - FAULT)),
        fleet=_with_straggler,
    )


def _with_straggler() -> Fleet:
    fleet = training()
    fleet.add("reelscale_train_straggler_rank", lambda t: 1 if t >= FAULT + 20 else None, **_first_rank())
    return fleet


def _first_rank(run: str = RUN) -> dict[str, str]:
    return {"job": "reelscale", "instance": "127.0.0.1:9480", "run": run, "rank": "0", "node": "node0"}


def missing_rank() -> Fleet:
    fleet = training(ranks=1)
    fleet.add("reelscale_run_info", always(1), **_first_rank(), kind="pretrain", world_size=2)
    return fleet


def _found_twice() -> Fleet:
    """By its file, and by a target named by hand."""
    fleet = training()
    target = {"job": "reelscale", "instance": "node0:9480", "discovery": "static"}
    fleet.add("up", always(1), **target)
    own = {**target, "run": RUN, "rank": 0, "node": "node0"}
    fleet.add("reelscale_ready", always(1), **own)
    fleet.add("reelscale_run_info", always(1), **own, kind="pretrain", world_size=2)
    return fleet


def never_answered() -> Fleet:
    fleet = training()
    fleet.add("up", lambda t: 0 if t >= FAULT else None, job="reelscale", instance="node7:9480", discovery="static")
    return fleet


def first_of_a_label() -> Fleet:
    """A counter whose series only begins with what it counts."""
    fleet = training()
    fleet.add(
        "reelscale_skipped_steps_total",
        lambda t: 1 if t >= FAULT else None,
        **_first_rank("other"),
        reason="not_finite",
    )
    return fleet


def disk_full() -> Story:
    return changed(
        ("reelscale_disk_free_bytes", jumps(1e6), {"node": "node1"}),
        ("reelscale_checkpoint_failures_total", lambda t, before: (t - FAULT) // 60),
        ("reelscale_checkpoint_last_timestamp_seconds", jumps(FAULT)),
    )


_OF_RUN, _OF_STORE = {"run": RUN}, {"run": STORE}
FAULTS: dict[str, Fault] = {
    "a rank is killed": Fault(
        changed(*silent()),
        "ReelscaleRankDown",
        "Rank 1 of run motion on node node1 (127.0.0.1:9481) does not answer, and has not ended in order: it was "
        "killed, hangs, or its node is out of reach.",
        {**_OF_RUN, "job": "reelscale", "instance": "127.0.0.1:9481", "rank": "1", "node": "node1"},
    ),
    "ranks are not scraped": Fault(
        changed(fleet=missing_rank),
        "ReelscaleExporterMissing",
        "Not all 2 ranks of run motion are scraped. What is not scraped fires no alert.",
        {**_OF_RUN, "world_size": "2"},
        0,
    ),
    "nobody makes progress": Fault(
        stalled(),
        "ReelscaleStalled",
        "Run motion makes no progress; not ready: rank 0 on node node0; rank 1 on node node1; their /readyz says why.",
        _OF_RUN,
    ),
    "a batch is poisoned": Fault(
        changed(("reelscale_skipped_steps_total", jumps(1), {"reason": "not_finite"})),
        "ReelscaleNotFinite",
        "Run motion has left out steps in the last minutes, as a loss or gradient was NaN or infinite; after "
        "`health.skipped_in_a_row` of them it returns to its newest checkpoint.",
        _OF_RUN,
    ),
    "the loss jumps": Fault(
        changed(("reelscale_loss_spikes_total", lambda t, before: 1 + min(t - FAULT, 100))),
        "ReelscaleLossSpike",
        "Losses of run motion stay far above those before them, or the run has been set back to its newest checkpoint "
        "for one.",
        _OF_RUN,
    ),
    "the loader starves": Fault(
        starving(),
        "ReelscaleDataBound",
        "Run motion spends 80% of its time waiting for data; the most: rank 1 on node node1.",
        _OF_RUN,
    ),
    "a rank is slow": Fault(
        changed(fleet=_with_straggler),
        "ReelscaleStraggler",
        "Rank 1 of run motion on node node1 has taken far longer for its work than the others for a minute, and all "
        "wait for it.",
        {**_OF_RUN, "straggler": "1"},
    ),
    "samples are damaged": Fault(
        changed(("reelscale_damaged_samples_total", lambda t, before: 1 + (t - FAULT) // 10, {"rank": 1})),
        "ReelscaleDamagedData",
        "In the last 5 minutes more than one in a thousand samples of run motion could not be used and was left out.",
        _OF_RUN,
    ),
    "a checkpoint fails": Fault(
        changed(("reelscale_checkpoint_failures_total", jumps(1), {"rank": 0})),
        "ReelscaleCheckpointFailed",
        "A checkpoint of run motion could not be saved; an interruption costs the time since the last one.",
        _OF_RUN,
    ),
    "a disk is full": Fault(
        disk_full(),
        "ReelscaleDiskNearlyFull",
        "On node node1 a disk of run motion has 0.0001% left, of cache (rank 1) run (rank 1); checkpoints or shards "
        "will fail.",
        {**_OF_RUN, "node": "node1"},
    ),
    "sharding is stuck": Fault(
        changed(
            ("reelscale_shard_frames_total", halted(600)),
            ("reelscale_shard_videos_total", halted(1.8), {"outcome": "good"}),
            ("reelscale_shard_videos_total", halted(0.2), {"outcome": "failed"}),
            ("reelscale_shard_remaining_videos", lambda t, before: 98_800),
            ("reelscale_shard_oldest_job_seconds", lambda t, before: t - FAULT),
            fleet=sharding,
        ),
        "ReelscaleShardingStuck",
        "Sharding into sports1m has finished no video lately, and 98800 are still to be done; on node node9 the oldest "
        "job has run for 2m 0s.",
        _OF_STORE,
    ),
    "sharding is slow": Fault(
        changed(
            ("reelscale_shard_videos_total", lambda t, before: 1080 + 0.2 * (t - FAULT), {"outcome": "good"}),
            ("reelscale_shard_frames_total", lambda t, before: 600 * FAULT + 60 * (t - FAULT)),
            fleet=sharding,
        ),
        "ReelscaleShardingSlow",
        "Sharding into sports1m decodes 60 frames a second, less than a third of what it decoded within the last hour.",
        _OF_STORE,
    ),
}


def _ends_in_order() -> list[tuple[Any, ...]]:
    return [("reelscale_*", gone), ("up", gone)]


def _validation(t: float, before: float | None) -> float | None:
    """A validation of five minutes, in which no step is made."""
    return before if before is None else before * min(1.0, FAULT / t) if t < FAULT + 300 else before - 300


def _without_a_rank() -> Fleet:
    """Rank 1 is lost, and a minute later the run goes on without it; its target stays."""
    fleet = training()
    for change in silent():
        fleet.change(change[0], change[1], **(change[2] if len(change) > 2 else {}))
    again = FAULT + 10
    fleet.change("reelscale_train_started_timestamp_seconds", lambda t, before: max(again, FAULT), rank=0)
    fleet.change("reelscale_run_info", gone, rank=0)
    fleet.add("reelscale_run_info", lambda t: 1 if t >= FAULT else None, **_first_rank(), kind="pretrain", world_size=1)
    return fleet


def _attempts(every: float) -> list[tuple[Any, ...]]:
    """From the fault on the run is interrupted so often."""
    return [
        ("reelscale_train_attempts", lambda t, before: 1 + (t - FAULT) // every),
        ("reelscale_train_interruptions", lambda t, before: (t - FAULT) // every),
    ]


def _no_new_checkpoint() -> list[tuple[Any, ...]]:
    return [
        ("reelscale_checkpoint_last_timestamp_seconds", jumps(FAULT)),
        ("reelscale_checkpoints_total", jumps(10), {"rank": 0}),
        ("reelscale_validation_last_timestamp_seconds", jumps(300)),
    ]


# Other ways to an alert: the story, the alert, its run, and by when it must fire.
LATE_FAULTS: dict[str, tuple[Story, str, str, int]] = {
    "no checkpoint any more": (changed(*_no_new_checkpoint()), "ReelscaleCheckpointOld", RUN, FAULT + 300 + 120),
    "interrupted each three minutes": (changed(*_attempts(180)), "ReelscaleInterruptedOften", RUN, FAULT + 480),
    "slow sharding is stuck by its own limit": (
        changed(("reelscale_ready", jumps(0)), fleet=lambda: sharding(videos=0.01)),
        "ReelscaleShardingStuck",
        STORE,
        FAULT + 120,
    ),
    "a roll-back": (changed(("reelscale_rollbacks_total", jumps(1))), "ReelscaleLossSpike", RUN, FAULT + 120),
    "a rank is killed after a few spikes": (
        changed(*silent(), fleet=spiked), "ReelscaleRankDown", RUN, FAULT + 120,
    ),
    "nobody makes progress after a few spikes": (stalled(spiked), "ReelscaleStalled", RUN, FAULT + 120),
    "a skipped step is the first of its series": (first_of_a_label, "ReelscaleNotFinite", "other", FAULT + 120),
    "a rank's target is taken away, and an evaluation is there": (
        changed(
            ("up", gone, {"instance": "127.0.0.1:9481"}),
            ("reelscale_*", gone, {"rank": 1}),
            fleet=lambda: training().join(evaluation()),
        ),
        "ReelscaleExporterMissing",
        RUN,
        FAULT + 120,
    ),
    "a target never answers": (never_answered, "ReelscaleExporterMissing", "", FAULT + 120),
    "one of two named targets falls silent": (
        changed(
            ("up", jumps(0), {"instance": "127.0.0.1:9481"}),
            ("reelscale_*", gone, {"rank": 1}),
            fleet=lambda: training(discovery="static"),
        ),
        "ReelscaleRankDown",
        RUN,
        FAULT + 120,
    ),
}  # fmt: skip

# Courses in which nothing is wrong, as far as Prometheus can know.
QUIET: dict[str, Story] = {
    "a run of two ranks": training,
    "a run of one rank": lambda: training(ranks=1),
    "sharding": sharding,
    "sharding to its last video": lambda: sharding(videos=20, of=12_000),
    "sharding of long videos": lambda: sharding(videos=0.005),
    "two runs and sharding": lambda: training().join(training("other")).join(sharding()),
    "a run and an evaluation of it": lambda: training().join(evaluation()),
    "a run of which a rank is found twice": _found_twice,
    "the end in order": changed(*_ends_in_order()),
    "sharding ends in order": changed(*_ends_in_order(), fleet=sharding),
    "a named target's run has ended": changed(
        ("up", jumps(0)), ("reelscale_*", gone), fleet=lambda: training(discovery="static")
    ),
    "a validation": changed(
        ("reelscale_train_*", _validation), ("reelscale_clips_decoded_total", _validation),
        ("reelscale_train_started_timestamp_seconds", jumps(0)), ("reelscale_train_attempts", jumps(1)),
        ("reelscale_train_steps", jumps(100_000)),
        ("reelscale_checkpoint_last_timestamp_seconds", lambda t, before: FAULT if t < FAULT + 300 else before),
    ),
    "a spike now and then": changed(("reelscale_loss_spikes_total", lambda t, before: 1 + (t - FAULT) // 20)),
    "one interruption": changed(*_attempts(900)),
    "the run goes on with a rank less": _without_a_rank,
    "fp16 skips a step": changed(("reelscale_skipped_steps_total", jumps(1), {"reason": "overflow"})),
    "a sample in ten thousand is damaged": changed(
        ("reelscale_damaged_samples_total", lambda t, before: (t - FAULT) // 800)
    ),
    "one scrape in three fails": changed(("up", lambda t, before: float(t % 30 != 0))),
}  # fmt: skip
