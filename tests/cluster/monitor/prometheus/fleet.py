"""Runs and sharding as Prometheus sees them: a value every ten seconds of each series, well or with a fault in them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

EVERY, LONGEST = 10, 1800  # seconds between scrapes, and of a story
FAULT = 600  # seconds after which a fault begins; all has gone well for ten minutes
RUN, STORE = "motion", "sports1m"
Value = Callable[[float], float | None]


class Fleet:
    """Series by metric and labels. None is no sample; the first after others is marked stale, as by a scrape."""

    def __init__(self) -> None:
        self._series: dict[tuple[str, tuple[tuple[str, str], ...]], Value] = {}

    def add(self, metric: str, value: Value, **labels: Any) -> None:
        """A series, or another course of it."""
        self._series[metric, tuple(sorted((key, str(each)) for key, each in labels.items()))] = value

    def change(self, metric: str, change: Callable[[float, float | None], float | None], **labels: Any) -> None:
        """From the fault on, another course of a metric's series with these labels; `*` at its end is any."""
        changed = 0
        for (name, own), value in list(self._series.items()):
            same = name == metric or (metric.endswith("*") and name.startswith(metric[:-1]))
            if same and {(key, str(each)) for key, each in labels.items()} <= set(own):
                self._series[name, own] = _from_fault(value, change)
                changed += 1
        assert changed, f"there is no series {metric} {labels}"

    def join(self, other: Fleet) -> Fleet:
        """Both at once."""
        self._series |= other._series
        return self

    def has(self, metric: str, **labels: Any) -> bool:
        """Whether there is a series of a metric, or of a histogram of that name, with these labels."""
        wanted = {(key, str(each)) for key, each in labels.items()}
        return any(name in (metric, f"{metric}_count") and wanted <= set(own) for name, own in self._series)

    def instances(self) -> list[str]:
        """The processes that answer."""
        return sorted({dict(own)["instance"] for name, own in self._series if name == "up"})

    def exposed(self, instance: str, t: float, epoch: float) -> str:
        """What a process serves after `t` seconds, in Prometheus' text; times of day count from `epoch`."""
        lines = []
        for (name, own), value in self._series.items():
            labels, number = dict(own), value(t)
            if name != "up" and labels.pop("instance") == instance and number is not None:
                del labels["job"]
                number += epoch if name.endswith("_timestamp_seconds") else 0
                lines.append(f"{_series(name, labels)} {number!r}")
        return "\n".join(lines) + "\n"

    def input_series(self, end: float = LONGEST) -> list[dict[str, str]]:
        """As promtool reads them."""
        return [
            {
                "series": _series(metric, dict(labels)),
                "values": " ".join(_samples(value, end)),
            }
            for (metric, labels), value in self._series.items()
        ]


def _series(metric: str, labels: dict[str, str]) -> str:
    return metric + "{" + ",".join(f'{key}="{each}"' for key, each in labels.items()) + "}"


def _from_fault(value: Value, change: Callable[[float, float | None], float | None]) -> Value:
    return lambda t: value(t) if t < FAULT else change(t, value(t))


