"""What is wrong with a run now, by its processes' figures: the alerts' conditions, as far as one look judges them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from cluster.status.outcomes import age, missed, named
from cluster.status.pages import Figures
from cluster.status.runbook import to_do
from cluster.status.states import Problem, ProcessState, Severity
from sharding.base.printable import visible

_BOUND, _WARM_STEPS, _WARM_SECONDS = 0.5, 10, 90  # of waiting for data, as alerts.yml has them
_STARVED = 0.25  # share of waiting from which on a slow rank is no fault of its own
_DAMAGED = 0.001  # of the clips
_CHECKPOINT_SECONDS, _CHECKPOINT_TIMES, _FIRST_CHECKPOINT_SECONDS = 300, 3, 3600
_DISK_RATIO, _DISK_BYTES = 0.05, 50e9


class Heard(NamedTuple):
    """A process and its figures."""

    process: ProcessState
    figures: Figures


@dataclass(frozen=True)
class Evidence:
    """What a run's problems are judged by. `first`: the figures of rank 0, or of the only process."""

    run: str
    folder: str
    kind: str
    heard: Sequence[Heard]
    withheld: Sequence[str]
    world_size: int | None
    now: float

    @property
    def first(self) -> Figures:
        """The figures of rank 0, or of the only process."""
        return next((each.figures for each in self.heard if each.process.rank in (0, None)), Figures())

    def most(self, name: str) -> tuple[float, ProcessState] | None:
        """The largest of a figure over the processes, and whose it is."""
        values = [(value, each.process) for each in self.heard if (value := each.figures.value(name)) is not None]
        return max(values, key=lambda pair: pair[0], default=None)

    def sum(self, name: str) -> float:
        """A figure, summed up over the processes."""
        return sum(each.figures.value(name) or 0.0 for each in self.heard)


Finding = tuple[str, Severity, str]  # the alert whose condition holds, how grave it is, and what is the matter


def problems_now(evidence: Evidence) -> list[Problem]:
    """The conditions that hold, the gravest first."""
    findings = [each for condition in _CONDITIONS if (each := condition(evidence))]
    alerts = {alert for alert, _, _ in findings}
    if "ReelscaleDiskNearlyFull" in alerts:  # one fault, one problem
        findings = [each for each in findings if not each[0].startswith("ReelscaleCheckpoint")]
    findings.sort(key=lambda each: each[1] != "critical")
    return [
        Problem(evidence.run, severity, what, to_do(alert, evidence.folder), alert)
        for alert, severity, what in findings
    ]


def counted(evidence: Evidence) -> list[Problem]:
    """What counters say has happened since the processes began: for a run whose log cannot be read here."""
    first = evidence.first
    counts: tuple[tuple[str, Severity, float, str], ...] = (
        (
            "ReelscaleNotFinite",
            "note",
            first.value("reelscale_skipped_steps_total", reason="not_finite") or 0,
            "steps left out, not finite",
        ),
        ("ReelscaleLossSpike", "note", first.value("reelscale_loss_spikes_total") or 0, "loss spikes"),
        ("ReelscaleLossSpike", "note", first.value("reelscale_rollbacks_total") or 0, "set back to a checkpoint"),
        ("ReelscaleCheckpointFailed", "warning", first.value("reelscale_checkpoint_failures_total") or 0,
         "checkpoints could not be saved"),
        ("ReelscaleDamagedData", "note", evidence.sum("reelscale_damaged_samples_total"), "damaged samples"),
    )  # fmt: skip
    return [
        Problem(evidence.run, severity, f"{what}: {count:,.0f} since it began", to_do(alert, evidence.folder), alert)
        for alert, severity, count, what in counts
        if count
    ]


def _silent(evidence: Evidence) -> Finding | None:
    silent = [each.process for each in evidence.heard if missed(each.process, evidence.world_size)]
    if not silent:
        return None
    what = f"{named(silent)} {'does' if len(silent) == 1 else 'do'} not answer: {visible(silent[0].line)}"
    return "ReelscaleRankDown", "critical", what


