"""What sharding counts; serving the counters is the monitor's."""

from prometheus_client import Counter

SAMPLES = Counter("reelscale_shard_samples_total", "Samples written into shards")
FAILURES = Counter("reelscale_shard_failures_total", "Videos that gave no sample, by reason", ["reason"])
BYTES = Counter("reelscale_shard_bytes_total", "Bytes of shard parts put into the store")
