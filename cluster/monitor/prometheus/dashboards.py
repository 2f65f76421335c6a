"""The dashboards: what is asked of Prometheus for a run, its data, sharding and the cluster."""

from __future__ import annotations

from typing import Any

from cluster.monitor.prometheus.grafana_json import Panel, Query, Row, dashboard

_RUN = '{run=~"$run"}'
_RUN_INFO = "run, kind, recipe, network, store_version, world_size, device"
_RANK = "{{run}} {{rank}}"
_NODE = "{{run}} {{node}}"
_ALERTS = Panel(
    "Firing alerts",
    (Query('ALERTS{alertname=~"Reelscale.*", alertstate="firing"}', ""),),
    kind="table",
    width=24,
    what="What each means and what to do: cluster/OPERATIONS.md",
    nothing="no alert fires",
)


def dashboards() -> dict[str, dict[str, Any]]:
    """Name → dashboard, as Grafana reads it."""
    return {
        "run": dashboard("run", "Reelscale run", "reelscale_train_step", _of_a_run()),
        "data": dashboard("data", "Reelscale data", "reelscale_train_step", _of_its_data()),
        "sharding": dashboard("sharding", "Reelscale sharding", "reelscale_shard_remaining_videos", _of_sharding()),
        "cluster": dashboard("cluster", "Reelscale cluster", "reelscale_ready", _of_the_cluster()),
    }


def _newest(metric: str, legend: str = "{{run}}") -> Query:
    """What a run's ranks say of the whole run: the same, or some of them nothing."""
    return Query(f"max by (run) ({metric}{_RUN})", legend)


def _rate(metric: str, by: str = "run, rank", legend: str = _RANK) -> Query:
    return Query(f"sum by ({by}) (rate({metric}{_RUN}[$__rate_interval]))", legend)


def _quantiles(metric: str) -> tuple[Query, ...]:
    return tuple(
        Query(
            f"histogram_quantile({quantile}, sum by (run, le) (rate({metric}_bucket{_RUN}[$__rate_interval])))",
            f"{{{{run}}}} p{quantile * 100:.0f}",
        )
        for quantile in (0.5, 0.99)
    )


def _step_seconds(quantile: str) -> Query:
    return Query(f"run:reelscale_train_step_seconds:{quantile}_rate5m{_RUN}", f"{{{{run}}}} {quantile}")


def _stat(title: str, query: Query, unit: str = "short") -> Panel:
    return Panel(title, (query,), unit, kind="stat", width=4)


def _of_a_run() -> list[Row]:
    left = (
        f"(max by (run) (reelscale_train_steps{_RUN}) - max by (run) (reelscale_train_step{_RUN}))"
        f" / (max by (run) (deriv(reelscale_train_step{_RUN}[5m])) > 0)"
    )
    return [
        Row(
            "Now",
            (
                _stat("Step", _newest("reelscale_train_step")),
                _stat("Of steps", _newest("reelscale_train_steps")),
                _stat("Time left", Query(left), "s"),
                _stat("Clips a second", Query(f"run:reelscale_train_clips_per_second:deriv1m{_RUN}")),
                _stat("Ranks ready", Query(f"sum by (run) (reelscale_ready{_RUN})")),
                _stat("Checkpoint's age", Query(f"run:reelscale_checkpoint_age_seconds:max{_RUN}"), "s"),
                _ALERTS,
            ),
        ),
        _learning(),
        _speed(),
        _safety(),
    ]


def _learning() -> Row:
    return Row(
        "Learning",
        (
            Panel("Loss", (_newest("reelscale_train_loss"),)),
            Panel("Clip top-1, training", (_newest("reelscale_train_top1_ratio"),), "percentunit"),
            Panel("Clip@1, validation", (_newest("reelscale_validation_clip1_ratio"),), "percentunit"),
            Panel("Learning rate", (_newest("reelscale_train_learning_rate"),), "sci"),
            Panel("Gradient norm", (_newest("reelscale_train_gradient_norm"),)),
            Panel("Loss scale (fp16)", (_newest("reelscale_train_loss_scale"),)),
        ),
    )