def _stalled(evidence: Evidence) -> Finding | None:
    stalled = [each.process for each in evidence.heard if each.process.health == "not ready"]
    if not stalled or _silent(evidence):  # the others wait for one that is gone
        return None
    alert = "ReelscaleShardingStuck" if evidence.kind == "shard" else "ReelscaleStalled"
    return alert, "critical", f"{named(stalled)}: not ready: {visible(stalled[0].line)}"


def _unseen(evidence: Evidence) -> Finding | None:
    if evidence.withheld:
        many = f" (so do {len(evidence.withheld) - 1} others)" if len(evidence.withheld) > 1 else ""
        return "ReelscaleExporterMissing", "warning", f"no figures: {visible(evidence.withheld[0])}{many}"
    ranks = len({each.process.rank for each in evidence.heard})
    if evidence.world_size is not None and ranks < evidence.world_size:
        what = f"{ranks} of {evidence.world_size} ranks are known here"
        return "ReelscaleExporterMissing", "warning", what
    return None


def _data_bound(evidence: Evidence) -> Finding | None:
    worst = evidence.most("reelscale_train_data_wait_ratio")
    started = evidence.most("reelscale_train_started_timestamp_seconds")
    steps = evidence.most("reelscale_train_step_seconds_count")
    if not (worst and started and steps) or worst[0] <= _BOUND or steps[0] < _WARM_STEPS:
        return None
    if evidence.now - started[0] < _WARM_SECONDS:
        return None
    return "ReelscaleDataBound", "warning", f"{visible(worst[1].named)} waits for data {worst[0]:.0%} of its time"


def _straggler(evidence: Evidence) -> Finding | None:
    rank, wait = (
        evidence.first.value("reelscale_train_straggler_rank"),
        evidence.most("reelscale_train_data_wait_ratio"),
    )
    if rank is None or (wait and wait[0] > _STARVED):
        return None
    who = next((each.process.named for each in evidence.heard if each.process.rank == rank), f"rank {rank:.0f}")
    return "ReelscaleStraggler", "note", f"{visible(who)} is far slower than the others, and all wait for it"


def _damaged(evidence: Evidence) -> Finding | None:
    damaged = evidence.sum("reelscale_damaged_samples_total")
    clips = evidence.sum("reelscale_clips_decoded_total")
    if not damaged or damaged <= _DAMAGED * clips:
        return None
    return "ReelscaleDamagedData", "warning", f"{damaged:,.0f} samples are damaged, of {clips:,.0f} clips decoded"


def _checkpoint_old(evidence: Evidence) -> Finding | None:
    first = evidence.first
    started = first.value("reelscale_train_started_timestamp_seconds")
    saved = first.value("reelscale_checkpoint_last_timestamp_seconds")
    if started is None:
        return None
    if saved is None:
        without = evidence.now - started
        if without <= _FIRST_CHECKPOINT_SECONDS:
            return None
        return "ReelscaleCheckpointOld", "warning", f"no checkpoint yet, after {age(without)}"
    count, seconds = first.value("reelscale_checkpoints_total") or 0, evidence.now - saved
    if not count or seconds <= _CHECKPOINT_SECONDS or seconds <= _CHECKPOINT_TIMES * (saved - started) / count:
        return None
    usual = age(max(0.0, saved - started) / count)
    return "ReelscaleCheckpointOld", "warning", f"the newest checkpoint is {age(seconds)} old; usual are {usual}"


def _disk(evidence: Evidence) -> Finding | None:
    low = []
    for process, figures in evidence.heard:
        sizes = figures.by("reelscale_disk_size_bytes", "folder")
        for folder, free in process.disk_free_bytes.items():
            if free < _DISK_BYTES and free < _DISK_RATIO * sizes.get(folder, 0.0):
                low.append((free, folder, process))
    if not low:
        return None
    free, folder, process = min(low, key=lambda each: each[0])
    what = f"{free / 1e9:.1f} GB are left on the disk of {visible(folder)} of {visible(process.named)}"
    return "ReelscaleDiskNearlyFull", "critical", what


_CONDITIONS: tuple[Callable[[Evidence], Finding | None], ...] = (
    _silent,
    _stalled,
    _disk,
    _unseen,
    _data_bound,
    _straggler,
    _damaged,
    _checkpoint_old,
)
