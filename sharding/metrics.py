"""The Prometheus metrics that sharding counts; cluster/monitor serves them."""

from sharding.telemetry.declare import ServedBy, counter, gauge

_BY: ServedBy = "`shard`, `shards retry`"

VIDEOS = counter(
    "reelscale_shard_videos_total",
    "Source videos done, by whether any sample of them is in a shard (`good`) or none (`failed`).",
    _BY,
    "outcome",
    ["good", "failed"],
)
SAMPLES = counter("reelscale_shard_samples_total", "Samples written into shards.", _BY)
FAILURES = counter(
    "reelscale_shard_failures_total", "Videos and segments that gave no sample, by the kind of failure.", _BY, "kind"
)
FRAMES = counter("reelscale_shard_frames_total", "Source frames decoded.", _BY)
BYTES_READ = counter("reelscale_shard_read_bytes_total", "Bytes of source videos read.", _BY)
BYTES = counter("reelscale_shard_bytes_total", "Bytes of shard parts put into the store.", _BY)
JOBS = counter("reelscale_shard_jobs_total", "Shard jobs done.", _BY)
PLANNED_JOBS = gauge(
    "reelscale_shard_planned_jobs", "Shard jobs that were to be done as this command began, those done included.", _BY
)
REMAINING = gauge("reelscale_shard_remaining_videos", "Source videos still to be done.", _BY)
LEFT_SECONDS = gauge(
    "reelscale_shard_left_seconds",
    "Time left at the rate of the last five minutes; absent where nothing was done in them.",
    _BY,
)
OLDEST_SECONDS = gauge("reelscale_shard_oldest_job_seconds", "How long the job that began first has been running.", _BY)
