"""The Prometheus metrics that sharding counts; cluster/monitor serves them. A gauge is NaN until it is measured."""

import math

from prometheus_client import Counter, Gauge

VIDEOS = Counter("reelscale_shard_videos_total", "Source videos done, good or failed")
SAMPLES = Counter("reelscale_shard_samples_total", "Samples written into shards")
FAILURES = Counter("reelscale_shard_failures_total", "Videos and segments that gave no sample, by kind", ["kind"])
FRAMES = Counter("reelscale_shard_frames_total", "Source frames decoded")
BYTES_READ = Counter("reelscale_shard_read_bytes_total", "Bytes of source videos read")
BYTES = Counter("reelscale_shard_bytes_total", "Bytes of shard parts put into the store")
JOBS = Counter("reelscale_shard_jobs_total", "Shard jobs done")
REMAINING = Gauge("reelscale_shard_remaining_videos", "Source videos still to be done")
LEFT_SECONDS = Gauge("reelscale_shard_left_seconds", "Time left at the rate of the last five minutes; NaN: unknown")
OLDEST_SECONDS = Gauge("reelscale_shard_oldest_job_seconds", "How long the job that began first has been running")

for _gauge in (REMAINING, LEFT_SECONDS, OLDEST_SECONDS):
    _gauge.set(math.nan)  # prometheus_client's own first value, 0, would pass for a figure
