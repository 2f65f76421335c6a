"""What `sharding.verify` asks of a shard and a sample."""
