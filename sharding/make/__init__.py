"""Making shards: what is to be done, one shard job, and its tar parts."""
