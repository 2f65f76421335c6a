"""What `reelscale status` knows at a moment: runs and stores, their processes, problems, and a cluster's jobs."""

from __future__ import annotations

import typing
from dataclasses import dataclass, field
from typing import Literal

from cluster.submission.ray_jobs import JobState, NodeState

Outcome = Literal["silent", "stalled", "troubled", "starting", "running", "stopped", "finished"]
OUTCOMES: tuple[Outcome, ...] = typing.get_args(Outcome)  # the gravest first
Severity = Literal["critical", "warning", "note"]


@dataclass(frozen=True)
class ProcessState:
    """A rank, or the one process of a command that has none: `health` is ready, `not ready` or `does not answer`.

    `line`: what its /readyz says, or why it does not answer. What it does not serve is None, or empty.
    """

    rank: int | None
    node: str
    place: str
    health: Literal["ready", "not ready", "does not answer"]
    line: str
    step: int | None = None
    data_wait_ratio: float | None = None
    memory_bytes: float | None = None
    gpu_utilization_ratio: float | None = None
    gpu_memory_ratio: float | None = None
    disk_free_bytes: dict[str, float] = field(default_factory=dict)

    @property
    def named(self) -> str:
        """The process in words: its rank and node, as far as they are known."""
        who = "the process" if self.rank is None else f"rank {self.rank}"
        return f"{who} on {self.node}" if self.node else f"{who} at {self.place}"


@dataclass(frozen=True)
class Problem:
    """Something to look at in a run. `age_seconds`: None for what is so now; `times`: how often the log has it.

    `alert`: the one whose runbook line `to_do` is, in cluster/OPERATIONS.md.
    """

    run: str
    severity: Severity
    what: str
    to_do: str
    alert: str
    age_seconds: float | None = None
    times: int = 1


@dataclass(frozen=True)
class Videos:
    """How far sharding or an evaluation is. `failures`: by their kind."""

    done: int
    remaining: int | None
    failed: int
    failures: dict[str, int]
    videos_per_second: float | None
    oldest_job_seconds: float | None = None


@dataclass(frozen=True)
class WorkState:
    """A run, or sharding into a store, or an evaluation. What is not known is None.

    `run`: its name, that of its folder or store, which `folder` is the path or URL of. `of`: the steps of the whole
    run; `share`: how much is done, 0 to 1; `checkpoint`: the newest one's step; `world_size`: ranks that there are to
    be, of which `answering` do.
    """

    run: str
    folder: str
    kind: str
    outcome: Outcome
    reason: str
    step: int | None = None
    of: int | None = None
    share: float | None = None
    eta_seconds: float | None = None
    elapsed_seconds: float | None = None
    loss: float | None = None
    top1: float | None = None
    clips_per_second: float | None = None
    data_wait_ratio: float | None = None
    mfu: float | None = None
    checkpoint: int | None = None
    checkpoint_age_seconds: float | None = None
    last_word_seconds: float | None = None
    asked_to_stop: bool = False
    attempts: int | None = None
    world_size: int | None = None
    answering: int = 0
    nodes: list[str] = field(default_factory=list)
    videos: Videos | None = None
    processes: list[ProcessState] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    @property
    def has_ended(self) -> bool:
        """Whether nothing more is to be expected of it."""
        return self.outcome in ("stopped", "finished")


@dataclass(frozen=True)
class Snapshot:
    """All that was asked for, as it was `at` a time (ISO 8601); `notes`: what could not be asked meanwhile."""

    at: str
    runs: list[WorkState]
    jobs: list[JobState]
    nodes: list[NodeState]
    notes: list[str] = field(default_factory=list)

    @property
    def has_ended(self) -> bool:
        """Whether all of it has ended."""
        return all(run.has_ended for run in self.runs) and all(job.ended is not None for job in self.jobs)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to show."""
        return not (self.runs or self.jobs or self.nodes or self.notes)