def _speed() -> Row:
    shares = ("data_wait", "compute", "exchange")
    return Row(
        "Speed",
        (
            Panel("Clips a second", (Query(f"run:reelscale_train_clips_per_second:deriv1m{_RUN}"),)),
            Panel("Time of a step", tuple(_step_seconds(each) for each in ("p50", "p99")), "s"),
            Panel("Model FLOPs utilisation", (_newest("reelscale_train_mfu_ratio"),), "percentunit"),
            *(
                Panel(f"Share of time: {title}", (_rate(f"reelscale_train_{share}_seconds_sum"),), "percentunit")
                for title, share in zip(("waiting for data", "own work", "exchange"), shares, strict=True)
            ),
        ),
    )


def _safety() -> Row:
    return Row(
        "Safety",
        (
            Panel("Time to save a checkpoint", _quantiles("reelscale_checkpoint_seconds"), "s"),
            Panel("Share of time standing still to save", (_newest("reelscale_train_saving_ratio"),), "percentunit"),
            Panel(
                "Checkpoints",
                (
                    _newest("reelscale_checkpoints_total", "{{run}} saved"),
                    _newest("reelscale_checkpoint_failures_total", "{{run}} failed"),
                ),
            ),
            Panel(
                "Steps left out, by reason",
                (Query(f"max by (run, reason) (reelscale_skipped_steps_total{_RUN})", "{{run}} {{reason}}"),),
            ),
            Panel(
                "Loss spikes and roll-backs",
                (
                    _newest("reelscale_loss_spikes_total", "{{run}} spikes"),
                    _newest("reelscale_rollbacks_total", "{{run}} roll-backs"),
                ),
            ),
            Panel(
                "Attempts and interruptions",
                (
                    _newest("reelscale_train_attempts", "{{run}} attempts"),
                    _newest("reelscale_train_interruptions", "{{run}} interruptions"),
                ),
            ),
        ),
    )


def _of_its_data() -> list[Row]:
    return [
        Row(
            "Waiting",
            (
                Panel(
                    "Time waiting for data",
                    (Query(f"rank:reelscale_train_data_wait_ratio:rate1m{_RUN}", _RANK),),
                    "percentunit",
                    width=12,
                ),
                Panel("Wait of a step", _quantiles("reelscale_train_data_wait_seconds"), "s", width=12),
            ),
        ),
        Row(
            "Reading and decoding",
            (
                Panel("Clips decoded a second", (_rate("reelscale_clips_decoded_total"),)),
                Panel("Time to read and decode a clip", _quantiles("reelscale_decode_seconds"), "s"),
                Panel("Bytes read a second", (_rate("reelscale_read_bytes_total"),), "Bps"),
                Panel("Reads tried again, a second", (_rate("reelscale_read_retries_total"),)),
                Panel("Clips of videos shorter than a clip, a second", (_rate("reelscale_clips_looped_total"),)),
                Panel(
                    "Room left for the cache",
                    (Query('min by (run, node) (reelscale_disk_free_bytes{run=~"$run", folder="cache"})', _NODE),),
                    "bytes",
                ),
            ),
        ),
        Row(
            "Damage",
            (
                Panel("Damaged samples", (Query(f"sum by (run) (reelscale_damaged_samples_total{_RUN})"),), width=12),
                Panel(
                    "Decode errors by kind",
                    (Query(f"sum by (run, kind) (reelscale_decode_errors_total{_RUN})", "{{run}} {{kind}}"),),
                    width=12,
                ),
            ),
        ),
    ]