def _samples(value: Value, end: float) -> list[str]:
    samples: list[str] = []
    before: float | None = None
    for number in range(int(end // EVERY) + 1):
        now = value(number * EVERY)
        samples.append(f"{now:.10g}" if now is not None else "_" if before is None else "stale")
        before = now
    return samples


def always(number: float) -> Value:
    return lambda t: number


def growing(per_second: float) -> Value:
    return lambda t: per_second * t


def gone(t: float, before: float | None) -> None:
    return None


def halted(per_second: float) -> Callable[[float, float | None], float]:
    """Of a series that grew so: no longer."""
    return lambda t, before: per_second * FAULT


def training(run: str = RUN, ranks: int = 2, discovery: str = "") -> Fleet:
    """A run of two steps a second, with a checkpoint each minute, a validation every five."""
    fleet = Fleet()
    for rank in range(ranks):
        instance = f"127.0.0.1:{9480 + rank}" if run == RUN else f"127.0.0.1:{9580 + rank}"
        target = {"job": "reelscale", "instance": instance} | ({"discovery": discovery} if discovery else {})
        own = {**target, "run": run, "rank": rank, "node": f"node{rank}"}
        fleet.add("up", always(1), **target)
        fleet.add("reelscale_ready", always(1), **own)
        fleet.add("reelscale_run_info", always(1), **own, kind="pretrain", world_size=ranks)
        fleet.add("reelscale_train_started_timestamp_seconds", always(0), **own)
        fleet.add("reelscale_train_attempts", always(1), **own)
        fleet.add("reelscale_train_interruptions", always(0), **own)
        fleet.add("reelscale_train_step", growing(2), **own)
        fleet.add("reelscale_train_steps", always(100_000), **own)
        fleet.add("reelscale_train_samples", growing(16), **own)
        fleet.add("reelscale_train_last_step_timestamp_seconds", growing(1), **own)
        for name, share in (("step", 1), ("data_wait", 0.01), ("compute", 0.7), ("exchange", 0.2)):
            fleet.add(f"reelscale_train_{name}_seconds_count", growing(2), **own)
            fleet.add(f"reelscale_train_{name}_seconds_sum", growing(share), **own)
            fleet.add(f"reelscale_train_{name}_seconds_bucket", growing(1.9), **own, le="0.5")
            fleet.add(f"reelscale_train_{name}_seconds_bucket", growing(2), **own, le="+Inf")
        fleet.add("reelscale_clips_decoded_total", growing(8), **own)
        for reason in ("not_finite", "overflow", "no_clips"):
            fleet.add("reelscale_skipped_steps_total", always(0), **own, reason=reason)
        for name in ("damaged_samples", "loss_spikes", "rollbacks", "checkpoint_failures"):
            fleet.add(f"reelscale_{name}_total", always(0), **own)
        fleet.add("reelscale_checkpoints_total", lambda t, rank=rank: 0 if rank else t // 60, **own)  # type: ignore[misc]
        for folder in ("run", "cache"):
            fleet.add("reelscale_disk_size_bytes", always(1e12), **own, folder=folder)
            fleet.add("reelscale_disk_free_bytes", always(3e11), **own, folder=folder)
        if rank == 0:
            fleet.add("reelscale_checkpoint_last_timestamp_seconds", _newest(60), **own)
            fleet.add("reelscale_validation_last_timestamp_seconds", _newest(300), **own)
    return fleet


def sharding(store: str = STORE, videos: float = 2.0, of: int = 100_000) -> Fleet:
    """Two videos a second, until all are done."""
    fleet = Fleet()
    target = {"job": "reelscale", "instance": "127.0.0.1:9700"}
    own = {**target, "run": store, "rank": 0, "node": "node9"}
    fleet.add("up", always(1), **target)
    fleet.add("reelscale_ready", always(1), **own)
    fleet.add("reelscale_run_info", always(1), **own, kind="shard")
    fleet.add("reelscale_shard_videos_total", lambda t: min(of, 0.9 * videos * t), **own, outcome="good")
    fleet.add("reelscale_shard_videos_total", lambda t: min(of, 0.1 * videos * t), **own, outcome="failed")
    fleet.add("reelscale_shard_frames_total", growing(300 * videos), **own)
    fleet.add("reelscale_shard_remaining_videos", lambda t: max(0, of - videos * t), **own)
    fleet.add("reelscale_shard_oldest_job_seconds", lambda t: t % 120, **own)
    fleet.add("reelscale_disk_size_bytes", always(1e12), **own, folder="cache")
    fleet.add("reelscale_disk_free_bytes", always(3e11), **own, folder="cache")
    return fleet


def evaluation(run: str = RUN) -> Fleet:
    """Videos scored by a run's network, under its name."""
    fleet = Fleet()
    target = {"job": "reelscale", "instance": "127.0.0.1:9800"}
    own = {**target, "run": run, "rank": 0, "node": "node8"}
    fleet.add("up", always(1), **target)
    fleet.add("reelscale_ready", always(1), **own)
    fleet.add("reelscale_run_info", always(1), **own, kind="evaluate", world_size="")
    return fleet


def _newest(every: float) -> Value:
    """The time of what happens every so many seconds; nothing before it has first happened."""
    return lambda t: every * math.floor(t / every) if t >= every else None