def _of_sharding() -> list[Row]:
    done = f"sum by (run) (reelscale_shard_videos_total{_RUN})"
    remaining = f"max by (run) (reelscale_shard_remaining_videos{_RUN})"
    return [
        Row(
            "Now",
            (
                _stat("Done", Query(f"{done} / ({done} + {remaining})"), "percentunit"),
                _stat("Videos to be done", Query(remaining)),
                _stat("Time left", _newest("reelscale_shard_left_seconds"), "s"),
                _stat("Shard jobs done", Query(f"sum by (run) (reelscale_shard_jobs_total{_RUN})")),
                _stat("Of shard jobs", _newest("reelscale_shard_planned_jobs")),
                _stat("Oldest job runs for", _newest("reelscale_shard_oldest_job_seconds"), "s"),
            ),
        ),
        Row(
            "Speed",
            (
                Panel(
                    "Videos a second, by outcome",
                    (_rate("reelscale_shard_videos_total", "run, outcome", "{{run}} {{outcome}}"),),
                ),
                Panel("Frames decoded a second", (_rate("reelscale_shard_frames_total", "run", "{{run}}"),)),
                Panel("Samples a second", (_rate("reelscale_shard_samples_total", "run", "{{run}}"),)),
                Panel("Bytes read a second", (_rate("reelscale_shard_read_bytes_total", "run", "{{run}}"),), "Bps"),
                Panel("Bytes stored a second", (_rate("reelscale_shard_bytes_total", "run", "{{run}}"),), "Bps"),
                Panel(
                    "Failures by kind",
                    (Query(f"sum by (run, kind) (reelscale_shard_failures_total{_RUN})", "{{run}} {{kind}}"),),
                ),
            ),
        ),
    ]


def _of_the_cluster() -> list[Row]:
    return [
        Row(
            "Fleet",
            (
                _ALERTS,
                Panel("Clips a second, by run", (Query(f"run:reelscale_train_clips_per_second:deriv1m{_RUN}"),)),
                Panel(
                    "Processes that answer, and do not",
                    (
                        Query('count(up{job="reelscale"} == 1) or vector(0)', "answer"),
                        Query('count(up{job="reelscale"} == 0) or vector(0)', "do not"),
                    ),
                ),
                Panel("Checkpoint's age, by run", (Query(f"run:reelscale_checkpoint_age_seconds:max{_RUN}"),), "s"),
                Panel(
                    "What runs where",
                    (
                        Query(
                            f"max by ({_RUN_INFO}) (reelscale_run_info{_RUN})",
                            "",
                        ),
                    ),
                    kind="table",
                    width=16,
                ),
                Panel(
                    "Versions",
                    (Query(f"count by (version, commit, torch) (reelscale_build_info{_RUN})", ""),),
                    kind="table",
                ),
            ),
        ),
        *_machines(),
    ]


def _machines() -> list[Row]:
    return [
        Row(
            "GPUs",
            (
                Panel("Utilisation", (Query(f"reelscale_gpu_utilization_ratio{_RUN}", _RANK),), "percentunit"),
                Panel(
                    "Memory",
                    (Query(f"reelscale_gpu_memory_used_bytes{_RUN} / reelscale_gpu_memory_total_bytes", _RANK),),
                    "percentunit",
                ),
                Panel("Temperature", (Query(f"reelscale_gpu_temperature_celsius{_RUN}", _RANK),), "celsius"),
            ),
        ),
        Row(
            "Hosts",
            (
                Panel(
                    "Memory left",
                    (Query(f"min by (run, node) (reelscale_host_memory_available_bytes{_RUN})", _NODE),),
                    "bytes",
                ),
                Panel("Memory of a rank", (Query(f"reelscale_train_memory_bytes{_RUN}", _RANK),), "bytes"),
                Panel(
                    "Room left on disks",
                    (
                        Query(
                            f"min by (run, node, folder) (reelscale_disk_free_bytes{_RUN} / reelscale_disk_size_bytes)",
                            "{{node}} {{folder}}",
                        ),
                    ),
                    "percentunit",
                ),
            ),
        ),
    ]
